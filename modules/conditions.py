"""Conditions: what a conditional generator receives about an image, as one vector for each image.

A method takes `condition: {class_path: …, …}` or null, and builds it by `core.nodes.build_node`. A condition is a part of
the module: its buffers are in checkpoints.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from core.errors import UserError
from core.types import PositiveInt
from modules.ops import noise


class Condition(nn.Module):
    """Base of conditions.

    Attributes:
        dim: length of the vectors, which a discriminator receives.
        embedding: length of the codes that a generator receives, a linear function of vectors that it learns; None: codes are
            the vectors.
        one_hot: whether vectors are one-hot.
        paired: whether fakes in a discriminator's step have the vectors of its real images.
    """

    dim: int
    embedding: int | None = None
    one_hot = False
    paired = False

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        """UserError if these image sets do not give what the condition needs."""

    def prepare(self, module: nn.Module, sets: Mapping[str, Dataset]) -> None:
        """Called when training begins, not on resume: computes what the condition stores of the images, equal on all ranks."""

    def of_batch(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Vectors [N, dim] of a training batch."""
        raise NotImplementedError

    def of_fakes(self, number: int, generator: torch.Generator) -> Tensor:
        """Vectors [N, dim] of fakes in training, on the CPU or this module's device."""
        raise NotImplementedError

    def draw(self, num_images: int, device: torch.device | None = None) -> Tensor:
        """Vectors [N, dim] to sample with."""
        raise NotImplementedError

    def draw_codes(self, num_images: int, embed: nn.Module) -> Tensor:
        """Codes to sample with; `embed` is the generator's function of vectors."""
        return embed(self.draw(num_images, next(embed.parameters(), torch.empty(0)).device))

    def refresh(self, embed: nn.Module) -> None:
        """Called after each epoch with the sampling generator's function of vectors; draws nothing from the global state."""


class Labels(Condition):
    """Class labels as one-hot vectors; sampling draws classes with equal chances.

    Args:
        num_classes: number of classes of `datamodule.labels`.
    """

    one_hot = True

    def __init__(self, num_classes: PositiveInt) -> None:
        super().__init__()
        self.dim = num_classes

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        labels = getattr(sets["image"], "labels", None)
        if labels is None:
            raise UserError("module.condition needs class labels: set datamodule.labels (folder, or FILE.csv:COLUMN)")
        if (num_classes := int(labels.max()) + 1) > self.dim:
            raise UserError(f"module.condition.num_classes is {self.dim}, but the images have {num_classes} classes")
        if single := (labels.bincount() == 1).nonzero().flatten().tolist():
            raise UserError(f"datamodule.labels: class {single[0]} (counted from 0) has one image; at least two are needed")

    def of_batch(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.of_labels(batch["label"])

    def of_labels(self, labels: Tensor) -> Tensor:
        """One-hot vectors [N, num_classes] of class indices [N]."""
        return F.one_hot(labels, self.dim).float()

    def of_fakes(self, number: int, generator: torch.Generator) -> Tensor:
        return self.of_labels(torch.randint(0, self.dim, (number,), generator=generator))

    def draw(self, num_images: int, device: torch.device | None = None) -> Tensor:
        return self.of_labels(noise.randint(0, self.dim, (num_images,), device))
