"""What every task needs before it asks a model: images and masks from files, working sizes, capabilities, a seed.

Image files are read by the rules and limits of `datamodules.image_files`, with the EXIF orientation applied and at most 89
million pixels; 16-bit grey keeps its fine steps. Masks: white is the region to change.
"""

import difflib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from warnings import warn

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

import modules
from core.errors import UserError
from datamodules.image_files import check_file_bytes, deep_grey, is_deep_grey, opened, to_rgb
from modules.base import GenerativeModule
from modules.ops.images import from_uint8, luma, resize

ASPECT_TOLERANCE = 0.02  # between an image and its mask
MOSTLY_MASKED = 0.9  # above this share of white pixels a mask is probably inverted
REFERENCE_SIDE = 250  # longer side in pixels at which SinGAN's mask radii are stated


# --- files ------------------------------------------------------------------------------------------------------------


def read_image(path: str, key: str = "task.image", background: str = "white") -> Tensor:
    """An image file of any mode as float32 [1, 3, H, W] in [-1, 1]; transparency over `background`.

    Raises FileNotFoundError or ValueError with `key`, the file and what is wrong with it.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(f"{key}={path}: is a folder; a task takes one image file")
    if not file.is_file():
        beside = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        close = difflib.get_close_matches(file.name, beside, n=1)
        hint = f" Did you mean {file.parent / close[0]}?" if close else ""
        raise FileNotFoundError(f"{key}={path}: no such file.{hint}")
    check_file_bytes(f"{key}={path}", file.stat().st_size)
    with opened(file, f"{key}={path}: not an image that can be read") as image:
        return _to_tensor(ImageOps.exif_transpose(image), background)


def _to_tensor(image: Image.Image, background: str) -> Tensor:
    """A Pillow image of any mode as [1, 3, H, W] in [-1, 1]."""
    if is_deep_grey(image):
        return from_uint8(pil_to_tensor(deep_grey(image))).clamp(-1, 1).expand(1, 3, -1, -1)
    return from_uint8(pil_to_tensor(to_rgb(image, background)))[None]


def read_prepared(path: str, module: GenerativeModule, size: Sequence[int] | None) -> Tensor:
    """The image at the working size (see `working_size`), [1, 3, H, W] in [-1, 1] on the CPU."""
    image = read_image(path)
    return resize(image, working_size(image.shape[-2:], module.image_size, size))


def read_masked(
    path: str, mask_path: str, module: GenerativeModule, size: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """The image at the working size, and its mask [1, 1, H, W] of zeros and ones, 1 = the region to change.

    Grey values of the mask are cut at one half, transparency counts as black. A pixel of the working size is masked as
    soon as the mask touches it. A mask of another size has to have the image's aspect within 2 %.
    Warns when nothing or more than 90 % is masked; raises ValueError naming both sizes when the aspects differ.
    """
    image = read_image(path)
    grey = luma(read_image(mask_path, "task.mask", background="black")) / 2 + 0.5
    (height, width), (mask_height, mask_width) = image.shape[-2:], grey.shape[-2:]
    if abs(mask_width * height / (mask_height * width) - 1) > ASPECT_TOLERANCE:
        raise UserError(
            f"task.mask={mask_path} is {mask_width}×{mask_height} pixels (width × height), task.image={path} is "
            f"{width}×{height}: their aspects have to be equal"
        )
    mask = (grey >= 0.5).float()
    share = mask.mean().item()
    if share == 0:
        brightest = f"its brightest value is {grey.max().item() * 255:.0f} of 255"
        warn(f"task.mask={mask_path}: nothing is masked, {brightest}; white is the region to change", stacklevel=2)
    if share > MOSTLY_MASKED:
        advice = "white is the region to change: invert it if you meant the rest"
        warn(f"task.mask={mask_path}: {share:.0%} of the image is masked; {advice}", stacklevel=2)
    image = resize(image, working_size((height, width), module.image_size, size))
    return image, F.adaptive_max_pool2d(mask, image.shape[-2:])


def working_size(given: Sequence[int], model: Sequence[int], wanted: Sequence[int] | None = None) -> tuple[int, int]:
    """Height and width a task works at: `wanted`, or the `given` size scaled so that its shorter side is the model's.

    The aspect is kept; an aspect above 16:1 is refused, because the longer side would grow beyond all that was trained.
    """
    if wanted is not None:
        return checked_size(wanted)
    factor = min(model) / min(given)
    height, width = (max(1, round(side * factor)) for side in given)
    if max(height, width) > 16 * min(height, width):
        strip = f"task.image: {given[1]}×{given[0]} pixels (width × height) is a strip"
        raise UserError(f"{strip}; crop it or set task.size=[HEIGHT,WIDTH]")
    return height, width


def checked_size(size: Sequence[int]) -> tuple[int, int]:
    """`task.size` as (height, width); ValueError unless it is two numbers from 1 on."""
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"task.size={list(size)}: expected [HEIGHT,WIDTH] in pixels, for example task.size=[48,96]")
    return size[0], size[1]


# --- masks ------------------------------------------------------------------------------------------------------------


def dilate(mask: Tensor, radius: int) -> Tensor:
    """A mask [N, 1, H, W] of zeros and ones grown by a disk of `radius` pixels."""
    offsets = torch.arange(-radius, radius + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).to(mask)[None, None]
    return (F.conv2d(mask, disk, padding=radius) > 0.5).to(mask)


def blur(mask: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [N, 1, H, W], exactly local: the kernel ends at ceil(3 sigma) pixels; borders are repeated."""
    if sigma <= 0:
        return mask
    reach = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).to(mask) / sigma) ** 2)
    weights = weights / weights.sum()
    padded = F.pad(mask, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1)).clamp(0, 1)


