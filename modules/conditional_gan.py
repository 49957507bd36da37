"""Base of GANs whose networks take a condition (`modules.conditions`): SNGAN and StyleGAN2 with their variants."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import UserError
from core.nodes import build_node
from core.types import Node, NonNegativeInt, PositiveInt
from modules.augment.named import Augmented
from modules.base import sampling_mode
from modules.conditions import Condition, DataInstancePrior
from modules.ops import noise
from modules.ops.images import resize
from modules.staged import StagedModule

MAX_MATCHED = 100  # images of a diagnostic


class ConditionalGAN(Augmented, StagedModule):
    """Codes of the condition for samples, classes chosen by number, and DISP's rendering of images and diagnostics.

    A method has an average `generator_ema` whose `embedding` gives codes of vectors, a `discriminator` with `terms`, and
    `hparams.z_dim`; it defines `with_codes` and `decode`.
    """

    condition: Condition | None

    def build_condition(self, node: Node | None) -> None:
        self.condition = node and build_node(node)
        if isinstance(self.condition, DataInstancePrior):
            self.inject = self.from_image  # the capability `Injects`, which the condition gives

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        super().check_data(sets)
        if getattr(sets["image"], "labels", None) is not None and not (self.condition and self.condition.by_label):
            raise UserError(f"datamodule.labels: {type(self).__name__} has no classes; set it to null, or module.condition")

    def codes(self, num_images: int, labels: Sequence[int] | None = None) -> Tensor | None:
        """Codes [N, code dim] to sample with, each of one of the `labels` at random where they are given; None without a
        condition."""
        embed, condition = getattr(self.generator_ema, "embedding", None), self.condition
        if labels is not None:
            if condition is None or not condition.one_hot:
                raise UserError(f"labels: this {type(self).__name__} was not trained with classes (module.condition)")
            if not labels:
                raise UserError("labels is []; expected at least one class")
            if wrong := [label for label in labels if not 0 <= label < condition.dim]:
                raise UserError(f"labels: class {wrong[0]} is unknown; allowed are 0 to {condition.dim - 1}")
            picks = noise.randint(0, len(labels), (num_images,)).tolist()
            rows = torch.eye(condition.dim, device=self.device)[[labels[pick] for pick in picks]]
            return embed(rows)
        return None if condition is None else condition.draw_codes(num_images, embed, self.device)

    def with_codes(self, z: Tensor, codes: Tensor | None) -> Tensor:
        """Latents, as `decode` takes them, of z [N, z_dim] and the codes of a condition."""
        raise NotImplementedError

    @torch.no_grad()
    def from_image(
        self, images: Tensor, scale: Literal[0] = 0, variants: PositiveInt = 1, neighbors: NonNegativeInt = 0
    ) -> Tensor:
        """DISP's semantic diffusion: images with the priors of edited images or sketches [N, 3, H, W], `variants` of each with
        their own z one after the other, at the size of the inputs. What they share is meaning, not pixels.

        With `neighbors` the prior is the mean of so many nearest ones of training images, which helps with inputs that are
        unlike all of them.
        """
        codes = self.generator_ema.embedding(self.condition.of_images(images, neighbors)).repeat_interleave(variants, 0)
        z = noise.randn(len(codes), self.hparams.z_dim, device=self.device)
        return resize(self.decode(self.with_codes(z, codes)), images.shape[-2:])

    @torch.no_grad()
    def diagnostics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        """The effect of priors: how often the discriminator finds the prior of an image among all (by chance 1 / N), root mean
        squares of the two terms of its logits, and how much pixels change with the prior and with z."""
        prior = self.condition
        if not isinstance(prior, DataInstancePrior) or not len(prior.bank):
            return {}
        num_images = min(len(prior.bank), len(sets["image"]), MAX_MATCHED)
        images = torch.stack([sets["image"][i] for i in range(num_images)]).to(self.device)

        def spread(z: Tensor, codes: Tensor) -> Tensor:
            return self.decode(self.with_codes(z.expand(num_images, -1), codes.expand(num_images, -1))).std(0).mean()

        with sampling_mode(self, 0):
            rows = prior.bank.rows[:num_images]
            linear, projection = self.discriminator.terms(images, rows)
            z = torch.randn(num_images, self.hparams.z_dim, device=self.device)
            codes = self.generator_ema.embedding(rows)
            by_prior, by_z = spread(z[:1], codes), torch.stack([spread(z, code) for code in codes[:4]]).mean()
        matches = projection.argmax(1) == torch.arange(num_images, device=self.device)
        values = {
            "prior_match": matches.float().mean(),
            "prior_match_by_chance": 1 / num_images,
            "logit_linear_rms": linear.square().mean().sqrt(),
            "logit_projection_rms": projection.diagonal().square().mean().sqrt(),
            "pixel_spread_over_priors": by_prior,
            "pixel_spread_over_z": by_z,
        }
        return {name: float(value) for name, value in values.items()}
