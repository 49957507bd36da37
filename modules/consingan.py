"""ConSinGAN (Hinz, Fisher, Wang & Wermter 2021, arXiv 2003.11512): one growing generator learns a single image."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.data import Dataset

from core.errors import UserError
from core.types import Betas, ImageSize, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability
from modules.losses.adversarial import wasserstein_g
from modules.networks.growing import INPUT_AUGMENTATIONS, GrowingGenerator, valid_critic
from modules.ops import noise
from modules.ops.images import resize
from modules.ops.scales import MAX_SCALES, check_scale, sizes_by_exponents
from modules.pyramid import PyramidModule, set_rates


class ConSinGAN(PyramidModule):
    """A pyramid in feature space: stage n upsamples the features of stage n - 1, adds noise and a residual.

    The last `train_depth` stages train together; one critic is trained through all stages. Defaults: released code, which takes
    2000 iterations a stage.

    Args:
        epochs_per_stage: both rates drop to a tenth for the last fifth of a stage's epochs.
        mode: what random inputs are; the image itself, at the coarsest size, is reconstructed, except in `animation`.
            generation: noise; features are enlarged instead of zero-padded, for variety at the borders.
            retarget: noise; zero padding, for other sizes than the training size.
            animation: as generation, and fixed noise reconstructs the image (code: min_size 20).
            harmonization: degraded versions of the image; even scales (code: 3, min_size 120, slope 0.3, batch_norm).
            editing: the image with tiles moved, and noise of 0.1 (code: batch_norm).
        num_scales, min_size: see `concurrent_sizes`. `lr_scale`: factor of an older stage's rate; 0.5 for complex images.
        width, num_layers: channels and layers of a stage; the critic has as many hidden layers.
        slope: of all LeakyReLUs. `batch_norm`: in the generator's stages, against black samples.
        noise_factor: noise amplitude of a stage as a share of its reconstruction error when it begins.
        d_steps, g_steps: critic's steps, and the generator's steps on one gradient, in an iteration.
    """

    collapse_advice = "module.batch_norm=true (the authors' advice), another seed, more iterations"

    def __init__(
        self,
        image_size: ImageSize,
        epochs_per_stage: PositiveInt | list[PositiveInt] = 5,
        mode: Literal["generation", "retarget", "animation", "harmonization", "editing"] = "generation",
        num_scales: PositiveInt = 6,
        min_size: PositiveInt = 25,
        train_depth: PositiveInt = 3,
        width: PositiveInt = 64,
        num_layers: PositiveInt = 3,
        slope: float = 0.05,
        batch_norm: bool = False,
        noise_factor: NonNegativeFloat = 0.1,
        lr_g: PositiveFloat = 5e-4,
        lr_d: PositiveFloat = 5e-4,
        lr_scale: PositiveFloat = 0.1,
        betas: Betas = (0.5, 0.999),
        d_steps: PositiveInt = 3,
        g_steps: PositiveInt = 3,
        weight_reconstruction: NonNegativeFloat = 10.0,
        weight_gp: NonNegativeFloat = 0.1,
    ) -> None:
        sizes = concurrent_sizes(image_size, min_size, num_scales, even=mode == "harmonization")
        super().__init__(image_size, sizes, epochs_per_stage)
        self.save_hyperparameters()
        self.discriminator = valid_critic(width, num_layers, slope)
        if min_size < (field := 2 * num_layers + 5):
            raise UserError(f"min_size is {min_size}; the critic needs at least {field}")
        enlarge = mode in ("generation", "animation")
        self.generator = GrowingGenerator(num_scales, width, num_layers, slope, batch_norm, enlarge)
        self.register_buffer("image", torch.zeros(1, 3, *self.image_size))
        self.register_buffer("amplitudes", torch.zeros(num_scales))
        for scale, shape in enumerate(self.generator.input_shapes(sizes)):  # the inputs that reconstruct the image
            self.register_buffer(f"fixed_{scale}", torch.zeros(1, *shape))

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        if len(names := sets["image"].originals().names) > 1:
            rank_zero_warn(f"ConSinGAN learns one image: the first, {names[0]}; datamodule.image chooses another")

    def generator_rates(self, stage: int) -> list[tuple[nn.Module, float]]:
        """The generator's parts in training with their rates: newest stage first, image layer, input layer."""
        hp, net = self.hparams, self.generator
        depth = min(hp.train_depth, stage + 1)
        rates = [(net.blocks[stage - j], hp.lr_g * hp.lr_scale**j) for j in range(depth)] + [(net.tail, hp.lr_g)]
        return rates + ([(net.head, hp.lr_g * hp.lr_scale**stage)] if stage < hp.train_depth else [])

    def stage_modules(self, stage: int) -> list[nn.Module]:
        return [*(part for part, _ in self.generator_rates(stage)), self.discriminator]

    def stage_optimizers(self, stage: int) -> list[Optimizer]:
        hp, betas = self.hparams, tuple(self.hparams.betas)
        groups = [{"params": list(part.parameters()), "lr": rate} for part, rate in self.generator_rates(stage)]
        return [RepeatedAdam(groups, hp.lr_g, betas, hp.g_steps), Adam(self.discriminator.parameters(), hp.lr_d, betas)]

    def enter_stage(self, stage: int) -> None:
        net, fixed = self.generator, self.get_buffer(f"fixed_{stage}")
        if stage == 0:
            self.image.copy_(self.training_sets["image"][0])
        else:
            net.blocks[stage].load_state_dict(net.blocks[stage - 1].state_dict())
        self.cache_stage(stage)
        drawn = torch.randn(fixed.shape, generator=self.shared_generator())
        fixed.copy_(self._real if stage == 0 and self.hparams.mode != "animation" else drawn)
        net.eval()
        with torch.no_grad():
            error = F.mse_loss(self._reconstruction(), self._real).sqrt()
        self.amplitudes[stage] = self.hparams.noise_factor * error if stage else 1.0

    def cache_stage(self, stage: int) -> None:
        self._real = resize(self.image, self.sizes[stage])

    def fixed_inputs(self, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The inputs that reconstruct the image; at other sizes than in training their nearest pixels."""
        shapes = enumerate(self.generator.input_shapes(sizes))
        return [F.interpolate(self.get_buffer(f"fixed_{scale}"), shape[1:]) for scale, shape in shapes]

    def _reconstruction(self) -> Tensor:
        sizes = self.sizes[: self.stage + 1]
        return self.generator(self.fixed_inputs(sizes), sizes, self.amplitudes)

    def draw(self, num_images: int, sizes: Sequence[tuple[int, int]], images: Tensor | None = None) -> list[Tensor]:
        shapes = self.generator.input_shapes(sizes)
        inputs = [noise.randn(num_images, *shape, device=self.device) for shape in shapes]
        if self.hparams.mode in INPUT_AUGMENTATIONS:
            augment, strength = INPUT_AUGMENTATIONS[self.hparams.mode]
            if images is None:
                image = resize(self.fixed_0, sizes[0])[0]
                images = torch.empty_like(inputs[0])
                for i in range(num_images):
                    with noise.single_image(i):
                        images[i] = augment(image)
            inputs[0] = images + strength * inputs[0]
        return inputs

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        inputs = self.draw(len(batch["image"]), self.sizes[: self.stage + 1])
        self.log_training(self._iterate(inputs, *self.current_optimizers(), self.stage_progress), len(inputs[0]))

    def _iterate(self, inputs: Sequence[Tensor], g_opt: Optimizer, d_opt: Optimizer, progress: float) -> dict[str, Tensor]:
        hp, critic = self.hparams, self.discriminator
        set_rates((g_opt, d_opt), [*(rate for _, rate in self.generator_rates(self.stage)), hp.lr_d], progress)
        # Made once: with the same noise and an unchanged generator all critic's steps would see the same samples.
        fakes = self.generator(inputs, self.sizes[: self.stage + 1], self.amplitudes)
        for _ in range(hp.d_steps):
            critic_terms = self.critic_step(d_opt, critic, self._real.expand_as(fakes), fakes)

        critic.requires_grad_(False)  # the generator's step needs no gradients of its weights
        loss_adversarial = wasserstein_g(critic(fakes))
        loss_reconstruction = F.mse_loss(self._reconstruction(), self._real)
        loss = loss_adversarial + hp.weight_reconstruction * loss_reconstruction
        self.optimize(g_opt, loss)
        critic.requires_grad_(True)
        return {"g_loss": loss, "adversarial": loss_adversarial, "reconstruction": loss_reconstruction} | critic_terms

    def finetuned(self, images: Tensor, iterations: int) -> "ConSinGAN":
        """A copy after `iterations` more of the last stage with composites as inputs of stage 0 (released code)."""
        if self.hparams.mode not in INPUT_AUGMENTATIONS:
            raise UserError(f"finetune: module.mode is {self.hparams.mode}; expected {' or '.join(INPUT_AUGMENTATIONS)}")
        with torch.inference_mode(False), torch.enable_grad():  # callers run without gradients
            tuned = type(self)(**self.hparams).to(self.device)
            tuned.load_state_dict(self.state_dict())
            tuned.stage, tuned.optimize = self.top, plain_step
            tuned.cache_stage(tuned.stage)
            tuned.train()
            sizes, optimizers = tuned.sizes[: tuned.stage + 1], tuned.stage_optimizers(tuned.stage)
            coarse = resize(images.clone(), sizes[0])
            for iteration in Tqdm(range(iterations), desc="fine-tuning", leave=False, delay=3, disable=None):
                tuned._iterate(tuned.draw(len(images), sizes, coarse), *optimizers, iteration / iterations)
        return tuned.eval()

    def _sizes(self, size: Sequence[int]) -> list[tuple[int, int]]:
        return [self.size_at(scale, size) for scale in range(self.top + 1)]

    @torch.no_grad()
    def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
        sizes = self._sizes(size or self.image_size)
        return resize(self.generator(self.draw(num_images, sizes), sizes, self.amplitudes), size or self.image_size)

    @torch.no_grad()
    def inject(self, images: Tensor, scale: int = 0, finetune: NonNegativeInt = 0) -> Tensor:
        """Not for mode `animation`, which sees noise only. `finetune`: iterations of training a copy on the images first."""
        # Paper: images enter at stage 0, with random noise above; here: `scale` > 0 also adds back what that stage's image
        # lacks of them, which training never sees, and noise is random above it only.
        check_scale(self.num_scales, scale=scale)
        if finetune > 0:
            return self.finetuned(images, finetune).inject(images, scale)
        sizes = self._sizes(images.shape[-2:])
        stage = min(scale, len(sizes) - 1)
        fixed, drawn = self.fixed_inputs(sizes)[1 : stage + 1], self.draw(len(images), sizes)[stage + 1 :]
        coarse, detailed = resize(images, sizes[0]), resize(images, sizes[stage]) if stage else None
        out = self.generator([coarse, *fixed, *drawn], sizes, self.amplitudes, detailed, stage)
        return resize(out, images.shape[-2:])

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """The images with the training image's fixed noise; in mode `animation` the training image for any image."""
        sizes = self._sizes(images.shape[-2:])
        inputs, coarse = self.fixed_inputs(sizes), resize(images, sizes[0])
        inputs[0] = inputs[0].expand_as(coarse) if self.hparams.mode == "animation" else coarse
        return resize(self.generator(inputs, sizes, self.amplitudes), images.shape[-2:])

    @torch.no_grad()
    def animate(
        self, num_frames: int, alpha: Probability = 0.1, beta: Probability = 0.9, start_scale: NonNegativeInt = 0
    ) -> Tensor:
        check_scale(self.num_scales, start_scale=start_scale)
        sizes = self._sizes(self.image_size)
        maps = [(z, partial(torch.randn_like, z)) for z in self.fixed_inputs(sizes)]
        walks = noise.random_walks(maps, start_scale, alpha, beta, 0.01)
        steps = islice(walks, num_frames)  # lazily: noise of features is larger than the frames
        return resize(torch.cat([self.generator(z, sizes, self.amplitudes) for z in steps]), self.image_size)

    def diagnostics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        output, image = (resize(images, self.sizes[self.top]) for images in (self.reconstruct(self.image), self.image))
        numbers = {f"reconstruction_rmse_scale{self.top}": float(F.mse_loss(output, image).sqrt())}
        return numbers | {f"noise_amplitude_scale{n}": float(a) for n, a in enumerate(self.amplitudes[: self.top + 1])}


def concurrent_sizes(image_size: tuple[int, int], min_size: int, num_scales: int, even: bool = False) -> list[tuple[int, int]]:
    """Heights and widths by the released code's rule, `min_size` the shorter first side: scale i < S = num_scales - 1 has the
    factor r^e with e = (S - 1) / ln S * ln(S - i) + 1, so that low resolutions are dense, or S - i if `even`."""
    last, least = num_scales - 1, 2 if even else 3
    if not least <= num_scales <= MAX_SCALES:
        raise UserError(f"num_scales is {num_scales}; at least {least} are needed, and at most {MAX_SCALES}")
    exponents = [last - i if even else (last - 1) / math.log(last) * math.log(last - i) + 1 for i in range(last)]
    return sizes_by_exponents(image_size, min_size, [*exponents, 0])


class RepeatedAdam(Adam):
    """Adam with several steps on each gradient, as in the released code."""

    def __init__(self, params: list[dict], lr: float, betas: tuple[float, float], repeats: int) -> None:
        super().__init__(params, lr, betas)
        self.repeats = repeats

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for _ in range(self.repeats):
            loss = super().step(closure)
        return loss


def plain_step(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward(inputs=[parameter for group in optimizer.param_groups for parameter in group["params"]])
    optimizer.step()
