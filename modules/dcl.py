"""DCL (Zhao et al. 2022, arXiv 2203.04121): few-shot adaptation by dual contrastive learning."""

from typing import Any

import torch
from torch import Tensor

from core.types import ImageSize, NonNegativeFloat
from modules.cdc import CDC
from modules.losses.relational import contrastive_loss

TEMPERATURE = 0.07


class DCL(CDC):
    """CDC's two levels of realism, with contrastive terms in place of the distance consistency: each sample shall be nearest
    to the source's sample of the same latent, in a layer of the generator (Eq. 6), and in a layer of the discriminator nearer
    to it than to the target images (Eq. 7).

    Args:
        weight_generator, weight_discriminator: λ1 and λ2 of the two terms.
        train_encoder: the discriminator, too, learns to keep a sample near the source's and away from the target images (the
            paper does not say who minimizes Eq. 7): the term then is small while it tells these apart, and the generator is
            free to adapt. Else the discriminator is a fixed encoder in this term, and only the generator minimizes it.
        settings: see `CDC`; `weight_cdc` is not used.
    """

    def __init__(
        self, image_size: ImageSize, weight_generator: NonNegativeFloat = 2.0, weight_discriminator: NonNegativeFloat = 0.5,
        train_encoder: bool = False, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(image_size, **settings)

    def generator_terms(self) -> dict[str, Tensor]:
        hp, terms = self.hparams, {}
        if hp.weight_generator == 0 and hp.weight_discriminator == 0:
            return terms
        stream = self.random_stream("layers", shared=True)
        layer = int(torch.randint(1, self.generator.num_convs, (), generator=stream))
        z = self.relational_latents(hp.relational_samples)
        noise = "const" if hp.noise else None
        with torch.no_grad():
            source = self.source_generator(z, noise, features=(layer,))
        target = self.generator(z, noise, features=(layer,))
        if hp.weight_generator:
            loss = contrastive_loss(target.features[layer], source.features[layer], temperature=TEMPERATURE)
            terms["dcl_generator"] = hp.weight_generator * loss
        if hp.weight_discriminator:
            with torch.no_grad():
                encoded = self._encoded(source.images, stream)
            loss = self._discriminator_term(target.images, *encoded)
            terms["dcl_discriminator"] = hp.weight_discriminator * loss
        return terms

    def discriminator_terms(self) -> dict[str, Tensor]:
        hp = self.hparams
        if not (hp.train_encoder and hp.weight_discriminator):
            return {}
        stream, z = self.random_stream("encoder", shared=True), self.relational_latents(hp.relational_samples)
        noise = "const" if hp.noise else None
        with torch.no_grad():
            source, target = (net(z, noise).images for net in (self.source_generator, self.generator))
        loss = self._discriminator_term(target, *self._encoded(source, stream))
        return {"dcl_encoder": hp.weight_discriminator * loss}

    def _encoded(self, source: Tensor, stream: torch.Generator) -> tuple[str, Tensor, Tensor]:
        """A tap of those that the discriminator reaches in this iteration, and its features of the source's samples and of the
        target images."""
        net = self.discriminator
        reached = net.tap_names
        if not self.whole_images:
            reached = reached[: reached.index(self.taps[min(self.hparams.patch_taps, len(self.taps)) - 1]) + 1]
        tap = reached[int(torch.randint(len(reached), (), generator=stream))]
        reals = self.training_sets["image"].originals()
        images = torch.stack([reals[i] for i in range(min(len(reals), 16))]).to(self.device)
        return tap, *(net(part, stop_after=tap).taps[tap] for part in (source, images))

    def _discriminator_term(self, target: Tensor, tap: str, positives: Tensor, negatives: Tensor) -> Tensor:
        """Eq. 7, on images without augmentation."""
        return contrastive_loss(self.discriminator(target, stop_after=tap).taps[tap], positives, negatives, TEMPERATURE)
