"""SyntheticDataModule: drawn scenes instead of files, for tests and first steps."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.errors import UserError
from core.types import AtLeastTwo, PathStr, PositiveInt
from datamodules.folder import ImageFolder
from datamodules.image_datamodule import MAX_PIXELS, ImageDataModule, split_heldout


@dataclass(eq=False, kw_only=True)
class SyntheticDataModule(ImageDataModule):
    """Batches and sets of `ImageDataModule` without a file.

    It takes the same keys and ignores the other roots and `max_memory_gib`. There are always side and source images; any
    `heldout_root` gives three more drawings, any `labels` the class i modulo `num_classes` for drawing i. The drawings depend
    on `image_size`, set and position only, never on `seed`.

    Args:
        image: use one drawing only, number `image` modulo their number; any name stands for 0.
        num_images, num_side, num_source: drawings per set.
        num_classes: of `label`.
    """

    root: PathStr = ""
    num_images: PositiveInt = 3
    num_side: AtLeastTwo = 8  # one to train on and one held out
    num_source: PositiveInt = 8
    num_classes: PositiveInt = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        number = self.num_images + self.num_side + self.num_source
        if number * self.image_size[0] * self.image_size[1] > MAX_PIXELS:
            drawings = f"num_images, num_side, num_source: {number} drawings of {self.image_size}"
            raise UserError(f"{drawings} have more than {MAX_PIXELS / 1e6:.0f} million pixels, the limit")

    def load_sets(self) -> dict[str, ImageFolder]:
        names = _names("image", self.num_images)
        if self.image is not None:
            names = [names[self.image % len(names) if isinstance(self.image, int) else 0]]
        self.label_names = [f"class_{index}" for index in range(self.num_classes)] if self.labels else []
        labels = [int(name[-7:-4]) % self.num_classes for name in names] if self.labels else None
        side, side_heldout = split_heldout(_names("side", self.num_side), self.heldout_fraction)
        sets = {
            "image": self._drawn(names, self.flip, labels),
            "side": self._drawn(side, self.side_flip),
            "side_heldout": self._drawn(side_heldout),
            "source": self._drawn(_names("source", self.num_source), self.flip),
        }
        return sets | ({"image_heldout": self._drawn(_names("heldout", 3))} if self.heldout_root else {})

    def roots(self) -> dict[str, str]:
        return {}

    def _drawn(self, names: list[str], flip: bool = False, labels: list[int] | None = None) -> ImageFolder:
        pixels = torch.stack([draw_scene(name, self.image_size) for name in names])
        return ImageFolder(Path("drawn"), names, self.image_size, flip, labels, pixels=pixels)


def draw_scene(name: str, size: Sequence[int]) -> Tensor:
    """A bright fading sky above a darker striped ground, and three discs, chosen by the name: uint8 [3, H, W]."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big"))

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    y = ((torch.arange(size[0]) + 0.5) / size[0]).view(-1, 1)
    x = ((torch.arange(size[1]) + 0.5) / size[1]).view(1, -1)
    horizon = uniform(1, low=0.4, high=0.7)
    sky = uniform(3, 1, 1, low=0.5) * (1 - 0.4 * y)
    ground = uniform(3, 1, 1, high=0.5) * (0.8 + 0.2 * torch.sin(40 * y + 6 * x))
    scene = torch.where(y < horizon, sky, ground).expand(3, *size).clone()
    for _ in range(3):
        center_y, center_x, radius = uniform(1), uniform(1), uniform(1, low=0.08, high=0.2)
        inside = (y - center_y) ** 2 + (x - center_x) ** 2 < radius**2
        scene = torch.where(inside, uniform(3, 1, 1), scene)
    return (scene * 255).round().clamp(0, 255).to(torch.uint8)


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}_{position:03d}.png" for position in range(count)]
