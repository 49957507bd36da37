"""Images and masks from files, and the size to work at. Of a mask, white is the region to change."""

import math
from collections.abc import Sequence
from pathlib import Path
from warnings import warn

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from core.errors import UserError, nearest_hint
from datamodules.decode import deep_gray, is_deep_gray, open_image, to_rgb, upright
from modules.base import GenerativeModule
from modules.ops.images import from_uint8, luma, resize

ASPECT_TOLERANCE = 0.02  # between an image and its mask
MAX_ASPECT = 16  # of an image whose size is not given
MAX_MASKED = 0.9  # above this share of white pixels a mask is probably inverted
MAX_GRAY = 0.1  # above this share of pixels that are neither black nor white a mask is probably a photograph
REFERENCE_SIDE = 250  # longer side in pixels at which SinGAN's mask radii are stated


def read_image(path: str, key: str = "task.image", background: str = "white") -> Tensor:
    """An image file of any mode as float32 [1, 3, H, W] in [-1, 1], 16-bit gray in its precision; transparency over
    `background`. FileNotFoundError or UserError with `key` and the file."""
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{key}={path}: is a folder; a task takes one image file")
    if not file.is_file():
        beside = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        raise FileNotFoundError(f"{key}={path}: no such file.{nearest_hint(file.name, beside)}")

    with open_image(file, f"{key}={path}: not an image that can be read") as image:
        image = upright(image)
        if is_deep_gray(image):
            return from_uint8(pil_to_tensor(deep_gray(image))).clamp(-1, 1).expand(1, 3, -1, -1)
        return from_uint8(pil_to_tensor(to_rgb(image, background)))[None]


def read_prepared(path: str, module: GenerativeModule, size: Sequence[int] | None, key: str = "task.image") -> Tensor:
    """The image at `working_size`, [1, 3, H, W] in [-1, 1] on the CPU."""
    image = read_image(path, key)
    return resize(image, working_size(image.shape[-2:], module.image_size, size))


def read_masked(path: str, mask_path: str, module: GenerativeModule, size: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """The image at `working_size`, and its mask [1, 1, H, W] of zeros and ones.

    Gray values of the mask are cut at one half, transparency counts as black. A pixel is masked if any part of it is. Warns of
    a mask of nothing, of nearly everything or with many gray values; UserError if the aspects differ.
    """
    image = read_image(path)
    gray = luma(read_image(mask_path, "task.mask", background="black")) / 2 + 0.5
    (height, width), (mask_height, mask_width) = image.shape[-2:], gray.shape[-2:]
    if abs(mask_width * height / (mask_height * width) - 1) > ASPECT_TOLERANCE:
        sizes = f"{mask_width}×{mask_height} pixels (width × height), task.image={path} is {width}×{height}"
        raise UserError(f"task.mask={mask_path} is {sizes}: their aspect ratios have to be equal")
    mask = (gray >= 0.5).float()
    masked, between = mask.mean().item(), ((gray - 0.5).abs() < 0.45).float().mean().item()
    brightest, white = f"its brightest value is {gray.max().item() * 255:.0f} of 255", "white is the region to change"
    problems = [
        (masked == 0, f"nothing is masked, {brightest}; {white}"),
        (between > MAX_GRAY, f"{between:.0%} of its pixels are gray, as in a photograph; they are cut at one half; {white}"),
        (masked > MAX_MASKED, f"{masked:.0%} of the image is masked; {white}: invert it if you meant the rest"),
    ]
    if problem := next((text for applies, text in problems if applies), None):
        warn(f"task.mask={mask_path}: {problem}", stacklevel=2)
    image = resize(image, working_size((height, width), module.image_size, size))
    return image, F.adaptive_max_pool2d(mask, image.shape[-2:])


def working_size(shape: Sequence[int], model: Sequence[int], size: Sequence[int] | None = None) -> tuple[int, int]:
    """`size`, else the image's `shape` scaled so that its shorter side is the model's."""
    if size is not None:
        return tuple(size)
    factor = min(model) / min(shape)
    height, width = (max(1, round(side * factor)) for side in shape)
    if max(height, width) > MAX_ASPECT * min(height, width):
        strip = f"task.image: {shape[1]}×{shape[0]} pixels (width × height) exceed an aspect of {MAX_ASPECT}:1"
        raise UserError(f"{strip}; crop it or set task.size=[HEIGHT,WIDTH]")
    return height, width


def dilate(mask: Tensor, radius: int) -> Tensor:
    """A mask [N, 1, H, W] of zeros and ones dilated by a disk of `radius` pixels."""
    # One convolution: kornia's morphology makes a channel for each pixel of the disk, 25,000 of them at a side of 1000.
    offsets = torch.arange(-radius, radius + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).to(mask)[None, None]
    return (F.conv2d(mask, disk, padding=radius) > 0.5).to(mask)


def blur(mask: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [N, 1, H, W] whose kernel ends at ceil(3 sigma) pixels; borders are repeated."""
    size = 2 * math.ceil(3 * sigma) + 1
    return gaussian_blur2d(mask, size, (sigma, sigma), "replicate").clamp(0, 1) if sigma > 0 else mask


def blending_mask(mask: Tensor, dilation: float, sigma: float) -> Tensor:
    """SinGAN's soft mask (Rott Shaham et al. 2019, released code): dilated by a disk, blurred, stretched to 0 … 1.

    `dilation` and `sigma` are pixels of an image whose longer side is 250. An empty or full mask stays as it is.
    """
    scale = max(mask.shape[-2:]) / REFERENCE_SIDE
    dilated = dilate(mask, round(dilation * scale))
    soft = blur(dilated, sigma * scale)
    low, high = soft.min(), soft.max()
    return (soft - low) / (high - low) if high > low else dilated


def feathered_mask(mask: Tensor, sigma: float) -> Tensor:
    """1 on the whole mask, falling softly to exactly 0 outside; `sigma` as in `blending_mask`."""
    sigma = sigma * max(mask.shape[-2:]) / REFERENCE_SIDE
    soft = blur(dilate(mask, math.ceil(3 * sigma)), sigma)
    return torch.maximum(soft, mask)  # the sum of the kernel's weights may round to just below 1


def blend(mask: Tensor, changed: Tensor, image: Tensor) -> Tensor:
    """(1 - mask) · image + mask · changed; exactly the image where the mask is 0."""
    return (1 - mask) * image + mask * changed


def mask_image(mask: Tensor) -> Tensor:
    return mask[0].expand(3, -1, -1) * 2 - 1
