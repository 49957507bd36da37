"""Self-Conditioned GAN (Liu et al. 2020, arXiv 2006.10728): classes are clusters of the discriminator's own features."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import UserError
from core.types import Betas, ImageSize, Node, PositiveFloat, PositiveInt
from modules.conditions import Clusters
from modules.losses.adversarial import nonsaturating_d, nonsaturating_g
from modules.networks.resnet import DiscriminatorOutput, check_widths
from modules.sngan import SNGAN

PUBLISHED = {32: ([512, 256, 128, 64], [64, 128, 256, 512], 3)}
SLOPE = 0.1
CLUSTERS = {"class_path": "modules.conditions.Clusters"}


class TransposedGenerator(nn.Module):
    """z beside a normalized embedding of the class; transposed convolutions with plain batch norm from 4×4 on."""

    def __init__(self, z_dim: int, channels: list[int], classes: int, embedding: int) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(classes, embedding, bias=False), Normalize())
        nn.init.normal_(self.embedding[0].weight)  # as `nn.Embedding`
        self.linear = nn.Linear(z_dim + embedding, 16 * channels[0])
        pairs = zip(channels, channels[1:], strict=False)
        blocks = [[nn.ConvTranspose2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.ReLU()] for a, b in pairs]
        self.blocks = nn.Sequential(*(layer for block in blocks for layer in block))
        self.conv = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        features = self.linear(torch.cat([z, codes], 1)).unflatten(1, (-1, 4, 4))
        return self.conv(self.blocks(features)).tanh()


class Normalize(nn.Module):
    """Rows of length 1."""

    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=1)


class MaskedDiscriminator(nn.Module):
    """Plain convolutions; one logit for each class, of which the one of the image's class counts."""

    def __init__(self, side: int, channels: list[int], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, padding=1), nn.LeakyReLU(SLOPE)]
        self.blocks = nn.ModuleList()
        for inputs, outputs in zip(channels, channels[1:], strict=False):
            layers += [nn.Conv2d(inputs, inputs, 4, 2, 1), nn.LeakyReLU(SLOPE)]
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(SLOPE)]
            self.blocks.append(nn.Sequential(*layers))
            layers = []
        self.linear = nn.Linear(channels[-1] * (side >> (len(channels) - 1)) ** 2, classes)

    def features(self, images: Tensor) -> Tensor:
        """The last activations, flattened."""
        for block in self.blocks:
            images = block(images)
        return images.flatten(1)

    def forward(self, images: Tensor, vectors: Tensor) -> DiscriminatorOutput:
        features = self.features(images)
        logits = (self.linear(features) * vectors).sum(1)
        return DiscriminatorOutput(logits, logits, torch.zeros_like(logits), features)


class SelfCondGAN(SNGAN):
    """Plain convolutional networks with logistic loss, conditioned on clusters of the discriminator's features, which are found
    anew during training. Both steps of an iteration have the same fakes, of the clusters of its reals.

    Args:
        condition: `modules.conditions.Clusters` with its settings.
        class_embedding: length of the generator's embedding of a cluster.
        g_channels: at 4×4 and after each block; `d_channels`: of the first convolution and after each block, which halves the
            side; null: as published for 32 pixels.
        settings: see `SNGAN`; of use are those of the average, the augmentation and the source.
    """

    def __init__(
        self, image_size: ImageSize, condition: Node = CLUSTERS, class_embedding: PositiveInt = 256,
        lr_g: PositiveFloat = 1e-4, lr_d: PositiveFloat = 1e-4, betas: Betas = (0.0, 0.99), n_dis: PositiveInt = 1,
        **settings: Any,
    ) -> None:  # fmt: skip
        if n_dis != 1:
            raise UserError(f"n_dis is {n_dis}; it has to be 1, since both steps use the same fakes")
        super().__init__(image_size, condition=condition, lr_g=lr_g, lr_d=lr_d, betas=betas, n_dis=1, **settings)

    def networks(self, side: int) -> tuple[nn.Module, nn.Module]:
        hp = self.hparams
        if self.condition is None or not self.condition.one_hot:
            name = hp.condition and hp.condition["class_path"]
            raise UserError(f"module.condition is {name}; expected a condition of classes, such as modules.conditions.Clusters")
        g_channels, d_channels, _ = self.widths(side, PUBLISHED)
        check_widths("g_channels", g_channels, side.bit_length() - 2, f"at 4×4 and at each size up to {side}")
        generator = TransposedGenerator(hp.z_dim, g_channels, self.condition.dim, hp.class_embedding)
        return generator, MaskedDiscriminator(side, d_channels, self.condition.dim)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        g_opt, d_opt = optimizers = self.current_optimizers()
        self._set_learning_rates(optimizers)
        self.condition.before_iteration(self)
        reals, vectors = batch["image"], self.condition.of_batch(batch)
        fakes = self.fakes(len(reals), vectors)

        with self.toggled_optimizer(d_opt):
            real, fake = self.discriminate(reals, vectors).logits, self.discriminate(fakes.detach(), vectors).logits
            self.optimize(d_opt, d_loss := nonsaturating_d(real, fake))
        ada = self.update_augmentation(real)

        with self.toggled_optimizer(g_opt):
            self.optimize(g_opt, g_loss := nonsaturating_g(self.discriminate(fakes, vectors).logits))
        values = {"g_loss": g_loss, "d_loss": d_loss, "real_logits": real.mean(), "fake_logits": fake.mean(), **ada}
        if isinstance(self.condition, Clusters):
            values["cluster_agreement"] = self.condition.agreement
        self.log_training(values, len(reals))
