"""Copies of an image that are not the same file: recompressed, rescaled, brighter or darker, mirrored.

A perceptual hash (Pillow's discrete cosine transform of the shrunk gray image, 64 bits, from the package imagehash) finds
the candidates; since drawings in one style have nearly the same hash, the colors of 16×16 cells have to agree, too.
Copies that are shifted or cropped by more than a few per cent are not found.
"""

from collections.abc import Sequence
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

MAX_BITS = 10  # of 64 that differ; copies of photographs differ in fewer, different photographs in 14 or more
MIN_CORRELATION = 0.99  # of 16×16 colors: drawings in one style have similar hashes but not similar colors


class PerceptualHash(NamedTuple):
    """Of an image and its mirror image: hash bits as ±1 [2, 64], centered colors of length 1 [2, 768]."""

    bits: np.ndarray
    colors: np.ndarray


def perceptual_hash(pixels: Tensor) -> PerceptualHash:
    """The hash of uint8 [3, H, W]."""
    image = to_pil_image(pixels)
    both = (image, ImageOps.mirror(image))
    bits = np.stack([np.where(imagehash.phash(view).hash.flatten(), 1, -1) for view in both])
    colors = np.stack([np.asarray(view.resize((16, 16), Image.Resampling.BOX), dtype=np.float32) for view in both])
    colors = (colors - colors.mean(axis=(1, 2), keepdims=True)).reshape(2, -1)
    return PerceptualHash(np.float32(bits), colors / np.maximum(np.linalg.norm(colors, axis=1, keepdims=True), 1e-6))


def near_copies(hashes: Sequence[PerceptualHash]) -> list[tuple[int, int, bool]]:
    """Pairs i < j of hashes of the same image, and whether one is mirrored."""
    if not hashes:
        return []
    bits, colors = (np.stack(part) for part in zip(*hashes, strict=True))
    pairs: dict[tuple[int, int], bool] = {}
    for i in range(len(hashes)):
        others, views = np.nonzero(bits[i + 1 :] @ bits[i, 0] >= 64 - 2 * MAX_BITS)
        others += i + 1
        alike = colors[others, views] @ colors[i, 0] >= MIN_CORRELATION
        for j, mirrored in zip(others[alike].tolist(), views[alike].tolist(), strict=True):
            pairs.setdefault((i, j), bool(mirrored))
    return [(i, j, mirrored) for (i, j), mirrored in pairs.items()]
