"""The augmentations that configurations name."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from modules.augment.ada import ADA
from modules.augment.diffaugment import DiffAugment

Augmentation = Literal["none", "diffaugment", "ada"]


def named_augmentation(name: Augmentation, policy: str, ada_kimg: float) -> nn.Module:
    """The augmentation with the settings that are its own: `policy` of DiffAugment, `ada_kimg` of ADA."""
    if name == "none":
        return nn.Identity()
    return DiffAugment(policy) if name == "diffaugment" else ADA(kimg=ada_kimg)


def update_augmentation(
    augment: nn.Module, real_logits: Tensor, mean: Callable[[Tensor], Tensor], ranks: int
) -> dict[str, Tensor]:
    """Of ADA, see `ADA.update`: what is logged of it. Others have no state."""
    if not isinstance(augment, ADA):
        return {}
    augment.update(real_logits, mean, ranks)
    return {"ada_p": augment.p, "ada_overfitting": augment.overfitting}
