"""One training image made of all images of a set."""

import math
from typing import Literal

import torch

from datamodules.fingerprints import sha256
from datamodules.folder import ImageFolder
from datamodules.listing import shorten

Arrangement = Literal["row", "column", "grid"]


class TiledImages(ImageFolder):
    """All images of a set side by side (row), one below the other (column), or in a nearly square table (grid).

    Cells that are left over repeat the first images; mirrored as a whole if the set is.
    """

    def __init__(self, images: ImageFolder, tile: Arrangement) -> None:
        count, (height, width) = len(images.files), images.image_size
        rows, columns = table_shape(count, tile)
        cells = torch.stack([images.bytes_of(cell % count) for cell in range(rows * columns)])
        self.folder, self.flip, self.labels = images.folder, images.flip, None
        self.files = [f"{tile} of {shorten(images.files)}"]
        self.image_size = (rows * height, columns * width)
        cells = cells.view(rows, columns, 3, height, width)
        self.pixels = cells.permute(2, 0, 3, 1, 4).reshape(1, 3, *self.image_size)
        self.digests = [sha256("\n".join([tile, *images.digests]).encode())]


def table_shape(count: int, tile: Arrangement) -> tuple[int, int]:
    """Rows and columns of an arrangement of `count` images."""
    columns = {"row": count, "column": 1, "grid": math.ceil(math.sqrt(count))}[tile]
    return -(-count // columns), columns
