"""StyleGAN2 (Karras et al. 2020, arXiv 1912.04958), source model and head of its few-shot adaptations."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from lightning import LightningDataModule
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam

from core.errors import UserError
from core.types import (
    Betas,
    ImageSize,
    Node,
    NonNegativeFloat,
    NonNegativeInt,
    PathStr,
    PositiveFloat,
    PositiveInt,
    Probability,
)
from modules.augment.named import Augmentation, named_augmentation
from modules.conditional_gan import ConditionalGAN
from modules.losses.adversarial import nonsaturating_d, nonsaturating_g
from modules.losses.penalties import path_lengths, r1_penalty
from modules.networks.equalized import EqualConv, EqualLinear
from modules.networks.residual_discriminator import ResidualDiscriminator
from modules.networks.style_checkpoints import NETWORKS, generator_sizes, read_style_checkpoint, source_networks
from modules.networks.style_generator import StyledConv, StyleGenerator, ToRGB, resolutions
from modules.ops import noise as image_noise
from modules.ops.pretrained import unit_rms

PATH_DECAY = 0.01  # of the running mean of path lengths
MEAN_SAMPLES = 4096  # latents whose mean is the center of truncation
GENERATOR, DISCRIMINATOR = 0, 1  # the optimizers
Loss = tuple[Tensor, dict[str, Tensor]]  # a loss, and what is logged of it


class Phase(NamedTuple):
    """A step of `optimizer` in every `interval`-th iteration, for `interval` times the loss of the method `<name>_loss`."""

    name: str
    interval: int
    optimizer: int


class StyleGAN2(ConditionalGAN):
    """Generator with mapping and style-modulated synthesis against a residual discriminator; logistic loss, lazy R1 and path
    length, an average of the generator's weights for samples.

    An iteration has the steps of `phases`, R1 and path length in every `r1_interval`-th and `path_interval`-th only (lazy
    regularization), then the average moves. Sizes follow config F.

    Adaptations override `latents`, `before_mapping`, `discriminate`, `generator_terms`, `discriminator_terms`, `phases`,
    `trained_g`, `trained_d`.

    Args:
        image_size: [s, s], a power of two of at least 16.
        epochs, iterations: how long the training takes; one of the two.
        z_dim, w_dim: length of the latents z and of the styles w.
        channel_multiplier, channel_max, channels: see `channels_at`; 2 is config F.
        mapping_lr_mul: 0.01 for eight layers; two layers need 0.1 to move.
        conv_clamp: bound of activations, 256 in NVIDIA's networks that were trained in mixed precision; null: none.
        noise: noise inputs of the layers. They become salt and pepper at 64 pixels and below.
        mixing: probability that two latents make an image.
        r1_gamma, r1_interval: weight of R1 is gamma / 2, computed every so many iterations; 0: off.
        path_weight, path_interval: weight of path lengths, computed every so many iterations; 0: off.
        ema_decay: of the average for each iteration; 0.5^(32 / 10000) in rosinality's and the adaptations' code.
        ema_ramp_up: the average starts with shorter memory: for training from scratch.
        augment: of reals and fakes, see `modules.augment`.
        policy: operations of diffaugment.
        ada_kimg: thousands of images in which the probability of ada can rise from 0 to 1.
        condition: null, or a node of `modules.conditions`: its code stands beside z, each of unit mean square, and its vector
            enters the discriminator by projection. Fakes have the vectors of the batch's reals.
        source_checkpoint: file of weights to begin with: of this project, or one that `networks.style_checkpoints` reads.
    """

    duration_settings = ("epochs", "iterations")
    fixed_size = True
    collapse_advice = "another seed, a larger module.r1_gamma, module.augment=ada or diffaugment, more training images"

    def __init__(
        self,
        image_size: ImageSize,
        epochs: PositiveInt | None = None,
        iterations: PositiveInt | None = None,
        z_dim: PositiveInt = 512,
        w_dim: PositiveInt = 512,
        mapping_layers: PositiveInt = 8,
        mapping_lr_mul: PositiveFloat = 0.01,
        channel_multiplier: PositiveFloat = 2.0,
        channel_max: PositiveInt = 512,
        channels: list[PositiveInt] | None = None,
        conv_clamp: PositiveFloat | None = None,
        noise: bool = True,
        mixing: Probability = 0.9,
        r1_gamma: NonNegativeFloat = 10.0,
        r1_interval: NonNegativeInt = 16,
        path_weight: NonNegativeFloat = 2.0,
        path_interval: NonNegativeInt = 4,
        lr: PositiveFloat = 0.002,
        betas: Betas = (0.0, 0.99),
        ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.997784,
        ema_ramp_up: bool = False,
        augment: Augmentation = "none",
        policy: str = "color,translation,cutout",
        ada_kimg: PositiveFloat = 500.0,
        condition: Node | None = None,
        source_checkpoint: PathStr | None = None,
    ) -> None:
        stages = self.stage_iterations(iterations)
        super().__init__(epochs, len(stages or [epochs]), stages)
        self.save_hyperparameters()
        self._build()

    def stage_iterations(self, iterations: int | None) -> list[int] | None:
        """Iterations of each stage of a training with so many in all."""
        return iterations and [iterations]

    def _build(self) -> None:
        """Networks from the hyper-parameters; adaptations add theirs."""
        hp = self.hparams
        self.image_size = tuple(hp.image_size)
        if self.image_size[0] != self.image_size[1]:
            raise UserError(f"image_size is {list(hp.image_size)}; StyleGAN2 makes square images")
        side, width = self.image_size[0], (hp.channel_multiplier, hp.channel_max, hp.channels)
        if hp.channels is not None and len(hp.channels) != (expected := len(resolutions(side))):
            source = "; a source model has to have this size, too" if hp.source_checkpoint else ""
            raise UserError(
                f"channels has {len(hp.channels)} entries, {list(hp.channels)}, for images of {2 ** (len(hp.channels) + 1)} "
                f"pixels; image_size={list(hp.image_size)} needs {expected}, at 4, 8, …, {side} pixels{source}"
            )
        self.build_condition(hp.condition)
        condition = self.condition
        code_dim = (condition.embedding or condition.dim) if condition else 0
        self.generator = StyleGenerator(side, hp.z_dim + code_dim, hp.w_dim, hp.mapping_layers, hp.mapping_lr_mul, *width)
        self.discriminator = ResidualDiscriminator(side, *width, condition=condition.dim if condition else 0)
        if condition:
            self.generator.embedding = EqualLinear(condition.dim, code_dim)
        self._vectors: Tensor | None = None  # of the condition, of the batch in training
        for part in (*self.generator.modules(), *self.discriminator.modules()):
            if isinstance(part, StyledConv | ToRGB | EqualConv):
                part.clamp = hp.conv_clamp
        self.augment = named_augmentation(hp.augment, hp.policy, hp.ada_kimg)
        self.register_buffer("path_mean", torch.tensor(0.0))
        self.add_average("generator_ema", "generator", decay=hp.ema_decay)
        self._sizes = generator_sizes(self.generator.state_dict())
        self._network_keys = {key for key in self.state_dict() if key.split(".")[0] in NETWORKS}

    def set_epoch_length(self, datamodule: LightningDataModule, world_size: int) -> None:
        images, batch = len(datamodule.sets()["image"]), datamodule.batch_size
        if images < batch:
            raise UserError(
                f"datamodule.batch_size is {batch}, more than the {images} training image(s), mirrored ones included: set "
                f"datamodule.batch_size={images}, or add images"
            )
        super().set_epoch_length(datamodule, world_size)

    # --- what trains --------------------------------------------------------------------------------------------------

    def trained_g(self) -> list[nn.Parameter]:
        """Parameters of the generator's optimizer."""
        frozen = [] if self.hparams.noise else [conv.noise_strength for conv in self.generator.convs]
        excluded = {id(parameter) for parameter in frozen}
        return [parameter for parameter in self.generator.parameters() if id(parameter) not in excluded]

    def trained_d(self) -> list[nn.Parameter]:
        """Parameters of the discriminator's optimizer."""
        return list(self.discriminator.parameters())

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        hp = self.hparams
        optimizers = []
        for parameters, interval in ((self.trained_g(), hp.path_interval), (self.trained_d(), hp.r1_interval)):
            lr, betas = self.lazy_adam(hp.lr, hp.betas, interval) if interval else (hp.lr, tuple(map(float, hp.betas)))
            optimizers.append(Adam(parameters, lr, betas, eps=1e-8))
        return optimizers

    def _sync_stage(self) -> None:
        super()._sync_stage()
        trained = {id(parameter) for parameter in (*self.trained_g(), *self.trained_d())}
        for parameter in self.parameters():  # without gradients for what no optimizer steps
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in trained)

    # --- the iteration ------------------------------------------------------------------------------------------------

    def latents(self, num_images: int) -> Tensor:
        """Latents w [N, num_latents, w_dim] of the fakes."""
        return self.mixed_latents(num_images)

    def mixed_latents(self, num_images: int) -> Tensor:
        """Latents w [N, num_latents, w_dim] of normal z, with style mixing."""
        net = self.generator
        codes = None if self.condition is None else net.embedding(self._vectors[:num_images])
        w = self.map(self.with_codes(torch.randn(num_images, self.hparams.z_dim, device=self.device), codes))
        if self.hparams.mixing and float(torch.rand(())) < self.hparams.mixing:
            crossover = int(torch.randint(1, net.num_latents, ()))
            z = torch.randn(num_images, self.hparams.z_dim, device=self.device)
            return net.broadcast(w, self.map(self.with_codes(z, codes)), crossover)
        return net.broadcast(w)

    def map(self, z: Tensor) -> Tensor:
        """w [N, w_dim] of z [N, z_dim] in training."""
        return self.generator.mapping(self.before_mapping(z))

    def before_mapping(self, z: Tensor) -> Tensor:
        """Input of the mapping network for z [N, z_dim], in training and sampling."""
        return z

    @property
    def layer_noise(self) -> str | None:
        return "random" if self.hparams.noise else None

    def discriminate(self, images: Tensor) -> Tensor:
        """Logits of images in training, after augmentation."""
        return self.discriminator(self.augment(images), vectors=self._vectors).logits

    def generator_terms(self) -> dict[str, Tensor]:
        """Further weighted terms of the generator's loss by name."""
        return {}

    def discriminator_terms(self) -> dict[str, Tensor]:
        """Further weighted terms of the discriminator's loss by name."""
        return {}

    def phases(self) -> list[Phase]:
        """Steps of an iteration in their order."""
        hp = self.hparams
        phases = [
            Phase("discriminator", 1, DISCRIMINATOR),
            Phase("r1", hp.r1_interval * bool(hp.r1_gamma), DISCRIMINATOR),
            Phase("generator", 1, GENERATOR),
            Phase("path", hp.path_interval * bool(hp.path_weight), GENERATOR),
        ]
        return [phase for phase in phases if phase.interval]

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        reals, values = batch["image"], {}
        if self.condition is not None:
            self.condition.before_iteration(self)
            self._vectors = self.condition.of_batch(batch)
        # Paper: new latents for each step; here: both steps use the same fakes, which saves a pass through the generator.
        fakes = self.generator.synthesis(self.latents(len(reals)), self.layer_noise).images
        for phase in self.phases():
            if self.every(phase.interval):
                optimizer = self.current_optimizers()[phase.optimizer]
                with self.toggled_optimizer(optimizer):
                    loss, logged = getattr(self, f"{phase.name}_loss")(reals, fakes)
                    self.optimize(optimizer, phase.interval * loss, scrub=True)
                values |= logged
        self.log_training({**values, "kimg": self.images_seen / 1000}, len(reals))

    def discriminator_loss(self, reals: Tensor, fakes: Tensor) -> Loss:
        real_logits, fake_logits = self.discriminate(reals), self.discriminate(fakes.detach())
        terms = self.discriminator_terms()
        loss = sum(terms.values(), nonsaturating_d(real_logits, fake_logits))
        values = {"d_loss": loss, **terms, "real_logits": real_logits.mean(), "fake_logits": fake_logits.mean()}
        values |= self.update_augmentation(real_logits)
        return loss, values

    def r1_loss(self, reals: Tensor, fakes: Tensor) -> Loss:
        penalty = r1_penalty(self.discriminate, reals)
        return self.hparams.r1_gamma / 2 * penalty, {"r1": penalty}

    def generator_loss(self, reals: Tensor, fakes: Tensor) -> Loss:
        terms = {"adversarial": nonsaturating_g(self.discriminate(fakes)), **self.generator_terms()}
        loss = sum(terms.values())
        return loss, {"g_loss": loss, **terms}

    def path_loss(self, reals: Tensor, fakes: Tensor) -> Loss:
        w = self.mixed_latents(max(1, len(reals) // 2))
        lengths = path_lengths(lambda w: self.generator.synthesis(w, self.layer_noise).images, w)
        # The gradient passes through the batch's share of the mean, as in the paper's code.
        mean = self.path_mean + PATH_DECAY * (lengths.mean() - self.path_mean)
        loss = (lengths - mean).square().mean()
        self.path_mean.copy_(self.mean_over_ranks(mean.detach()))
        return self.hparams.path_weight * loss, {"path_length": self.path_mean}

    def update_averages(self, batch_images: int) -> None:
        if self.hparams.ema_ramp_up:  # the memory grows with the training, as the usual warm-up of averages
            decay = min(self.hparams.ema_decay, (1 + self.iteration) / (10 + self.iteration))
            self.averages["generator_ema"] = self.averages["generator_ema"]._replace(decay=decay)
        super().update_averages(batch_images)

    def on_train_batch_end(self, outputs: Any, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.condition is not None and self.trainer.is_last_batch:  # before validation and checkpoints
            self.condition.refresh(self.generator_ema.embedding)

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """The discriminator's last activations at 4×4 [N, C]: what clusters are made of."""
        resolution = self.discriminator.resolutions[-1]
        tap = f"{resolution}.conv2"
        return self.discriminator(images, stop_after=tap).taps[tap].mean((2, 3))

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        self.update_w_mean()
        super().on_train_epoch_end()

    @torch.no_grad()
    def update_w_mean(self) -> None:
        """The center of truncation, equal on all ranks."""
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(MEAN_SAMPLES, self.hparams.z_dim, generator=generator).to(self.device)
        if self.condition is not None:
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                torch.manual_seed(0)
                z = self.with_codes(z, self.condition.draw_codes(MEAN_SAMPLES, self.generator_ema.embedding, self.device))
        for net in (self.generator, self.generator_ema):
            net.w_mean.copy_(net.mapping(self.before_mapping(z)).mean(0))

    # --- capabilities -------------------------------------------------------------------------------------------------

    def with_codes(self, z: Tensor, codes: Tensor | None) -> Tensor:
        """z with codes behind it, both with a mean square of 1 in each row."""
        return z if codes is None else torch.cat([unit_rms(z), unit_rms(codes)], 1)

    def _z(self, num_images: int, labels: Sequence[int] | None = None) -> Tensor:
        z = image_noise.randn(num_images, self.hparams.z_dim, device=self.device)
        return self.with_codes(z, self.codes(num_images, labels))

    @torch.no_grad()
    def sample_latents(
        self, num_images: int, size: Sequence[int] | None = None, space: Literal["z", "w"] = "z",
        truncation: NonNegativeFloat = 1.0,
    ) -> Tensor:  # fmt: skip
        """z [N, z_dim], with a condition its code behind it; or w [N, num_latents, w_dim], which alone can be truncated."""
        self.check_size(size)
        z = self._z(num_images)
        if space == "z":
            if truncation != 1:
                raise UserError(f"truncation={truncation} is one of w; set space=w, too")
            return z
        net = self.generator_ema
        return net.broadcast(net.truncate(net.mapping(self.before_mapping(z)), truncation))

    @torch.no_grad()
    def decode(self, latents: Tensor, size: Sequence[int] | None = None, truncation: NonNegativeFloat = 1.0) -> Tensor:
        """Images of z [N, z_dim] or w [N, num_latents, w_dim] by the averaged generator, a continuous function of them: noise
        inputs are constant. `truncation` is of z."""
        self.check_size(size)
        net, noise = self.generator_ema, "const" if self.hparams.noise else None
        shapes = {2: (net.z_dim,), 3: (net.num_latents, net.w_dim)}
        if shapes.get(latents.ndim) != tuple(latents.shape[1:]):
            allowed = " or ".join(f"[N, {', '.join(map(str, shape))}]" for shape in shapes.values())
            raise UserError(f"latents of shape {list(latents.shape)}; {type(self).__name__} takes {allowed}")
        if latents.ndim == 2:
            latents = net.broadcast(net.truncate(net.mapping(self.before_mapping(latents)), truncation))
        return net.synthesis(latents, noise).images.clamp(-1, 1)

    @torch.no_grad()
    def sample(
        self, num_images: int, size: Sequence[int] | None = None, truncation: NonNegativeFloat = 1.0,
        labels: list[NonNegativeInt] | None = None,
    ) -> Tensor:  # fmt: skip
        """New images; `truncation` psi below 1 trades diversity for quality. With `labels` each is of one of these classes, at
        random."""
        self.check_size(size)
        z = self._z(num_images, labels)
        return self.generator_ema(self.before_mapping(z), self.layer_noise, truncation).images.clamp(-1, 1)

    def read_source(self, path: str) -> tuple[Any, str]:
        return read_style_checkpoint(path)

    def convert(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Generator, average and discriminator of a source file; everything else keeps its initial value."""
        return self.state_dict() | self.source_state(checkpoint)

    def source_state(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        return source_networks(checkpoint, self._sizes, self._network_keys, type(self).__name__)
