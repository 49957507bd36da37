"""Copies of a picture that are not the same file: recompressed, rescaled, brighter or darker, mirrored.

A perceptual hash (Pillow's discrete cosine transform of the shrunk grey image, 64 bits, from the package imagehash) finds
the candidates; since drawings in one style have nearly the same hash, the colours of 16×16 cells have to agree, too.
Copies that are shifted or cropped by more than a few per cent are not found.
"""

from collections.abc import Sequence
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

MAX_BITS = 10  # of the 64 of a perceptual hash; copies of photographs differ in fewer, different ones in 14 or more
MIN_CORRELATION = 0.99  # of 16×16 colours: drawings in one style have similar hashes but not similar colours


class Look(NamedTuple):
    """What an image and its mirror image look like: hash bits as ±1 [2, 64], centred colours of length 1 [2, 768]."""

    hashes: np.ndarray
    colours: np.ndarray


def look_at(pixels: Tensor) -> Look:
    """The look of uint8 [3, H, W]."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    both = (image, ImageOps.mirror(image))
    hashes = [np.where(imagehash.phash(view).hash.flatten(), 1, -1) for view in both]
    colours = [np.asarray(view.resize((16, 16), Image.Resampling.BOX), dtype=np.float32).reshape(-1, 3) for view in both]
    colours = [(colour - colour.mean(axis=0)).flatten() for colour in colours]
    lengths = [max(float(np.linalg.norm(colour)), 1e-6) for colour in colours]
    return Look(np.float32(hashes), np.stack([c / length for c, length in zip(colours, lengths, strict=True)]))


def near_copies(looks: Sequence[Look], block: int = 512) -> list[tuple[int, int, bool]]:
    """Pairs i < j of looks that are the same picture, and whether mirrored: recompressed, rescaled, brighter or darker.

    Work and memory: `block` rows of the N × N table at a time.
    """
    if len(looks) < 2:
        return []
    hashes, colours = (np.stack(part) for part in zip(*looks, strict=True))
    pairs = []
    for start in range(0, len(looks), block):
        rows = np.arange(start, min(start + block, len(looks)))
        left = rows[:, None] < np.arange(len(looks))
        for mirrored in (0, 1):
            alike = left & ((64 - hashes[rows, 0] @ hashes[:, mirrored].T) / 2 <= MAX_BITS)
            if alike.any():
                alike &= colours[rows, 0] @ colours[:, mirrored].T >= MIN_CORRELATION
            left &= ~alike
            pairs += [(start + int(i), int(j), bool(mirrored)) for i, j in zip(*np.nonzero(alike), strict=True)]
    return pairs
