"""FastGAN (Liu et al. 2021, arXiv 2101.04775): skip-layer excitation and a discriminator that reconstructs."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Adam

from core.errors import UserError
from core.types import BelowOne, Betas, ImageSize, NonNegativeFloat, NonNegativeInt, PathStr, PositiveFloat, PositiveInt
from modules.augment.named import Augmentation, Augmented, named_augmentation
from modules.losses.adversarial import soft_hinge_d, wasserstein_g
from modules.losses.reconstruction import gradient_l1, outputs_of, perceptual
from modules.networks.skip_excitation import (
    DiscriminatorOutput,
    FastGANDiscriminator,
    FastGANGenerator,
    Noise,
    crop_quadrant,
    resize_nearest,
    small_side,
)
from modules.ops import noise
from modules.ops.pretrained import load_extractor
from modules.ops.standing import standing_statistics
from modules.staged import StagedModule

STANDING_BATCH = 32
STAGES = {"mobilenet_v2": (1, 3, 6, 13, 17), "vgg16": (3, 8, 15, 22, 29)}  # ends of the layers of each size


class FastGAN(Augmented, StagedModule):
    """Light networks, a hinge loss with random margins, and decoders that keep the discriminator's features informative.

    Both steps of an iteration have the same fakes with the same augmentation; big and small fakes are augmented by draws of
    their own, as in the released code, reals once at full size.

    Paper: batch norm of the average in training mode; here: with statistics of samples, so that an image does not depend on
    the others of its batch. Paper: reconstruction is a sum over the batch of 8; here: a mean, times `reconstruction_weight`.

    Args:
        image_size: [s, s], a power of two from 32 to 1024.
        width: of both networks; published 64.
        excitation: see `FastGANGenerator`; below 128 pixels 8 leaves more connections.
        reconstruction: the distance of reconstructions: `l1` with gradients needs no file; `mobilenet_v2` and `vgg16` are
            perceptual ones (LPIPS without learned weights), whose name is that of the logged term.
        reconstruction_file: weights of the network; null: the optional package (MobileNetV2).
        reconstruction_weight: published 8, the sum over a batch of 8.
        augment: of all images that the discriminator sees; `policy` of diffaugment, `ada_kimg` of ada. Published: diffaugment.
        ema_decay: of the average for each iteration.
        standing_batches: see `SNGAN`.
    """

    duration_settings = ("epochs", "iterations")
    fixed_size = True
    collapse_advice = "another seed, smaller learning rates, more training images"

    def __init__(
        self,
        image_size: ImageSize,
        epochs: PositiveInt | None = None,
        iterations: PositiveInt | None = None,
        z_dim: PositiveInt = 256,
        width: PositiveInt = 64,
        excitation: Literal[4, 8, 16] = 16,
        reconstruction: Literal["l1", "mobilenet_v2", "vgg16"] = "l1",
        reconstruction_file: PathStr | None = None,
        reconstruction_weight: NonNegativeFloat = 8.0,
        lr: PositiveFloat = 2e-4,
        betas: Betas = (0.5, 0.999),
        augment: Augmentation = "diffaugment",
        policy: str = "color,translation",
        ada_kimg: PositiveFloat = 500.0,
        ema_decay: BelowOne = 0.999,
        standing_batches: NonNegativeInt = 8,
        source_checkpoint: PathStr | None = None,
    ) -> None:
        super().__init__(epochs, 1, iterations and [iterations])
        self.save_hyperparameters()
        self.image_size, side = tuple(image_size), image_size[0]
        if self.image_size != (side, side) or side not in (32, 64, 128, 256, 512, 1024):
            raise UserError(f"image_size is {list(image_size)}; FastGAN makes squares of 32, 64, 128, 256, 512 or 1024 pixels")
        self.small = small_side(side)
        self.generator = FastGANGenerator(side, z_dim, width, excitation)
        self.discriminator = FastGANDiscriminator(side, width)
        self.augment = named_augmentation(augment, policy, ada_kimg)
        self.add_average("generator_ema", "generator", decay=ema_decay)
        self._distances: list[Any] = []  # no submodule: it neither trains nor belongs into checkpoints

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        parts, betas = (self.generator, self.discriminator), tuple(map(float, self.hparams.betas))
        return [Adam(part.parameters(), self.hparams.lr, betas) for part in parts]

    # --- the iteration ------------------------------------------------------------------------------------------------

    def check_data(self, sets: Mapping[str, Any]) -> None:
        super().check_data(sets)
        if getattr(sets["image"], "labels", None) is not None:
            raise UserError("datamodule.labels: FastGAN has no classes; set it to null")
        self.distance()

    def distance(self) -> Any:
        """The function of reconstructions and targets [N, 3, h, w] in [-1, 1]; its weights are read once."""
        if not self._distances:
            name, file = self.hparams.reconstruction, self.hparams.reconstruction_file
            if name == "l1":
                self._distances.append(gradient_l1)
            else:
                try:
                    extractor, _ = load_extractor("vgg16_pool5" if name == "vgg16" else name, file)
                except UserError as error:
                    raise UserError(f"module.reconstruction: {error}") from None
                network = extractor.to(self.device)
                layers = outputs_of(network.network[0], STAGES[name])
                self._distances.append(perceptual(lambda images: layers(((images + 1) / 2 - network.mean) / network.std)))
        return self._distances[0]

    def reconstruction_loss(self, output: DiscriminatorOutput, reals: Tensor, quadrant: int) -> Tensor:
        """Distance of the three decoders' outputs to augmented reals [N, 3, s, s]; the third target is a quadrant of them."""
        whole = resize_nearest(reals, self.small)
        targets = (whole, whole, resize_nearest(crop_quadrant(reals, quadrant), self.small))
        pairs = zip(output.reconstructions, targets, strict=True)
        return sum(self.distance()(images, target) for images, target in pairs)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        g_opt, d_opt = self.current_optimizers()
        reals = self.augment(batch["image"])
        big, small = self.generator(torch.randn(len(reals), self.hparams.z_dim, device=self.device))
        big, small = self.augment(big), self.augment(small)
        quadrant = int(torch.randint(4, (), generator=self.random_stream("quadrant", shared=True)))

        with self.toggled_optimizer(d_opt):
            weight = self.hparams.reconstruction_weight
            real = self.discriminator(reals, resize_nearest(reals, self.small), quadrant if weight else None)
            fake = self.discriminator(big.detach(), small.detach())
            terms = {}
            if weight:
                name = f"reconstruction_{self.hparams.reconstruction}"
                terms[name] = weight * self.reconstruction_loss(real, reals, quadrant)
            self.optimize(d_opt, d_loss := soft_hinge_d(real.logits, fake.logits) + sum(terms.values()))
            terms |= self.update_augmentation(real.logits)

        with self.toggled_optimizer(g_opt):
            self.optimize(g_opt, g_loss := wasserstein_g(self.discriminator(big, small).logits))
        logits = {"real_logits": real.logits.mean(), "fake_logits": fake.logits.mean()}
        self.log_training({"g_loss": g_loss, "d_loss": d_loss, **terms, **logits}, len(reals))

    def on_train_batch_end(self, outputs: Any, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.trainer.is_last_batch:  # before validation and checkpoints
            net, z_dim = self.generator_ema, self.hparams.z_dim
            draw = lambda: net(torch.randn(STANDING_BATCH, z_dim, device=self.device))  # noqa: E731
            standing_statistics(net, draw, self.hparams.standing_batches)

    # --- capabilities -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample_latents(self, num_images: int, size: Sequence[int] | None = None) -> Tensor:
        """z [N, z_dim]."""
        self.check_size(size)
        return noise.randn(num_images, self.hparams.z_dim, device=self.device)

    @torch.no_grad()
    def decode(self, latents: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Images of z, a continuous function of z: without noise in the layers."""
        self.check_size(size)
        noises = [module for module in self.generator_ema.modules() if isinstance(module, Noise)]
        for module in noises:
            module.active = False
        try:
            return self.generator_ema(latents)[0]
        finally:
            for module in noises:
                module.active = True

    @torch.no_grad()
    def sample(self, num_images: int, size: Sequence[int] | None = None) -> Tensor:
        return self.generator_ema(self.sample_latents(num_images, size))[0]

    def convert(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The networks of a source of this method; everything else keeps its initial value."""
        source = super().convert(checkpoint)
        parts = ("generator", "generator_ema", "discriminator")
        return self.state_dict() | {key: value for key, value in source.items() if key.split(".")[0] in parts}

