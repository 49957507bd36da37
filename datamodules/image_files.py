"""The one place where image files of unknown origin are opened: which formats, how large, and every mode as RGB.

Transparency is laid over a stated colour, of an animation the first frame counts, 16-bit grey keeps its range, colour
profiles are ignored. The EXIF orientation is the caller's to apply, by Pillow's `exif_transpose`.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from core.errors import UserError

# A closed list, because Pillow goes by content, not by ending: EPS, for one, would start an external program.
FORMATS = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
ENDINGS = tuple(sorted(ending for endings in FORMATS.values() for ending in endings))
MAX_FILE_BYTES = 256 * 2**20  # of one image file, packed or not; 89 million pixels, Pillow's limit, are 255 MiB of bytes


def check_file_bytes(name: Path | str, size: int) -> None:
    """Raises ValueError, which begins with `name`, for a file of more than MAX_FILE_BYTES."""
    if size > MAX_FILE_BYTES:
        raise UserError(f"{name} has {size / 2**20:.0f} MiB, the limit is {MAX_FILE_BYTES // 2**20}: not read")


@contextmanager
def opened(source: bytes | Path, failure: str) -> Iterator[Image.Image]:
    """The image in a file or in its content, opened lazily: pixels are read when they are asked for.

    Whatever a decoder raises, inside the `with` block too, becomes one ValueError that begins with `failure`. Pictures
    beyond Pillow's limit of 89 million pixels are refused by their header.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            content = BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(content, formats=tuple(FORMATS)) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"the limit is {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
        raise UserError(f"{failure}: it is too large to be opened safely, {limit}: scale it down first") from error
    except UnidentifiedImageError as error:
        reason = f"it is empty or in none of the formats {', '.join(FORMATS)}"
        raise UserError(f"{failure}: {reason}") from error
    except Exception as error:  # decoders raise nearly anything on damaged data: SyntaxError, struct.error, EOFError, …
        raise UserError(f"{failure}: {error}") from error


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """A Pillow image of any mode as RGB of the same size, transparency over `background`.

    Raises ValueError where `deep_grey` does.
    """
    if is_deep_grey(image):
        grey = deep_grey(image).point(lambda value: value + 0.5).convert("L")  # rounded
        grey.info.pop("transparency", None)
        return grey.convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def is_deep_grey(image: Image.Image) -> bool:
    """Whether the image is grey of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def deep_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as floats (mode F), 0 to 255, nothing rounded; Pillow's `convert` would clip above 255.

    Raises ValueError for values beyond 16 bits or floats outside [0, 1], whose white cannot be known.
    """
    white = 1.0 if image.mode == "F" else 65535.0
    if image.mode != "F":
        image = image.convert("I")  # the byte orders of 16-bit modes are not understood by all of Pillow
    values = np.asarray(image)  # Pillow's own extrema pass over what is not a number
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= white:
        raise UserError(f"its grey values run from {low} to {high}, understood are 0 to {white:g}")
    scale = 255 / white
    return image.convert("F").point(lambda value: value * scale)
