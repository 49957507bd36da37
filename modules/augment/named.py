"""The augmentations that configurations name."""

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


class Augmented:
    """Base of methods with `augment`, one of `named_augmentation`."""

    augment: nn.Module

    def update_augmentation(self, real_logits: Tensor) -> dict[str, Tensor]:
        """After a discriminator's step: moves ADA's p, and gives what is logged of it. Others have no state."""
        if not isinstance(self.augment, ADA):
            return {}
        self.augment.update(real_logits, self.mean_over_ranks, self.trainer.world_size)
        return {"ada_p": self.augment.p, "ada_overfitting": self.augment.overfitting}
