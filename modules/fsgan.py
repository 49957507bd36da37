"""FSGAN (Robb et al. 2020, arXiv 2010.11943): adaptation of the singular values of a source model's weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from modules.tgan import TGAN


class SingularValues(nn.Module):
    """Parametrization of a weight as U diag(λ σ) Vᵀ of the matrix [rest, outputs]; only λ, 1 at first, trains."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rank = min(len(weight), weight[0].numel())
        self.multipliers = nn.Parameter(torch.ones(rank))
        self.register_buffer("left", torch.zeros(len(weight), rank))
        self.register_buffer("right", torch.zeros(rank, weight[0].numel()))

    @torch.no_grad()
    def decompose(self, weight: Tensor) -> None:
        """Factors of a weight, in float64 on the CPU: other devices differ in signs and last bits."""
        left, values, right = torch.linalg.svd(weight.detach().flatten(1).double().cpu(), full_matrices=False)
        self.left.copy_(left * values)
        self.right.copy_(right)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return ((self.left * self.multipliers) @ self.right).view_as(weight)


class FSGAN(TGAN):
    """TGAN that trains only factors of singular values: of the mapping layers, of the synthesis' main convolutions, and of the
    discriminator's main convolutions and linear layers. 15,745 numbers at 256 pixels.

    Args:
        settings: see `TGAN`.
    """

    needs_discriminator = True

    def initial_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The networks of the source. The average begins as the generator, since it has its singular vectors."""
        state = {key: value for key, value in state.items() if not key.startswith("generator_ema.")}
        state |= {key.replace("generator.", "generator_ema.", 1): state[key] for key in state if key.startswith("generator.")}
        initial = self.state_dict()
        moved = {key.replace(".weight", ".parametrizations.weight.original"): key for key in state}
        return initial | {key if key in initial else plain: state[plain] for key, plain in moved.items()}

    def _build(self) -> None:
        super()._build()
        for net in (self.generator, self.generator_ema):
            self._parametrize([*net.mapping_layers, *(conv.conv for conv in net.convs)])
        d = self.discriminator
        self._parametrize([*(conv for block in d.blocks for conv in (block.conv1, block.conv2)), d.conv, d.linear, d.output])

    @staticmethod
    def _parametrize(layers: list[nn.Module]) -> None:
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", SingularValues(layer.weight), unsafe=True)

    def parametrizations(self, net: nn.Module) -> list[SingularValues]:
        """The parametrizations of a network, in order."""
        return [module for module in net.modules() if isinstance(module, SingularValues)]

    def enter_stage(self, stage: int) -> None:
        """Decomposes the source's weights."""
        for net in (self.generator, self.generator_ema, self.discriminator):
            for module in net.modules():
                if parametrize.is_parametrized(module, "weight"):
                    part = module.parametrizations.weight
                    part[0].decompose(part.original)

    def trained_g(self) -> list[nn.Parameter]:
        return [part.multipliers for part in self.parametrizations(self.generator)]

    def trained_d(self) -> list[nn.Parameter]:
        return [part.multipliers for part in self.parametrizations(self.discriminator)]
