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

MAX_BITS = 10  # of 64 that differ; copies of photographs differ in fewer, different photographs in 14 or more
MIN_CORRELATION = 0.99  # of 16×16 colors: drawings in one style have similar hashes but not similar colors


class PerceptualHash(NamedTuple):
    """Of an image and its mirror image: hash bits as ±1 [2, 64], centered colors of length 1 [2, 768]."""

    bits: np.ndarray
    colors: np.ndarray


def perceptual_hash(pixels: Tensor) -> PerceptualHash:
    """The hash of uint8 [3, H, W]."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    both = (image, ImageOps.mirror(image))
    bits = [np.where(imagehash.phash(view).hash.flatten(), 1, -1) for view in both]
    colors = [np.asarray(view.resize((16, 16), Image.Resampling.BOX), dtype=np.float32).reshape(-1, 3) for view in both]
    colors = [(cells - cells.mean(axis=0)).flatten() for cells in colors]
    return PerceptualHash(np.float32(bits), np.stack([c / max(float(np.linalg.norm(c)), 1e-6) for c in colors]))


def near_copies(hashes: Sequence[PerceptualHash], block: int = 512) -> list[tuple[int, int, bool]]:
    """Pairs i < j of hashes of the same image, and whether one is mirrored.

    Work and memory: `block` rows of the N × N table at a time.
    """
    if len(hashes) < 2:
        return []
    bits, colors = (np.stack(part) for part in zip(*hashes, strict=True))
    pairs = []
    for start in range(0, len(hashes), block):
        rows = np.arange(start, min(start + block, len(hashes)))
        candidates = rows[:, None] < np.arange(len(hashes))
        for mirrored in (0, 1):
            alike = candidates & ((64 - bits[rows, 0] @ bits[:, mirrored].T) / 2 <= MAX_BITS)
            if alike.any():
                alike &= colors[rows, 0] @ colors[:, mirrored].T >= MIN_CORRELATION
            candidates &= ~alike
            pairs += [(start + int(i), int(j), bool(mirrored)) for i, j in zip(*np.nonzero(alike), strict=True)]
    return pairs