def blending_mask(mask: Tensor, dilation: float, sigma: float) -> Tensor:
    """SinGAN's soft mask (Rott Shaham et al. 2019, released code): grown by a disk, blurred, stretched to 0 … 1.

    Radius `dilation` and `sigma` are pixels of an image whose longer side is 250 and scale with the image. Exactly 0
    away from the mask; an empty or full mask stays what it is.
    """
    scale = max(mask.shape[-2:]) / REFERENCE_SIDE
    grown = dilate(mask, round(dilation * scale))
    soft = blur(grown, sigma * scale)
    low, high = soft.min(), soft.max()
    return (soft - low) / (high - low) if high > low else grown


def feathered_mask(mask: Tensor, sigma: float) -> Tensor:
    """1 on the whole mask, falling softly to exactly 0 outside; `sigma` as in `blending_mask`."""
    sigma = sigma * max(mask.shape[-2:]) / REFERENCE_SIDE
    soft = blur(dilate(mask, math.ceil(3 * sigma)), sigma)
    return torch.maximum(soft, mask)  # the sum of the kernel's weights may round to just below 1


def blend(mask: Tensor, changed: Tensor, image: Tensor) -> Tensor:
    """(1 - mask) · image + mask · changed; exactly the image where the mask is 0."""
    return (1 - mask) * image + mask * changed


def as_picture(mask: Tensor) -> Tensor:
    """A mask [1, 1, H, W] as an image [3, H, W] in [-1, 1] to look at."""
    return mask[0].expand(3, -1, -1) * 2 - 1


# --- the model --------------------------------------------------------------------------------------------------------


def require(module: GenerativeModule, capability: str, task: str) -> Callable[..., Tensor]:
    """The module's method `capability`; ValueError naming task, method and the methods that have it, if it has none."""
    if _has(type(module), capability):
        return getattr(module, capability)
    able = ", ".join(methods_with(capability)) or "none so far"
    lacking = f"task {task} needs {capability}(), which {type(module).__name__} does not have"
    raise UserError(f"{lacking}; methods that have it: {able}")


def require_trained_sampler(module: GenerativeModule, task: str) -> None:
    """ValueError while the module's random images mean nothing yet (a prior that is not trained)."""
    if not module.samples_ready:
        stage = getattr(module, "stage_name", "its current stage")
        name = type(module).__name__
        raise UserError(f"task {task}: this {name} cannot draw images yet, its training ended in {stage}")


def methods_with(capability: str, option: str | None = None) -> list[str]:
    """Names of the project's methods that have a capability, and where given an option of it."""
    files = [entry.name for entry in pkgutil.iter_modules(modules.__path__) if not entry.ispkg]
    found = [value for name in files for value in vars(importlib.import_module(f"modules.{name}")).values()]
    methods = {value for value in found if isinstance(value, type) and issubclass(value, GenerativeModule)}
    able = [method for method in methods if _has(method, "sample") and _has(method, capability)]
    if option is not None:
        able = [method for method in able if option in inspect.signature(getattr(method, capability)).parameters]
    return sorted(method.__name__ for method in able)


def _has(method: type, capability: str) -> bool:
    own = getattr(method, capability, None)
    return callable(own) and own is not getattr(GenerativeModule, capability, None)


def accepted(function: Callable[..., Any], task: str, **options: Any) -> dict[str, Any]:
    """The options that are set (not None); ValueError for one that the module's `function` does not take."""
    options = {name: value for name, value in options.items() if value is not None}
    known = inspect.signature(function).parameters
    for name in options:
        if name not in known:
            method = type(getattr(function, "__self__", function)).__name__
            able = ", ".join(methods_with(function.__name__, name)) or "none so far"
            lacking = f"task.{name}: {method}.{function.__name__}() has no such option"
            raise UserError(f"{lacking}; leave it out of {task}; methods that have it: {able}")
    return options


def checked_number(num_images: int) -> int:
    """`task.num_images`; ValueError below 1."""
    if num_images < 1:
        raise UserError(f"task.num_images={num_images}: must be at least 1")
    return num_images
