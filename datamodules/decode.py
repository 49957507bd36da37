"""The decoder of image files from unknown sources: accepted formats and sizes, every mode as RGB, fitting to a size.

Of an animation the first frame is used; color profiles are ignored. To fit a size, the largest centered box of its aspect is
resized by Pillow's bicubic filter; an image that has the size already keeps its exact values.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.Image import Transpose as Flip
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from core.errors import UserError
from datamodules.archive import open_file

# A closed list, because Pillow goes by content, not by file name: EPS, for one, would start an external program.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
FORMAT_OF = {".dib": "BMP"} | {key: name for key, name in Image.registered_extensions().items() if name in FORMATS}
EXTENSIONS = tuple(sorted(FORMAT_OF))
TRANSPOSITIONS = {2: Flip.FLIP_LEFT_RIGHT, 3: Flip.ROTATE_180, 4: Flip.FLIP_TOP_BOTTOM, 5: Flip.TRANSPOSE,
                  6: Flip.ROTATE_270, 7: Flip.TRANSVERSE, 8: Flip.ROTATE_90}  # fmt: skip


class Treatment(NamedTuple):
    """The way in which a file becomes [3, H, W]."""

    format: str  # of the content, one of FORMATS, whatever the file name says
    shape: tuple[int, int]  # height and width after the EXIF orientation
    box: tuple[float, float, float, float]  # left, top, right, bottom of the part that is used, in pixels of `shape`
    enlargement: float  # factor from `box` to the requested size; 1 or less: nothing is enlarged
    steps: tuple[str, ...]  # further conversions, keys of `datamodules.findings.STEPS`
    value_range: tuple[float, float] | None = None  # of an image of 16 bits a channel, scaled to 0 … 65535


def decode(data: bytes, path: Path, size: tuple[int, int]) -> tuple[Tensor, Treatment]:
    """The content of the file `path` as uint8 [3, H, W] with (H, W) = `size`, and how it was treated; UserError if damaged."""
    with open_image(data, f"cannot read the image {path}") as image:
        treatment = _treatment(image, path, size)
        if "deep" in treatment.steps:
            gray = is_deep_gray(image)
            values = np.asarray(deep_gray(image) if gray else image.convert("RGB"))
            low, high = round(float(values.min()) * 257), round(float(values.max()) * 257)
            treatment = treatment._replace(value_range=(low, high if gray else high + 255))
        image = to_rgb(upright(image))
        return pil_to_tensor(image.resize(size[::-1], Image.Resampling.BICUBIC, box=treatment.box)), treatment


def probe(path: Path, size: tuple[int, int]) -> Treatment:
    """The treatment that `decode` would return, from the header alone and so without `value_range`."""
    with open_image(path, f"cannot read the image {path}") as image:
        return _treatment(image, path, size)


@contextmanager
def open_image(source: bytes | Path, failure: str) -> Iterator[Image.Image]:
    """The image in a file or in its content; whatever is raised, also inside the `with` block, becomes one UserError that
    begins with `failure`. Images beyond Pillow's limit of 89 million pixels are refused by their header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            content = BytesIO(source) if isinstance(source, bytes) else open_file(source)
            with content, Image.open(content, formats=FORMATS) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"the limit is {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
        raise UserError(f"{failure}: it is too large to be opened safely, {limit}: scale it down first") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{failure}: it is empty or in none of the formats {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders raise nearly anything on damaged data: SyntaxError, struct.error, EOFError, …
        raise UserError(f"{failure}: {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """The image after its EXIF orientation; Pillow's `exif_transpose` fails where other EXIF fields are invalid."""
    orientation = _orientation(image)[0]
    return image.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else image


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """An image of any mode as RGB, transparency over `background`; UserError where `deep_gray` raises it."""
    if is_deep_gray(image):
        gray = deep_gray(image).point(lambda value: value + 0.5).convert("L")  # rounded
        gray.info.pop("transparency", None)
        return gray.convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def is_deep_gray(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def deep_gray(image: Image.Image) -> Image.Image:
    """Gray of more than 8 bits as floats (mode F) from 0 to 255, not rounded; Pillow's `convert` would clip above 255.

    UserError for values beyond 16 bits and for floats outside [0, 1], whose white is unknown.
    """
    white = 1.0 if image.mode == "F" else 65535.0
    if image.mode != "F":
        image = image.convert("I")  # not all of Pillow supports the byte orders of 16-bit modes
    values = np.asarray(image)  # Pillow's own extrema skip NaN
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= white:
        raise UserError(f"its gray values {low} to {high} are outside the supported range 0 to {white:g}")
    scale = 255 / white
    return image.convert("F").point(lambda value: value * scale)


def _treatment(image: Image.Image, path: Path, size: tuple[int, int]) -> Treatment:
    # Pillow cuts 16-bit channels to 8 while reading: the image's mode does not show it, its tiles do.
    deep = is_deep_gray(image) or any(
        ";16" in str(tile.args) or (tile.codec_name.startswith("ppm") and tile.args[-1] > 255) for tile in image.tile
    )
    orientation, valid_metadata = _orientation(image)  # reads all of a PNG, and forgets its tiles
    height, width = image.size[::-1] if orientation < 5 else image.size
    factor = max(size[0] / height, size[1] / width)
    inner_width, inner_height = min(width, size[1] / factor), min(height, size[0] / factor)
    left, top = (width - inner_width) / 2, (height - inner_height) / 2
    box = (left, top, min(width, left + inner_width), min(height, top + inner_height))
    kind = "JPEG" if image.format == "MPO" else str(image.format)  # MPO: a JPEG with further images behind it
    steps = {
        "rotated": orientation in TRANSPOSITIONS,
        "metadata": not valid_metadata,
        "transparent": image.has_transparency_data,
        "palette": image.mode in ("P", "PA"),
        "cmyk": image.mode == "CMYK",
        "deep": deep,
        "gray": image.mode in ("1", "L", "LA"),
        "animated": getattr(image, "is_animated", False),
        "extension": FORMAT_OF.get(path.suffix.lower()) != kind,
    }
    return Treatment(kind, (height, width), box, factor, tuple(step for step, applies in steps.items() if applies))


def _orientation(image: Image.Image) -> tuple[int, bool]:
    """The EXIF orientation, 1 if there is none that can be read; and whether all of the EXIF data are valid."""
    orientation, valid = 1, False
    with suppress(Exception):  # invalid metadata are no reason to refuse pixels
        exif = image.getexif()
        orientation = exif.get(Base.Orientation, 1)
        exif.tobytes()  # raises struct.error, TypeError, … for a value that its field cannot hold
        valid = orientation in range(9) and (len(exif) > 0 or not image.info.get("exif"))
    return (orientation if orientation in TRANSPOSITIONS else 1), valid
