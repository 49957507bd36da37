"""The augmentations that configurations name."""

from typing import Literal

from torch import nn

from modules.augment.ada import ADA
from modules.augment.diffaugment import DiffAugment

Augmentation = Literal["none", "diffaugment", "ada"]


def named_augmentation(name: Augmentation, policy: str, ada_kimg: float) -> nn.Module:
    """The augmentation with the settings that are its own: `policy` of DiffAugment, `ada_kimg` of ADA."""
    if name == "none":
        return nn.Identity()
    return DiffAugment(policy) if name == "diffaugment" else ADA(kimg=ada_kimg)
