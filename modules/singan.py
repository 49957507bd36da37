"""SinGAN (Rott Shaham, Dekel & Michaeli 2019, arXiv 1905.01164): images with the patches of one image."""

import math
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from core.errors import UserError
from core.types import Betas, ImageSize, NonNegativeFloat, NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt, Probability
from modules.losses.adversarial import wasserstein_g
from modules.networks.noise_pyramid import NoisePyramid, valid_stack
from modules.ops.images import resize, rmse_by_image
from modules.ops.kmeans import kmeans
from modules.ops.nearest import nearest
from modules.ops.noise import random_walks
from modules.ops.scales import check_scale, scale_sizes
from modules.pyramid import PyramidModule, set_rates


class SinGAN(PyramidModule):
    """A pyramid of patch GANs: scale 0 generates a small image from noise, each scale above adds detail from further noise.

    One fixed noise map z* at scale 0, with no noise above, has to give the image itself; its error at scale n - 1 sets the
    noise amplitude of scale n. Defaults: released code. The paper trains 2,000 iterations a scale, at 250 pixels at most.

    Args:
        tiles: rows and columns of a training image that `datamodule.tile` composes (Concat-SinGAN, Ben-Moshe et al. 2022).
        min_size: shorter side of scale 0, at least the receptive field; 20 for animation, 18 for super-resolution.
        scale_factor: nominal ratio of neighboring scales, see `scale_sizes`; for super-resolution 2^(-1/3).
        width: channels of scales 0 to `scales_per_width` - 1; doubled after each such block of scales, up to `max_width`.
        depth: hidden convolutions; four and the last one are the paper's five, with a receptive field of 11.
        norm: batch, or none. With batch norm a critic's score depends on the whole image in training.
        noise_padding: zeros around the noise, or noise there, too (animation): more variety at the borders.
        noise_factor: noise amplitude for a reconstruction error of 1.
        resample_zstar: draw z* again in every iteration of scale 0, as the released code does: the reconstruction blurs.
        paint_scale: scale that sees its input in `paint_colors` colors of the training image, for clip-art as input.
        weight_reconstruction: alpha; 100 for super-resolution. `weight_gp`: lambda of the pixel-wise penalty.
        decay_at: share of a stage after which both learning rates are a tenth.
    """

    fused_adam = True
    collapse_advice = (
        "another seed, module.norm=batch, smaller module.lr_d and module.lr_g, a larger module.min_size, more iterations"
    )

    def __init__(
        self,
        image_size: ImageSize,
        epochs_per_stage: PositiveInt | list[PositiveInt] = 5,
        tiles: tuple[PositiveInt, PositiveInt] = (1, 1),
        min_size: PositiveInt = 25,
        scale_factor: OpenFraction = 0.75,
        width: PositiveInt = 32,
        max_width: PositiveInt = 128,
        scales_per_width: PositiveInt = 4,
        depth: PositiveInt = 4,
        norm: Literal["batch", "none"] = "batch",
        noise_padding: Literal["zeros", "noise"] = "zeros",
        noise_factor: NonNegativeFloat = 0.1,
        resample_zstar: bool = False,
        paint_scale: NonNegativeInt | None = None,
        paint_colors: PositiveInt = 5,
        d_steps: PositiveInt = 3,
        g_steps: PositiveInt = 3,
        weight_reconstruction: NonNegativeFloat = 10.0,
        weight_gp: NonNegativeFloat = 0.1,
        lr_g: PositiveFloat = 5e-4,
        lr_d: PositiveFloat = 5e-4,
        betas: Betas = (0.5, 0.999),
        decay_at: Probability = 0.8,
    ) -> None:
        super().__init__(image_size, scale_sizes(image_size, min_size, scale_factor), epochs_per_stage)
        self.save_hyperparameters()
        if min_size < (field := 2 * depth + 3):
            raise UserError(f"min_size is {min_size}; scale 0 has to hold the critic's patches of {field} pixels")
        if paint_scale is not None:
            check_scale(self.num_scales, lowest=1, paint_scale=paint_scale)
        self.canvas = (tiles[0] * image_size[0], tiles[1] * image_size[1])
        self.widths = [min(width * 2 ** (scale // scales_per_width), max_width) for scale in range(self.num_scales)]
        sizes, noisy = [self.size_at(scale, self.canvas) for scale in range(self.num_scales)], noise_padding == "noise"
        self.pyramid = NoisePyramid(sizes, self.widths, depth, norm, noisy, paint_scale, paint_colors)
        self.discriminators = nn.ModuleList(valid_stack(width, 1, depth, norm) for width in self.widths)

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        images = sets["image"]
        if len(images) != 1:
            raise UserError(
                f"SinGAN learns from one image, and datamodule gives {len(images)} (mirrored ones count): choose one by "
                f"datamodule.image=NAME with datamodule.flip=false, or make one of all by datamodule.tile=row"
            )
        size = tuple(images[0].shape[-2:])
        if size != self.canvas:
            rows, columns = (side // tile for side, tile in zip(size, self.image_size, strict=True))
            raise UserError(
                f"module.tiles={list(self.hparams.tiles)} means a training image of {self.canvas[0]}×{self.canvas[1]}, but "
                f"datamodule gives {size[0]}×{size[1]}: set module.tiles=[{rows},{columns}] or change datamodule.tile"
            )

    def stage_size(self, stage: int) -> tuple[int, int]:
        return self.pyramid.canvas_sizes[stage]

    @property
    def generators(self) -> nn.ModuleList:
        return self.pyramid.generators

    def _decode(self, batch_size: int, size: tuple[int, int], start: int = 0, images: Tensor | None = None) -> Tensor:
        scales = range(start, self.top + 1)
        noises = [self.pyramid.draw_noise(scale, batch_size, self.size_at(scale, size)) for scale in scales]
        return resize(self.pyramid(noises, start, images), size).clamp(-1, 1)

    @torch.no_grad()
    def sample(self, num_images: int, size: tuple[int, int] | None = None, start_scale: NonNegativeInt = 0) -> Tensor:
        """Scales below `start_scale` reconstruct, which keeps more of the layout; such samples have the image's own size."""
        check_scale(self.num_scales, start_scale=start_scale)
        if start_scale == 0:
            return self._decode(num_images, size or self.image_size)
        below = self.pyramid.reconstruction(min(start_scale, self.top + 1)).expand(num_images, -1, -1, -1)
        return self._decode(num_images, size or self.canvas, start_scale, below)

    @torch.no_grad()
    def inject(self, images: Tensor, scale: int = 1) -> Tensor:
        """The images, shrunk to the scale below `scale` >= 1 and generated from there."""
        check_scale(self.num_scales, lowest=1, scale=scale)
        size = tuple(images.shape[-2:])
        below = resize(images, self.size_at(scale - 1, size))  # a generator has learned from upsampled inputs
        return self._decode(len(images), size, scale, below)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """The training image from its fixed noise, whatever `images` show, as there is no encoder; but of a tiling, an image of
        a tile's aspect gets the tile nearest to it."""
        size = tuple(images.shape[-2:])
        image = self.pyramid.reconstruction(self.top + 1).clamp(-1, 1)
        aspect = math.log(size[0] / size[1])
        tile, whole = (abs(aspect - math.log(height / width)) for height, width in (self.image_size, self.canvas))
        if tile >= whole:  # always without tiles
            return resize(image, size).expand(len(images), -1, -1, -1)
        rows, columns = self.hparams.tiles
        bands = resize(image, (rows * size[0], columns * size[1])).split(size[0], 2)
        tiles = torch.cat([tile for band in bands for tile in band.split(size[1], 3)])
        return tiles[nearest(images.flatten(1), tiles.flatten(1))[1]]

    @torch.no_grad()
    def super_resolve(self, images: Tensor, factor: float) -> Tensor:
        """Applies the finest generator in steps of about 2^(1/3); for models of the small image with that `scale_factor`."""
        (height, width), scale = images.shape[-2:], self.top
        steps = max(1, round(3 * math.log2(factor)))
        for step in range(1, steps + 1):
            growth = factor ** (step / steps)
            # Paper's code: gray noise in the first step, as its index is 0; here: always as in training.
            noise = self.pyramid.draw_noise(scale, len(images), (int(growth * height), int(growth * width)))
            images = self.pyramid([noise], scale, images)
        return images.clamp(-1, 1)

    @torch.no_grad()
    def animate(
        self, num_frames: int, alpha: Probability = 0.1, beta: Probability = 0.9, start_scale: NonNegativeInt = 0
    ) -> Tensor:
        check_scale(self.num_scales, start_scale=start_scale)
        net, sizes = self.pyramid, enumerate(self.pyramid.canvas_sizes[: self.top + 1])
        maps = [(net.reconstruction_noise(scale), partial(net.draw_noise, scale, 1, size)) for scale, size in sizes]
        steps = islice(random_walks(maps, start_scale, alpha, beta, 0.05), num_frames)
        return torch.cat([resize(self.pyramid(step), self.canvas) for step in steps]).clamp(-1, 1)

    def _training_image(self, size: tuple[int, int]) -> Tensor:
        return resize(self.training_sets["image"][0].unsqueeze(0).to(self.device), size)

    @torch.no_grad()
    def enter_stage(self, stage: int) -> None:
        self.train()  # the scale below goes into eval mode, as it will be used from now on
        if stage == 0:
            return self._draw_zstar()
        real = self._training_image(self.pyramid.canvas_sizes[stage])
        if stage == self.hparams.paint_scale:
            self.pyramid.palette.copy_(kmeans(real[0].flatten(1).T, self.hparams.paint_colors, self.shared_generator()))
        elif self.widths[stage] == self.widths[stage - 1]:
            for parts in (self.generators, self.discriminators):
                parts[stage].load_state_dict(parts[stage - 1].state_dict())
        error = F.mse_loss(resize(self.pyramid.reconstruction(stage), real.shape[-2:]), real).sqrt()
        self.pyramid.noise_amplitudes[stage] = self.hparams.noise_factor * error

    @torch.no_grad()
    def cache_stage(self, stage: int) -> None:
        self._real = self._training_image(self.pyramid.canvas_sizes[stage])
        self._reconstruction_input = self.pyramid.scale_input(stage, self.pyramid.reconstruction(stage), self._real.shape)

    def _draw_zstar(self, index: int = 0) -> None:
        generator = torch.Generator().manual_seed((self.epoch_seed(shared=True) + index) % 2**63)
        self.pyramid.zstar.copy_(torch.randn(self.pyramid.zstar.shape, generator=generator))

    @torch.no_grad()
    def _draw_inputs(self, batch_size: int) -> tuple[Tensor, ...]:
        """Random inputs [N, 3, h, w] of the stage's scale, one for each critic step, by one pass through the chain."""
        total, sizes = self.hparams.d_steps * batch_size, self.pyramid.canvas_sizes[: self.stage]
        chain = self.pyramid([self.pyramid.draw_noise(scale, total, size) for scale, size in enumerate(sizes)])
        return self.pyramid.scale_input(self.stage, chain, (total, *self._real.shape[1:])).split(batch_size)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """The batch gives only the number of noise maps, by its length."""
        n, hp, batch_size = self.stage, self.hparams, len(batch["image"])
        g_opt, d_opt = self.current_optimizers()
        generator, critic = self.stage_modules(n)
        progress = self.stage_progress + batch_idx / (self.trainer.num_training_batches * self.stage_epochs(n))
        set_rates((g_opt, d_opt), (hp.lr_g, hp.lr_d), progress, hp.decay_at)
        if n == 0 and hp.resample_zstar:
            self._draw_zstar(batch_idx + 1)
        amplitude = self.pyramid.noise_amplitudes[n]
        noise = amplitude * self.pyramid.draw_noise(n, batch_size, self.pyramid.canvas_sizes[n])
        fixed_noise = amplitude * self.pyramid.reconstruction_noise(n)
        inputs = self._draw_inputs(batch_size)

        for images in inputs:
            with torch.no_grad():
                fakes = generator(noise, images)
            critic_terms = self.critic_step(d_opt, critic, self._real, fakes)

        with self.toggled_optimizer(g_opt):
            for _ in range(hp.g_steps):
                # Paper's code: one fake for all steps, which fails since torch 1.5; here: one for each, from the same noise.
                fakes = generator(noise, inputs[-1])
                loss_adversarial = wasserstein_g(critic(fakes))
                loss_reconstruction = F.mse_loss(generator(fixed_noise, self._reconstruction_input), self._real)
                loss = loss_adversarial + hp.weight_reconstruction * loss_reconstruction
                self.optimize(g_opt, loss)

        # Only where values are written: Lightning's bookkeeping of each step took a tenth of it at 25 pixels.
        if (self.trainer.fit_loop.total_batch_idx + 1) % self.trainer.log_every_n_steps == 0 or self.trainer.is_last_batch:
            terms = {"g_loss": loss, "adversarial": loss_adversarial, "reconstruction": loss_reconstruction}
            self.log_training(terms | critic_terms, batch_size)

    @torch.no_grad()
    def diagnostics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        image, output, numbers = sets["image"][0].unsqueeze(0).to(self.device), None, {}
        for scale, size in enumerate(self.pyramid.canvas_sizes[: self.top + 1]):
            output = self.pyramid([self.pyramid.reconstruction_noise(scale)], scale, output)
            numbers[f"reconstruction_rmse_scale{scale}"] = float(rmse_by_image(output, resize(image, size)))
            numbers[f"noise_amplitude_scale{scale}"] = float(self.pyramid.noise_amplitudes[scale])
        return numbers
