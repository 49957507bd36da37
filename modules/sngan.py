"""SNGAN (Miyato et al. 2018, arXiv 1802.05957) for small data: conditions, augmentation and transfer are its arguments."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import Dataset

from core.errors import UserError
from core.types import BelowOne, Betas, ImageSize, Node, NonNegativeInt, PathStr, PositiveFloat, PositiveInt, Probability
from modules.augment.named import Augmentation, named_augmentation
from modules.base import sampling_mode
from modules.conditional_gan import ConditionalGAN
from modules.conditions import Clusters
from modules.losses.adversarial import hinge_d, nonsaturating_d, nonsaturating_g, wasserstein_g
from modules.networks.resnet import DiscriminatorOutput, ResNetDiscriminator, ResNetGenerator, check_widths
from modules.ops import noise
from modules.ops.standing import standing_statistics

# Published widths of the generator at 4×4 and after each block, of the discriminator's blocks, and how many of these halve.
PUBLISHED = {
    32: ([256] * 4, [128] * 4, 2),
    64: ([1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024], 5),
    128: ([1024, 1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024, 1024], 5),
}
LOSSES = {"hinge": (hinge_d, wasserstein_g), "logistic": (nonsaturating_d, nonsaturating_g)}
STANDING_BATCH = 64  # samples of one batch for the standing statistics
Vectors = Tensor | None


class SNGAN(ConditionalGAN):
    """Residual networks, spectral norm in the discriminator, hinge loss.

    An iteration: `n_dis` discriminator steps, each with fresh reals and fakes, then a generator step. Every row of the tables
    of TransferGAN, FreezeD, DiffAugment, ADA and DISP is a setting: `source_checkpoint`, `freeze_blocks`, `augment`,
    `condition`.

    Paper: samples by the raw generator; here: by an average of it (`ema_decay: 0` is the raw one), whose batch norm has
    statistics of samples, which the average of weights needs.

    Args:
        image_size: [s, s], 4 times a power of two.
        epochs, iterations: how long the training takes; one of the two.
        condition: null, or a node of `modules.conditions`.
        g_channels: of the generator at 4×4 and after each block; null: as published for 32, 64 and 128.
        d_channels, d_down: of the discriminator's blocks, and how many of them halve the side; null: as published.
        n_dis: discriminator steps for each generator step.
        g_batch: images of a generator step, as a multiple of the batch size; published: 2.
        lr_decay: share of the training after which learning rates fall linearly to 0; 1: never.
        ema_decay, ema_start: of the average for each iteration; until iteration `ema_start` it is a copy.
        standing_batches: batches of samples that give the batch norm of the average its statistics after each epoch; 0: it
            has the running statistics of the generator in training.
        augment: of all images that the discriminator sees; `policy` of diffaugment. `ada_kimg` counts those of every
            discriminator step.
        source_checkpoint: weights of the networks to begin with (TransferGAN); what they lack, such as the layers of a
            condition, begins anew.
        freeze_blocks: blocks of the discriminator, counted from the image, that stay as in the source (FreezeD: 3).
    """

    duration_settings = ("epochs", "iterations")
    fixed_size = True
    collapse_advice = "another seed, module.augment=diffaugment, a smaller module.lr_d, more training images"
    joined_batches = False  # whether reals and fakes pass the discriminator as one batch

    def __init__(
        self,
        image_size: ImageSize,
        epochs: PositiveInt | None = None,
        iterations: PositiveInt | None = None,
        condition: Node | None = None,
        z_dim: PositiveInt = 128,
        g_channels: list[PositiveInt] | None = None,
        d_channels: list[PositiveInt] | None = None,
        d_down: PositiveInt | None = None,
        loss: Literal["hinge", "logistic"] = "hinge",
        n_dis: PositiveInt = 5,
        g_batch: PositiveInt = 1,
        lr_g: PositiveFloat = 2e-4,
        lr_d: PositiveFloat = 2e-4,
        betas: Betas = (0.0, 0.9),
        lr_decay: Probability = 1.0,
        ema_decay: BelowOne = 0.0,
        ema_start: NonNegativeInt = 0,
        standing_batches: NonNegativeInt = 0,
        augment: Augmentation = "none",
        policy: str = "color,translation,cutout",
        ada_kimg: PositiveFloat = 500.0,
        source_checkpoint: PathStr | None = None,
        freeze_blocks: NonNegativeInt = 0,
    ) -> None:
        super().__init__(epochs, 1, iterations and [iterations])
        self.save_hyperparameters()
        self._build()

    def _build(self) -> None:
        hp = self.hparams
        self.image_size, self.reals_per_iteration = tuple(hp.image_size), hp.n_dis
        side = self.image_size[0]
        if self.image_size != (side, side) or side < 8 or side & (side - 1):
            raise UserError(f"image_size is {list(hp.image_size)}; {type(self).__name__} makes squares of 8, 16, 32, … pixels")
        self.build_condition(hp.condition)
        self.generator, self.discriminator = self.networks(side)
        if hp.freeze_blocks > len(self.discriminator.blocks):
            raise UserError(f"freeze_blocks is {hp.freeze_blocks}; there are {len(self.discriminator.blocks)} blocks")
        self.augment = named_augmentation(hp.augment, hp.policy, hp.ada_kimg)
        self.add_average("generator_ema", "generator", decay=hp.ema_decay)

    def networks(self, side: int) -> tuple[ResNetGenerator, ResNetDiscriminator]:
        """Generator and discriminator for s×s images."""
        g_channels, d_channels, down = self.widths(side, PUBLISHED)
        generator = ResNetGenerator(side, self.hparams.z_dim, g_channels, **self.conditional)
        return generator, ResNetDiscriminator(d_channels, down, self.condition_dim)

    def widths(self, side: int, published: Mapping[int, tuple]) -> tuple[list[int], list[int], int]:
        """`g_channels`, `d_channels` and `d_down`, as published where they are null."""
        hp, known = self.hparams, published.get(side, (None, None, None))
        values = (hp.g_channels or known[0], hp.d_channels or known[1], hp.d_down or (hp.d_channels and len(hp.d_channels)))
        if None in values[:2]:
            sizes = ", ".join(map(str, published))
            raise UserError(f"g_channels, d_channels: there are published ones for {sizes} pixels only; give them for {side}")
        down = values[2] or known[2]
        check_widths("d_channels", values[1], max(len(values[1]), down), f"at least d_down={down}")
        if side >> down < 1:
            raise UserError(f"d_down is {down}; images of {side} pixels can be halved {side.bit_length() - 1} times")
        return values[0], values[1], down

    @property
    def condition_dim(self) -> int:
        return self.condition.dim if self.condition else 0

    @property
    def conditional(self) -> dict[str, Any]:
        """Arguments of the generator that describe the condition."""
        known = self.condition
        return {"condition": known.dim, "embedding": known.embedding, "one_hot": known.one_hot} if known else {}

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        super().check_data(sets)
        if self.hparams.freeze_blocks and self.hparams.source_checkpoint is None:
            blocks = self.hparams.freeze_blocks
            raise UserError(f"module.freeze_blocks is {blocks}, but module.source_checkpoint is null: random blocks would stay")

    # --- what trains --------------------------------------------------------------------------------------------------

    def frozen(self) -> Iterable[nn.Module]:
        return self.discriminator.blocks[: self.hparams.freeze_blocks]

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        hp, betas = self.hparams, tuple(map(float, self.hparams.betas))
        fixed = {id(parameter) for block in self.frozen() for parameter in block.parameters()}
        trained_d = [p for part in self.discriminator_parts() for p in part.parameters() if id(p) not in fixed]
        return [Adam(self.generator.parameters(), hp.lr_g, betas), Adam(trained_d, hp.lr_d, betas)]

    def discriminator_parts(self) -> list[nn.Module]:
        """Modules that the discriminator's optimizer trains."""
        return [self.discriminator]

    def enter_stage(self, stage: int) -> None:
        self.prepare_sampling()

    # --- the iteration ------------------------------------------------------------------------------------------------

    def fakes(self, num_images: int, vectors: Vectors) -> Tensor:
        """Images in training, of vectors [N, dim] or without."""
        z = torch.randn(num_images, self.hparams.z_dim, device=self.device)
        return self.generator(z, None if vectors is None else self.generator.embedding(vectors))

    def fake_vectors(self, num_images: int) -> Vectors:
        """Vectors of fakes from a stream of their own, so that all other draws are those without a condition."""
        return self.condition and self.condition.of_fakes(num_images, self.random_stream("condition")).to(self.device)

    def discriminate(self, images: Tensor, vectors: Vectors) -> DiscriminatorOutput:
        """The discriminator's output for augmented images."""
        return self.discriminator(self.augment(images), vectors)

    def image_features(self, images: Tensor) -> Tensor:
        """The discriminator's features [N, C] of images, in eval mode: what clusters are made of."""
        with sampling_mode(self.discriminator, 0):
            return self.discriminator.features(images)

    def discriminator_terms(self, reals: Tensor, fakes: Tensor) -> dict[str, Tensor]:
        """Further weighted terms of the discriminator's loss by name."""
        return {}

    def generator_terms(self, fakes: Tensor) -> dict[str, Tensor]:
        """Further weighted terms of the generator's loss by name."""
        return {}

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        optimizers = self.current_optimizers()
        self._set_learning_rates(optimizers)
        if self.condition is not None:
            self.condition.before_iteration(self)
        g_opt, d_opt = optimizers
        num_images = len(batch["image"]) // self.reals_per_iteration

        with self.toggled_optimizer(d_opt):
            for reals in self.split_reals(batch):
                values = self._discriminator_step(d_opt, reals)

        with self.toggled_optimizer(g_opt):
            vectors = self.fake_vectors(num_images * self.hparams.g_batch)
            fakes = self.fakes(num_images * self.hparams.g_batch, vectors)
            adversarial = LOSSES[self.hparams.loss][1](self.discriminate(fakes, vectors).logits)
            terms = {"adversarial": adversarial, **self.generator_terms(fakes)}
            self.optimize(g_opt, g_loss := sum(terms.values()))
        self.log_training({"g_loss": g_loss, **values, **terms, "kimg": self.images_seen / 1000}, num_images)

    def _discriminator_step(self, optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step, and what of it is logged."""
        reals = batch["image"]
        real_vectors = self.condition and self.condition.of_batch(batch)
        paired = self.condition is None or self.condition.paired
        fake_vectors = real_vectors if paired else self.fake_vectors(len(reals))
        with torch.no_grad():
            fakes = self.fakes(len(reals), fake_vectors)
        if self.joined_batches:
            joined = None if real_vectors is None else torch.cat([fake_vectors, real_vectors])
            both = self.discriminate(torch.cat([fakes, reals]), joined)
            fake, real = (DiscriminatorOutput(*rows) for rows in zip(*(values.chunk(2) for values in both), strict=True))
        else:
            real, fake = self.discriminate(reals, real_vectors), self.discriminate(fakes, fake_vectors)
        terms = self.discriminator_terms(reals, fakes)
        loss = LOSSES[self.hparams.loss][0](real.logits, fake.logits) + sum(terms.values())
        self.optimize(optimizer, loss)
        values = {"d_loss": loss, "real_logits": real.logits.mean(), "fake_logits": fake.logits.mean()}
        values |= {f"d_{name}": term for name, term in terms.items()}
        if self.condition is not None:
            values |= {"linear": real.linear.mean(), "projection": real.projection.mean()}
        if isinstance(self.condition, Clusters):
            values["cluster_agreement"] = self.condition.agreement
        values |= self.update_augmentation(real.logits)
        return values

    def _set_learning_rates(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        start = self.hparams.lr_decay
        if start < 1:  # constant within an epoch, so that a resume is exact
            share = min(1.0, (1 - self.stage_progress) / (1 - start))
            for optimizer, lr in zip(optimizers, (self.hparams.lr_g, self.hparams.lr_d), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = lr * share

    # --- the average --------------------------------------------------------------------------------------------------

    def update_averages(self, batch_images: int) -> None:
        decay = self.hparams.ema_decay if self.iteration > self.hparams.ema_start else 0.0
        self.averages["generator_ema"] = self.averages["generator_ema"]._replace(decay=decay)
        super().update_averages(batch_images)

    def on_train_batch_end(self, outputs: Any, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.trainer.is_last_batch:  # before validation and checkpoints
            self.prepare_sampling()

    @torch.no_grad()
    def prepare_sampling(self) -> None:
        """Renews what samples need besides weights: the condition's law of codes, and statistics of batch norm."""
        net = self.generator_ema
        if self.condition is not None:
            self.condition.refresh(net.embedding)
        batch = STANDING_BATCH
        standing_statistics(
            net,
            lambda: net(torch.randn(batch, self.hparams.z_dim, device=self.device), self.codes(batch)),
            self.hparams.standing_batches,
        )

    # --- capabilities -------------------------------------------------------------------------------------------------

    def with_codes(self, z: Tensor, codes: Vectors) -> Tensor:
        return z if codes is None else torch.cat([z, codes], 1)

    @torch.no_grad()
    def sample_latents(self, num_images: int, size: Sequence[int] | None = None) -> Tensor:
        """z with the condition's code behind it [N, z_dim + code dim]."""
        self.check_size(size)
        z = noise.randn(num_images, self.hparams.z_dim, device=self.device)
        return self.with_codes(z, self.codes(num_images))

    @torch.no_grad()
    def decode(self, latents: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Images of latents as `sample_latents` gives them."""
        self.check_size(size)
        z, codes = latents.split([self.hparams.z_dim, latents.shape[1] - self.hparams.z_dim], 1)
        return self.generator_ema(z, None if self.condition is None else codes)

    @torch.no_grad()
    def sample(
        self, num_images: int, size: Sequence[int] | None = None, labels: list[NonNegativeInt] | None = None
    ) -> Tensor:
        """New images; with `labels` each is of one of these classes, at random."""
        self.check_size(size)
        z = noise.randn(num_images, self.hparams.z_dim, device=self.device)
        return self.generator_ema(z, self.codes(num_images, labels))

    # --- source -------------------------------------------------------------------------------------------------------

    def convert(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Generator and discriminator of a source of the same sizes, the generator as its average where there is one.

        Layers of a condition that the source lacks begin anew. Of a class-conditional source without its classes here, batch
        norm becomes the mean over the classes, which keeps activations in range.
        """
        source = super().convert(checkpoint)
        if not isinstance(source, Mapping) or not any(key.startswith("generator") for key in source):
            raise UserError("the file holds no generator")
        found = source | {key.replace("generator_ema.", "generator.", 1): v for key, v in source.items() if "_ema." in key}
        own, state = self.state_dict(), {}
        for key, value in own.items():
            name = key.replace("generator_ema.", "generator.", 1)
            loaded = _loaded(name, found) if name.split(".")[0] in ("generator", "discriminator") else value
            anew = _of_condition(name) and (loaded is None or loaded.shape != value.shape)
            state[key] = own[name] if anew else loaded
        return {key: value for key, value in state.items() if value is not None}  # the rest is reported as missing


def _loaded(key: str, source: Mapping[str, Tensor]) -> Tensor | None:
    """The source's tensor of that name; for batch norm without classes the mean of its classes."""
    name, _, kind = key.rpartition(".")
    table = source.get(f"{name}.{'gain' if kind == 'weight' else 'shift'}.weight")
    if key in source or table is None or kind not in ("weight", "bias"):
        return source.get(key)
    return table.mean(1) + (kind == "weight")


def _of_condition(key: str) -> bool:
    """True for a tensor that belongs to the layers of a condition."""
    return any(part in key.split(".") for part in ("embedding", "gain", "shift"))
