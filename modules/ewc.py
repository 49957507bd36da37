"""EWC (Li et al. 2020, arXiv 2012.02780): few-shot adaptation with elastic weight consolidation."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from core.types import ImageSize, NonNegativeFloat, PositiveInt
from modules.tgan import TGAN


class EWC(TGAN):
    """TGAN with the penalty λ Σ F (θ - θ_s)² on the generator: F is the Fisher information of the source's weights for
    log σ(D_s(G_s(z))), the mean of squared gradients of single samples.

    Args:
        weight_ewc: λ; the paper's 5e8 is for raw Fisher information at 256 pixels.
        fisher_samples: latents for the estimate.
        fisher_scale: raw, or mean1: divided by its mean, which makes λ independent of the source discriminator's scale.
        settings: see `TGAN`.
    """

    needs_discriminator = True

    def __init__(
        self, image_size: ImageSize, weight_ewc: NonNegativeFloat = 5e8, fisher_samples: PositiveInt = 1000,
        fisher_scale: Literal["raw", "mean1"] = "raw", **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(image_size, **settings)

    def _build(self) -> None:
        super()._build()
        for index, parameter in enumerate(self.generator.parameters()):
            self.register_buffer(f"fisher_{index}", torch.zeros_like(parameter))
            self.register_buffer(f"anchor_{index}", torch.zeros_like(parameter))

    def enter_stage(self, stage: int) -> None:
        """Fisher information and the weights to stay near, both of the source."""
        parameters = list(self.generator.parameters())
        squares = self.fisher_information(self.hparams.fisher_samples)
        scale = 1.0
        if self.hparams.fisher_scale == "mean1":
            scale = sum(float(square.sum()) for square in squares) / sum(square.numel() for square in squares)
        for index, (parameter, square) in enumerate(zip(parameters, squares, strict=True)):
            self.get_buffer(f"fisher_{index}").copy_(square / scale)
            self.get_buffer(f"anchor_{index}").copy_(parameter.detach())

    def fisher_information(self, samples: int) -> list[Tensor]:
        """Mean of the squared gradients of log σ(D(G(z))) by the generator's parameters, one latent at a time."""
        net, parameters = self.generator, list(self.generator.parameters())
        states = [parameter.requires_grad for parameter in parameters]
        squares = [torch.zeros_like(parameter) for parameter in parameters]
        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            for _ in range(samples):
                z = torch.randn(1, net.z_dim, generator=generator).to(self.device)
                logits = self.discriminator(net(z, None).images).logits
                gradients = torch.autograd.grad(F.logsigmoid(logits).sum(), parameters, allow_unused=True)
                for square, gradient in zip(squares, gradients, strict=True):
                    if gradient is not None:
                        square += gradient.square() / samples
        for parameter, state in zip(parameters, states, strict=True):
            parameter.requires_grad_(state)
        return squares

    def generator_terms(self) -> dict[str, Tensor]:
        if self.hparams.weight_ewc == 0:
            return {}
        penalty = sum(
            (self.get_buffer(f"fisher_{i}") * (parameter - self.get_buffer(f"anchor_{i}")).square()).sum()
            for i, parameter in enumerate(self.generator.parameters())
        )
        return {"ewc": self.hparams.weight_ewc * penalty}
