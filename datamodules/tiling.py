"""One training image made of all images of a set."""

import math
from typing import Literal

import torch
from torchvision.utils import make_grid

from datamodules.fingerprints import sha256
from datamodules.folder import ImageFolder
from datamodules.listing import shorten

Arrangement = Literal["row", "column", "grid"]


def tiled(images: ImageFolder, tile: Arrangement) -> ImageFolder:
    """All images of a set side by side (row), one below the other (column), or in a nearly square table (grid).

    Cells that are left over repeat the first images; mirrored as a whole if the set is.
    """
    count = len(images.files)
    columns = {"row": count, "column": 1, "grid": math.ceil(math.sqrt(count))}[tile]
    cells = [images.bytes_of(cell % count) for cell in range(math.ceil(count / columns) * columns)]
    pixels = make_grid(torch.stack(cells), columns, padding=0)[None]
    result = ImageFolder(images.folder, [f"{tile} of {shorten(images.files)}"], pixels.shape[2:], images.flip, pixels=pixels)
    result.digests = [sha256("\n".join([tile, *images.digests]).encode())]
    return result
