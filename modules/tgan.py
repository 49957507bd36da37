"""TransferGAN (Wang et al. 2018, arXiv 1805.01677) on StyleGAN2: fine-tune generator and discriminator on the target."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from core.errors import UserError
from modules.stylegan2 import StyleGAN2


class TGAN(StyleGAN2):
    """Continues the adversarial training of a source model on a few target images. Base of all other adaptations.

    Generator, average and discriminator begin as the source's; the optimizers begin anew. Training and sampling are those of
    `StyleGAN2`, whose further keywords apply; the networks have to be as large as the source's.

    Paper: the generator begins as the source's raw weights; here: as their average, which is what people look at.

    Args:
        image_size: of source and target.
        source_checkpoint: of a `StyleGAN2`; needed to begin a training, not to resume or evaluate one.
    """

    def setup(self, stage: str) -> None:
        fresh = stage == "fit" and self._stored_optimizers is None and self.trainer.ckpt_path is None
        if fresh and "source_checkpoint" in self.hparams and not self.hparams.source_checkpoint:
            raise UserError(f"module.source_checkpoint: {type(self).__name__} adapts a source model; give its checkpoint")
        super().setup(stage)

    def convert(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
        state = dict(super().convert(checkpoint))
        for key in [key for key in state if key.startswith("generator_ema.")]:
            state["generator." + key.removeprefix("generator_ema.")] = state[key]
        return state
