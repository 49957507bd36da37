"""CDC (Ojha et al. 2021, arXiv 2104.06820): few-shot adaptation by cross-domain correspondence."""

import copy
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from core.types import ImageSize, NonNegativeFloat, PositiveInt
from modules.losses.relational import distance_consistency
from modules.networks.equalized import EqualConv
from modules.tgan import TGAN

HEADS = 4


class CDC(TGAN):
    """TGAN that keeps the source's similarities between samples, and classifies whole images only around a few anchors.

    Every `subspace_freq`-th iteration latents lie near one of the anchors, and the discriminator sees whole images; in all
    others latents are free, and it sees patches: one of four taps of its trunk with a head of its own.

    Args:
        num_anchors: fixed latents, in the paper as many as there are target images.
        weight_cdc: of the distance consistency.
        subspace_freq, subspace_std: iterations between two of whole images; spread around an anchor.
        patch_taps: number of taps to choose from, 1 to 4; 1 is the one with the smallest patches.
        relational_samples: N, latents whose similarities are compared; those of fewer than three are constant.
        settings: see `TGAN`.
    """

    needs_discriminator = True

    def __init__(
        self, image_size: ImageSize, num_anchors: PositiveInt = 10, weight_cdc: NonNegativeFloat = 1000.0,
        subspace_freq: PositiveInt = 4, subspace_std: NonNegativeFloat = 0.1,
        patch_taps: Annotated[int, Field(ge=1, le=HEADS)] = 1, relational_samples: Annotated[int, Field(ge=3)] = 4,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(image_size, **settings)

    def _build(self) -> None:
        super()._build()
        net, hp = self.discriminator, self.hparams
        side = min(max(self.image_size[0] // 2, 16), 32)
        # Released code: the four taps with 512 channels and a side of 32 or 16 pixels; here: the same at any size.
        names = [name for name in net.tap_names if net.tap_shape(name)[1] in (side, side // 2)]
        self.taps = [name for name in names if not (net.tap_shape(name)[1] == side and name == f"{2 * side}.conv1")][:HEADS]
        self.heads = nn.ModuleList(EqualConv(net.tap_shape(name)[0], 1, 3) for name in self.taps)
        self.source_generator = copy.deepcopy(self.generator)
        self.register_buffer("anchors", torch.zeros(hp.num_anchors, hp.z_dim))

    def frozen(self) -> list[nn.Module]:
        return [self.source_generator]

    def trained_d(self) -> list[nn.Parameter]:
        return [*super().trained_d(), *self.heads.parameters()]

    def enter_stage(self, stage: int) -> None:
        self.source_generator.load_state_dict(self.generator.state_dict())
        self.anchors.copy_(torch.randn(self.anchors.shape, generator=self.random_stream("anchors", shared=True)))

    @property
    def whole_images(self) -> bool:
        """True in iterations in which the discriminator classifies whole images, near the anchors."""
        return self.iteration % self.hparams.subspace_freq == 0

    def latents(self, num_images: int) -> Tensor:
        if not self.whole_images:
            return super().latents(num_images)
        picks = torch.randint(len(self.anchors), (num_images,))
        z = self.anchors[picks.to(self.device)]
        z = z + self.hparams.subspace_std * torch.randn_like(z)
        return self.generator.broadcast(self.generator.mapping(z))

    def discriminate(self, images: Tensor) -> Tensor:
        if self.whole_images:
            return super().discriminate(images)
        choices = min(self.hparams.patch_taps, len(self.taps))
        index = int(torch.randint(choices, (), generator=self.random_stream("taps", shared=True)))
        tap = self.taps[index]
        return self.heads[index](self.discriminator(self.augment(images), stop_after=tap).taps[tap])

    def generator_terms(self) -> dict[str, Tensor]:
        hp = self.hparams
        if hp.weight_cdc == 0:
            return {}
        num_images, stream = hp.relational_samples, self.random_stream("layers", shared=True)
        layers = torch.randint(1, self.generator.num_convs, (num_images,), generator=stream).tolist()
        source, target = self.features(self.relational_latents(num_images), set(layers))
        pairs = ([features[layer] for layer in layers] for features in (source, target))
        return {"cdc": hp.weight_cdc * distance_consistency(*pairs)}

    def relational_latents(self, num_images: int) -> Tensor:
        """z [N, z_dim] from a stream of their own, different on every rank."""
        return torch.randn(num_images, self.generator.z_dim, generator=self.random_stream("relations")).to(self.device)

    def features(self, z: Tensor, layers: set[int]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Activations of the source generator, without gradient, and of the adapted one, with the same noise inputs."""
        # Released code: noise of its own in each pass; here: shared, so that equal weights have a loss of 0.
        noise = "const" if self.hparams.noise else None
        with torch.no_grad():
            net = self.source_generator
            source = net.synthesis(net.broadcast(net.mapping(z)), noise, layers)
        net = self.generator
        target = net.synthesis(net.broadcast(net.mapping(z)), noise, layers)
        return source.features, target.features
