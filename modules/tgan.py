"""TransferGAN (Wang et al. 2018, arXiv 1805.01677) on StyleGAN2: fine-tune generator and discriminator on the target."""

from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from core.errors import UserError
from core.types import ImageSize
from modules.stylegan2 import StyleGAN2


class TGAN(StyleGAN2):
    """Continues the adversarial training of a source model on a few target images. Base of all other adaptations.

    Generator, average and discriminator begin as the source's; the optimizers begin anew. Training and sampling are those of
    `StyleGAN2`, whose further keywords apply; the networks have to be as large as the source's.

    Args:
        image_size: of source and target.
        source_from: with what the generator begins: raw, the source's trained weights, as published; or ema, their average,
            which is what samples are made of. A file with one of them has it serve as both.
        source_checkpoint: of a `StyleGAN2`; needed to begin a training, not to resume or evaluate one.

    Attributes:
        needs_discriminator: whether a source without discriminator is refused; otherwise a new one begins to learn.
    """

    needs_discriminator = False

    def __init__(self, image_size: ImageSize, source_from: Literal["raw", "ema"] = "raw", **settings: Any) -> None:
        super().__init__(image_size, **settings)

    def start_from_source(self) -> tuple[str, Any, str] | None:
        if not self.hparams.source_checkpoint:
            raise UserError(f"module.source_checkpoint: {type(self).__name__} adapts a source model; give its checkpoint")
        return super().start_from_source()

    def convert(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The networks of a source file; everything else keeps its initial value."""
        state = self.source_state(checkpoint)
        if self.hparams.source_from == "ema":
            average = {key: value for key, value in state.items() if key.startswith("generator_ema.")}
            state |= {key.replace("generator_ema.", "generator.", 1): value for key, value in average.items()}
        ready = self.initial_state(state)
        if not any(key.startswith("discriminator.") for key in state):
            message = f"the source has no discriminator, which {type(self).__name__}"
            if self.needs_discriminator:
                raise UserError(f"{message} needs; convert the source with its discriminator")
            rank_zero_warn(f"{message} then learns from random weights: the generator usually collapses within 100 iterations")
        return ready

    def initial_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This module's state dict with the source's networks in it."""
        return self.state_dict() | dict(state)
