"""One image file to bytes [3, H, W] at the wanted size.

Rules: the EXIF orientation is applied; transparency is laid over white; of an animation the first frame counts; 16-bit
grey is scaled to 8 bits; colour profiles are ignored. The largest centred part with the wanted aspect is resized by
Pillow's bicubic filter, which is antialiased when shrinking; an image that has the size already keeps its exact values.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

ENDINGS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# A closed list, because Pillow goes by content, not by ending: EPS, for one, would start an external program.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # the orientations that swap width and height


def decode(data: bytes, path: Path, size: tuple[int, int]) -> tuple[Tensor, float]:
    """The file content `data` as uint8 [3, H, W] with (H, W) = `size`, and the factor it was enlarged by (≤ 1: not).

    Raises ValueError with `path` and the reason when the content is not an image that can be read.
    """
    with _opened(BytesIO(data), path) as image:
        image = to_rgb(ImageOps.exif_transpose(image))
        box, factor = _centre_box(image.size, size)
        return pil_to_tensor(image.resize(size[::-1], Image.Resampling.BICUBIC, box=box)), factor


def probe(path: Path, size: tuple[int, int]) -> float:
    """The enlargement `decode` would need, from the header alone; the same errors as far as the header shows them."""
    with _opened(path, path) as image:
        turned = image.getexif().get(ORIENTATION) in TURNED
        return _centre_box(image.size[::-1] if turned else image.size, size)[1]


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow image of any mode as RGB of the same size, transparency over white.

    Raises ValueError for grey values beyond 16 bits or floats outside [0, 1], whose white cannot be known.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_grey(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Pillow's own conversion would clip everything above 255 to white."""
    white = 1.0 if image.mode == "F" else 65535.0
    if image.mode != "F":
        image = image.convert("I")  # the byte orders of 16-bit modes are not understood by all of Pillow
    low, high = image.getextrema()
    if not 0 <= low <= high <= white:
        raise ValueError(f"its grey values run from {low} to {high}, understood are 0 to {white:g}")
    scale = 255 / white
    grey = image.convert("F").point(lambda value: value * scale + 0.5).convert("L")
    grey.info.pop("transparency", None)
    return grey


def _centre_box(shown: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[float, float, float, float], float]:
    """Left, top, right, bottom of the largest centred box with the aspect of `size`; the factor from box to size."""
    width, height = shown
    factor = max(size[0] / height, size[1] / width)
    inner_width, inner_height = min(width, size[1] / factor), min(height, size[0] / factor)
    left, top = (width - inner_width) / 2, (height - inner_height) / 2
    return (left, top, min(width, left + inner_width), min(height, top + inner_height)), factor


@contextmanager
def _opened(source: Path | BytesIO, path: Path) -> Iterator[Image.Image]:
    """The image opened lazily; whatever a decoder raises becomes one ValueError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"the limit is {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
        raise ValueError(f"{path} is too large to be opened safely, {limit}: scale it down first") from error
    except UnidentifiedImageError as error:
        reason = f"it is empty or in none of the formats {', '.join(FORMATS)}"
        raise ValueError(f"cannot read the image {path}: {reason}") from error
    except Exception as error:  # decoders raise nearly anything on damaged data: SyntaxError, struct.error, EOFError, …
        raise ValueError(f"cannot read the image {path}: {error}") from error
