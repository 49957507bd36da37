"""MineGAN (Wang et al. 2020, arXiv 1912.05270): mines the latents of a source generator that suit the target."""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam

from core.errors import UserError
from core.types import ImageSize, PositiveInt
from modules.tgan import TGAN


class Miner(nn.Module):
    """z to z: two linear layers with ReLU between, or with `residual` z plus these, the last one zero at first."""

    def __init__(self, dim: int, residual: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.residual = residual
        if residual:
            nn.init.zeros_(self.layers[2].weight)
            nn.init.zeros_(self.layers[2].bias)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.layers(z) if self.residual else self.layers(z)


class MineGAN(TGAN):
    """TGAN with a miner before the mapping network, in two stages: first miner and discriminator train, then all parts.

    Paper's code: the miner's gradients are never cleared; here: they are. Path length only in the second stage.

    Args:
        iterations: of both stages together.
        miner_iterations: of the first stage, at most half of all.
        miner_init: default, as in the released code, or residual: begins exactly at the source.
        settings: see `TGAN`; `epochs` is not used.
    """

    needs_discriminator = True
    duration_settings = ("iterations", "miner_iterations")

    def __init__(
        self, image_size: ImageSize, iterations: PositiveInt = 2000, miner_iterations: PositiveInt = 1000,
        miner_init: Literal["default", "residual"] = "default", epochs: None = None, **settings: Any,
    ) -> None:  # fmt: skip
        self._miner_iterations = miner_iterations
        super().__init__(image_size, epochs=epochs, iterations=iterations, **settings)

    def stage_iterations(self, iterations: int | None) -> list[int]:
        if iterations is None or iterations < 2:
            raise UserError(f"module.iterations is {iterations}; MineGAN needs at least one for each of its two stages")
        first = min(self._miner_iterations, iterations // 2)
        return [first, iterations - first]

    def _build(self) -> None:
        super()._build()
        self.miner = Miner(self.hparams.z_dim, self.hparams.miner_init == "residual")

    def stage_label(self, stage: int) -> str:
        return ("miner", "all parts")[stage]

    def stage_modules(self, stage: int) -> list[nn.Module]:
        return [self.miner, self.discriminator, *([self.generator] if stage else [])]

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        generator, discriminator = super().stage_optimizers(stage)
        if stage == 0:
            generator = Adam(self.miner.parameters(), **{key: generator.defaults[key] for key in ("lr", "betas", "eps")})
        return [generator, discriminator]

    def enter_stage(self, stage: int) -> None:
        """The second stage's optimizers take over the first one's moments of miner and discriminator."""
        super().enter_stage(stage)
        if stage == 1:
            optimizers = self.trainer.optimizers
            for former, optimizer in zip(optimizers[:2], optimizers[2:], strict=True):
                optimizer.state.update({parameter: copy.deepcopy(state) for parameter, state in former.state.items()})

    def trained_g(self) -> list[nn.Parameter]:
        return [*super().trained_g(), *self.miner.parameters()]

    def phases(self) -> list[Any]:
        return [phase for phase in super().phases() if self.stage or phase.name != "path"]

    def before_mapping(self, z: Tensor) -> Tensor:
        return self.miner(z)
