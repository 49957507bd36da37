"""One image file to bytes [3, H, W] at the wanted size.

Files are opened and turned into RGB by `datamodules.image_files`, transparency over white, 16-bit grey scaled to 8 bits; here
the EXIF orientation is applied, and the largest centred part with the wanted aspect is resized by Pillow's bicubic filter,
which is antialiased when shrinking; an image that has the size already keeps its exact values.
"""

from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from datamodules.image_files import FORMATS, is_deep_grey, opened, to_rgb

ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # the orientations that swap width and height


class Treatment(NamedTuple):
    """What is done to one file on its way to [3, H, W].

    Args:
        format: what the content is, one of FORMATS, whatever the name ends in.
        shown: (height, width) after the EXIF orientation.
        box: left, top, right, bottom of the part that is used, in pixels of `shown`.
        enlargement: the factor from `box` to the wanted size; 1 or less: nothing is enlarged.
        steps: what else happens: rotated, transparent, palette, cmyk, deep, grey, animated, extension.
    """

    format: str
    shown: tuple[int, int]
    box: tuple[float, float, float, float]
    enlargement: float
    steps: tuple[str, ...]

    @property
    def kept(self) -> float:
        """The share of the picture's area that is used."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top) / (self.shown[0] * self.shown[1])


def decode(data: bytes, path: Path, size: tuple[int, int]) -> tuple[Tensor, Treatment]:
    """The file content `data` as uint8 [3, H, W] with (H, W) = `size`, and what was done to it.

    Raises ValueError with `path` and the reason when the content is not an image that can be read.
    """
    with opened(data, f"cannot read the image {path}") as image:
        treatment = _treatment(image, path, size)
        image = to_rgb(ImageOps.exif_transpose(image))
        return pil_to_tensor(image.resize(size[::-1], Image.Resampling.BICUBIC, box=treatment.box)), treatment


def probe(path: Path, size: tuple[int, int], data: bytes | None = None) -> Treatment:
    """What `decode` would do, from the header alone; the same errors as far as the header shows them.

    Only the header is read from `path`, unless `data` is given.
    """
    with opened(path if data is None else data, f"cannot read the image {path}") as image:
        return _treatment(image, path, size)


def _treatment(image: Image.Image, path: Path, size: tuple[int, int]) -> Treatment:
    deep = is_deep_grey(image) or _is_deep_colour(image)
    orientation = image.getexif().get(ORIENTATION)  # reads all of a PNG, and forgets its tiles
    shown = image.size[::-1] if orientation in TURNED else image.size
    box, enlargement = _centre_box(shown, size)
    kind = "JPEG" if image.format == "MPO" else str(image.format)  # MPO: a JPEG with further pictures behind it
    steps = {
        "rotated": orientation in range(2, 9),
        "transparent": image.has_transparency_data,
        "palette": image.mode in ("P", "PA"),
        "cmyk": image.mode == "CMYK",
        "deep": deep,
        "grey": image.mode in ("1", "L", "LA"),
        "animated": getattr(image, "is_animated", False),
        "extension": path.suffix.lower() not in FORMATS[kind],
    }
    return Treatment(kind, shown[::-1], box, enlargement, tuple(step for step, happens in steps.items() if happens))


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether Pillow cuts 16-bit channels to 8 while it reads: the image's mode does not show it, its tiles do."""
    return any(
        ";16" in str(tile.args) or (tile.codec_name.startswith("ppm") and tile.args[-1] > 255) for tile in image.tile
    )


def _centre_box(shown: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[float, float, float, float], float]:
    """Left, top, right, bottom of the largest centred box with the aspect of `size`; the factor from box to size."""
    width, height = shown
    factor = max(size[0] / height, size[1] / width)
    inner_width, inner_height = min(width, size[1] / factor), min(height, size[0] / factor)
    left, top = (width - inner_width) / 2, (height - inner_height) / 2
    return (left, top, min(width, left + inner_width), min(height, top + inner_height)), factor
