"""HP-VAE-GAN (Gur, Benaim & Wolf 2020, arXiv 2006.12226), image version, for one image or a handful of them."""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import Dataset

from core.errors import UserError
from core.types import Betas, ImageSize, NonNegativeFloat, OpenFraction, PositiveFloat, PositiveInt
from modules.losses.adversarial import wasserstein_g
from modules.networks.patch_gan import PatchCritic
from modules.networks.vae import PatchVAE, RefinementBlock
from modules.ops.images import resize
from modules.ops.noise import randn, randn_like
from modules.ops.scales import scale_sizes
from modules.pyramid import RefiningModule


class HPVAEGAN(RefiningModule):
    """A patch VAE at the coarse scales gives diverse layouts, residual patch GANs above give sharp details.

    VAE scales (n < `vae_levels`) train encoder, decoder and the newest block, without a critic; GAN scales train the newest
    block and its critic. Defaults: released image script, but bicubic resizing, critics whose last layer starts small, noise
    amplitudes that are not divided by the batch size, and `bn_mode`.

    Args:
        vae_levels: number of VAE scales, the coarsest ones.
        latent_dim: channels of the latent, which is as high and wide as the coarsest scale.
        width: channels of all convolutions; `depth`: hidden layers of decoder, blocks and critics.
        squash: `sum` or `residual`, see `RefinementBlock`.
        bn_mode: `eval`: frozen blocks and samples use running statistics; `batch`: those of the batch, as in the script.
        noise_factor: amplitude of a scale's noise as a share of the RMSE that the scales below leave there.
        weight_*: weights of the loss terms; KL is a mean over all of the latent's elements.
        lr_vae: at VAE scales; the newest block trains with it, encoder and decoder with lr_vae * lr_scale^n at scale n.
        lr_g: of the blocks at GAN scales; below lr_d, colors swing less in short runs.
    """

    collapse_advice = (
        "a smaller module.weight_kl or more iterations at VAE scales, a smaller module.lr_g at GAN scales, another seed"
    )

    def __init__(
        self,
        image_size: ImageSize,
        epochs_per_stage: PositiveInt | list[PositiveInt] = 5,
        min_size: PositiveInt = 32,
        scale_factor: OpenFraction = 0.75,
        vae_levels: PositiveInt = 3,
        latent_dim: PositiveInt = 128,
        width: PositiveInt = 64,
        depth: PositiveInt = 6,
        encoder_depth: PositiveInt = 3,
        squash: Literal["sum", "residual"] = "sum",
        bn_mode: Literal["eval", "batch"] = "eval",
        noise_factor: NonNegativeFloat = 0.1,
        weight_reconstruction: NonNegativeFloat = 10.0,
        weight_kl: NonNegativeFloat = 1.0,
        weight_adversarial: NonNegativeFloat = 1.0,
        weight_gp: NonNegativeFloat = 0.1,
        lr_vae: PositiveFloat = 5e-4,
        lr_scale: PositiveFloat = 0.2,
        lr_g: PositiveFloat = 5e-4,
        lr_d: PositiveFloat = 5e-4,
        betas: Betas = (0.5, 0.999),
        clip_norm: NonNegativeFloat = 5.0,
    ) -> None:
        sizes = scale_sizes(image_size, min_size, scale_factor)
        super().__init__(image_size, sizes, epochs_per_stage)
        if vae_levels > len(sizes):
            raise UserError(f"vae_levels is {vae_levels}; allowed are 1 to {len(sizes)}, the number of scales")
        self.save_hyperparameters()
        vae = PatchVAE(latent_dim, width, depth, encoder_depth, bn_mode)
        blocks = (RefinementBlock(width, depth, squash, bn_mode) for _ in sizes[1:])
        self.generators = nn.ModuleList([vae, *blocks])
        no_critics = (nn.Identity() for _ in range(vae_levels))
        self.discriminators = nn.ModuleList([*no_critics, *(PatchCritic(width, depth) for _ in sizes[vae_levels:])])
        self.register_buffer("noise_amplitudes", torch.zeros(len(sizes)))

    @property
    def vae(self) -> PatchVAE:
        return self.generators[0]

    def stage_modules(self, stage: int) -> list[nn.Module]:
        if stage < self.hparams.vae_levels:  # the blocks between stay as they are, as in the released code
            return [self.vae, self.generators[stage]] if stage else [self.vae]
        return super().stage_modules(stage)

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        hp = self.hparams
        if stage >= hp.vae_levels:
            return super().stage_optimizers(stage)
        vae = {"params": self.vae.parameters(), "lr": hp.lr_vae * hp.lr_scale**stage}
        block = {"params": self.generators[stage].parameters()}
        return [Adam([vae, block] if stage else [vae], hp.lr_vae, tuple(hp.betas))]

    def enter_stage(self, stage: int) -> None:
        self.eval()  # the stage before may still be in train mode, and its statistics must not move any more
        if stage > 1:
            self.generators[stage].load_state_dict(self.generators[stage - 1].state_dict())
        if stage > self.hparams.vae_levels:
            self.discriminators[stage].load_state_dict(self.discriminators[stage - 1].state_dict())
        if stage > 0:
            self.noise_amplitudes[stage] = self.hparams.noise_factor * self._error_below(stage)

    def _error_below(self, stage: int) -> Tensor:
        """RMSE over all training images between scale `stage` and the enlarged reconstruction of the scale below."""
        size = self.sizes[stage]

        def squared(image: Tensor) -> Tensor:
            return F.mse_loss(resize(self.reconstruct_at(image, stage - 1), size), resize(image, size)).view(1)

        # Reduced, because sums on GPUs may differ in the last bit between ranks.
        return self.mean_over_ranks(self.each(self.training_sets["image"], squared).mean().sqrt())

    def detail(self, images: Tensor, scale: int, noise: bool = False) -> Tensor:
        return self.generators[scale](images, self._noise(images, scale) if noise else None)

    def _noise(self, images: Tensor, scale: int) -> Tensor:
        return self.noise_amplitudes[scale] * randn_like(images)

    def sample_latents(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
        return randn(num_images, self.hparams.latent_dim, *self.size_at(0, size or self.image_size), device=self.device)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.vae.encoder(self.coarse(images))[0]

    def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
        return self.decode(self.sample_latents(num_images, size), size, noise=True)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        coarse, reals = (resize(batch["image"], self.sizes[scale]) for scale in (0, self.stage))
        terms = self._vae_step(coarse, reals) if self.stage < self.hparams.vae_levels else self._gan_step(coarse, reals)
        self.log_training(terms, len(reals))

    def _vae_step(self, coarse: Tensor, reals: Tensor) -> dict[str, Tensor]:
        """One step of encoder, decoder and newest block; at stage 0 the reconstruction counts twice, as in the script."""
        hp = self.hparams
        mean, log_variance = self.vae.encoder(coarse)
        decoded = self.vae.decode(draw_latents(mean, log_variance))
        outputs = self.refine(decoded, 1, self.stage, self.image_size)
        loss_reconstruction = F.mse_loss(outputs, reals) + F.mse_loss(decoded, coarse)
        loss_kl = kl_divergence(mean, log_variance)
        loss = hp.weight_reconstruction * loss_reconstruction + hp.weight_kl * loss_kl
        self.optimize(self.current_optimizers()[0], loss, hp.clip_norm)
        return {"g_loss": loss, "reconstruction": loss_reconstruction, "kl": loss_kl}

    def _gan_step(self, coarse: Tensor, reals: Tensor) -> dict[str, Tensor]:
        hp, critic = self.hparams, self.discriminators[self.stage]
        g_opt, d_opt = self.current_optimizers()
        reconstructions, fakes = self._newest_outputs(coarse)

        critic_terms = self.critic_step(d_opt, critic, reals, fakes)
        with self.toggled_optimizer(g_opt):
            loss_reconstruction = F.mse_loss(reconstructions, reals)
            loss_adversarial = wasserstein_g(critic(fakes))
            loss = hp.weight_reconstruction * loss_reconstruction + hp.weight_adversarial * loss_adversarial
            self.optimize(g_opt, loss, hp.clip_norm)
        return {"g_loss": loss, "reconstruction": loss_reconstruction, "adversarial": loss_adversarial} | critic_terms

    def _newest_outputs(self, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions without noise, and as many fakes from random latents with noise."""
        n, size = self.stage, self.sizes[self.stage]
        with torch.no_grad():
            reconstructed = self.refine(self.vae.decode(draw_latents(*self.vae.encoder(coarse))), 1, n - 1, self.image_size)
            drawn = self.refine(self.vae.decode(self.sample_latents(len(coarse))), 1, n - 1, self.image_size, noise=True)
            reconstructed, drawn = resize(reconstructed, size), resize(drawn, size)
            noise = self._noise(drawn, n)
        block = self.generators[n]
        if self.hparams.bn_mode == "batch":
            return block(reconstructed), block(drawn, noise)
        # Paper's code: two passes, each with its own batch statistics; here: one, so that eval mode fits both.
        outputs = block(torch.cat([reconstructed, drawn]), torch.cat([torch.zeros_like(noise), noise]))
        return outputs[: len(reconstructed)], outputs[len(reconstructed) :]

    @torch.no_grad()
    def diagnostics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        images = sets["image"].stack().to(self.device)
        numbers, errors = self.reconstruction_errors(images)
        numbers["reconstruction_rmse_worst_to_best"] = float(errors.max() / errors.min())
        numbers["kl_per_element"] = float(kl_divergence(*self.vae.encoder(resize(images, self.sizes[0]))))
        return numbers


def draw_latents(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A draw from N(mean, exp(log_variance)) (Kingma & Welling 2014)."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of N(mean, exp(log_variance)) from N(0, 1) in nats, mean over all elements."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
