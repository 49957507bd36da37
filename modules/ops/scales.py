"""Sizes of an image pyramid. Scale 0 is the coarsest."""

import math
from collections.abc import Sequence

from core.errors import UserError

MAX_SCALES = 1000
ROUNDING = 1e-6  # 25 = 188 * (25 / 188) evaluates just above 25; without the correction `ceil` gives 26


def scale_sizes(image_size: Sequence[int], min_size: int, scale_factor: float = 0.75) -> list[tuple[int, int]]:
    """Heights and widths from coarsest to finest by SinGAN's rule (Rott Shaham et al. 2019, released code): from a shorter side
    of `min_size` to the image's own size. The true ratio of neighbors is near `scale_factor` < 1, so that both ends fit."""
    last = math.ceil(math.log(min_size / min(image_size)) / math.log(scale_factor)) + 1
    if last >= MAX_SCALES:
        raise UserError(f"scale_factor is {scale_factor}, which makes {last + 1} scales; the maximum is {MAX_SCALES}")
    return sizes_by_exponents(image_size, min_size, range(last, -1, -1))


def sizes_by_exponents(image_size: Sequence[int], min_size: int, exponents: Sequence[float]) -> list[tuple[int, int]]:
    """Heights and widths r^e of the image's for S exponents e from S - 1 to 0; the shorter side begins at `min_size`."""
    if min(image_size) <= min_size:
        raise UserError(
            f"image_size [{image_size[0]}, {image_size[1]}]: the shorter side must be larger than min_size {min_size}, "
            f"the coarsest scale; enlarge image_size or lower min_size"
        )
    ratio = (min_size / min(image_size)) ** (1 / (len(exponents) - 1))
    return [tuple(math.ceil(side * ratio**exponent - ROUNDING) for side in image_size) for exponent in exponents]


def proportional_size(size: Sequence[int], image_size: Sequence[int], scale_size: Sequence[int]) -> tuple[int, int]:
    """Size that an output of `size` has at a scale which is `scale_size` when the output is `image_size`; at least 1."""
    return tuple(max(1, round(side * scaled / full)) for side, scaled, full in zip(size, scale_size, image_size, strict=True))


def check_scale(num_scales: int, lowest: int = 0, **values: int) -> None:
    """UserError for the first named value that is no scale from `lowest` on; a `lowest` of 1 is for what takes an image."""
    for name, value in values.items():
        if not lowest <= value < num_scales:
            reason = "; scale 0 makes its image from noise alone" if lowest else ""
            raise UserError(f"{name} is {value}; allowed are {lowest} (coarsest) to {num_scales - 1} (finest){reason}")
