"""ConSinGAN (Hinz, Fisher, Wang & Wermter 2021, arXiv 2003.11512): one growing generator learns a single image."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, repeat

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import Dataset

from modules.losses.adversarial import wasserstein_d, wasserstein_g
from modules.losses.penalties import gradient_penalty
from modules.networks.consingan import GrowingGenerator, ValidCritic
from modules.ops.images import luma, resize
from modules.ops.scales import ROUNDING, proportional_size
from modules.pyramid import PyramidModule

MODES = ("generation", "retarget", "animation", "harmonization", "editing")
LR_DROP, LR_DROP_AT = 0.1, 0.8  # both rates, after this share of a stage
FLAT = 0.1  # samples with less than this share of the image's contrast are taken for a failed stage


class ConSinGAN(PyramidModule):
    """A pyramid in feature space: stage n upsamples the features of stage n - 1, adds noise and a residual.

    The last `train_depth` stages train together, the j-th newest with the learning rate lr_g * lr_scale^j, the image
    layer with lr_g, the input layer with lr_g * lr_scale^n while stage 0 trains. One critic goes on through all stages.
    It learns the first image of the data module's set `image`; `batch_size` is the number of samples in a step.
    The defaults are the released code's; so are 2000 iterations a stage, such as 5 epochs of 400.

    Args:
        epochs_per_stage: both rates drop to a tenth for the last fifth of a stage's epochs.
        mode: what random inputs are; the image itself, at the coarsest size, is reconstructed, except in `animation`.
            generation: noise; features are enlarged instead of zero-padded, for variety at the borders.
            retarget: noise; zero padding, for other sizes than the training size.
            animation: as generation, and fixed noise reconstructs the image (code: min_size 20).
            harmonization: degraded versions of the image; even scales (code: 3, min_size 120, slope 0.3, batch_norm).
            editing: the image with tiles moved (code: batch_norm). Both: 1000 iterations a stage.
        num_scales, min_size: see `concurrent_sizes`. `lr_scale`: 0.5 for complex or large images.
        width, num_layers: channels and layers of a stage; the critic has as many hidden layers.
        slope: of all LeakyReLUs. `batch_norm`: in the generator's stages, a remedy when samples turn black.
        noise_factor: noise amplitude of a stage as a share of its reconstruction error when it begins.
        d_steps, g_steps: critic's steps, and the generator's steps on one gradient, in an iteration.
    """

    def __init__(
        self,
        image_size: list[int],
        epochs_per_stage: int | list[int] = 5,
        mode: str = "generation",
        num_scales: int = 6,
        min_size: int = 25,
        train_depth: int = 3,
        width: int = 64,
        num_layers: int = 3,
        slope: float = 0.05,
        batch_norm: bool = False,
        noise_factor: float = 0.1,
        lr_g: float = 5e-4,
        lr_d: float = 5e-4,
        lr_scale: float = 0.1,
        betas: tuple[float, float] = (0.5, 0.999),
        d_steps: int = 3,
        g_steps: int = 3,
        weight_reconstruction: float = 10.0,
        weight_gp: float = 0.1,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; allowed are {', '.join(MODES)}")
        for name, count in {"train_depth": train_depth, "d_steps": d_steps, "g_steps": g_steps}.items():
            if count < 1:
                raise ValueError(f"{name} is {count}; it has to be at least 1")
        sizes = concurrent_sizes(tuple(image_size), min_size, num_scales, even=mode == "harmonization")
        super().__init__(num_scales, epochs_per_stage)
        self.save_hyperparameters()
        self.image_size, self.sizes, self.num_scales = tuple(image_size), sizes, num_scales
        self.discriminator = ValidCritic(width, num_layers, slope)
        if min_size < self.discriminator.receptive_field:
            raise ValueError(f"min_size is {min_size}; the critic needs at least {self.discriminator.receptive_field}")
        enlarge = mode in ("generation", "animation")
        self.generator = GrowingGenerator(num_scales, width, num_layers, slope, batch_norm, enlarge)
        self.register_buffer("amplitudes", torch.zeros(num_scales))
        for scale, size in enumerate(sizes):  # the inputs that reconstruct the image
            self.register_buffer(f"fixed_{scale}", torch.zeros(1, *self.generator.input_shape(scale, size)))

    def stage_label(self, stage: int) -> tuple[str, str]:
        return f"scale {stage}", "{}×{}".format(*self.sizes[stage])

    def generator_rates(self, stage: int) -> list[tuple[nn.Module, float]]:
        """The generator's parts in training with their rates: newest stage first, then image layer and input layer."""
        hp, net = self.hparams, self.generator
        depth = min(hp.train_depth, stage + 1)
        rates = [(net.blocks[stage - j], hp.lr_g * hp.lr_scale**j) for j in range(depth)] + [(net.tail, hp.lr_g)]
        return rates + ([(net.head, hp.lr_g * hp.lr_scale**stage)] if stage < hp.train_depth else [])

    def stage_modules(self, stage: int) -> list[nn.Module]:
        return [*(part for part, _ in self.generator_rates(stage)), self.discriminator]

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        hp, betas = self.hparams, tuple(self.hparams.betas)
        groups = [{"params": list(part.parameters()), "lr": rate} for part, rate in self.generator_rates(stage)]
        return [RepeatedAdam(groups, hp.lr_g, betas, hp.g_steps), Adam(self.discriminator.parameters(), hp.lr_d, betas)]

    def stage_work(self, stage: int, batch_size: int) -> list[tuple[nn.Module, Tensor, float]]:
        net, trained, work = self.generator, self.stage_modules(stage), []
        for block, size in zip(net.blocks, self.sizes[: stage + 1], strict=False):
            example = torch.zeros(1, self.hparams.width, *(side + 2 * net.margin for side in size))
            passes = (3 if block in trained else 1) * (batch_size + 1)  # samples and the reconstruction
            work.append((block, example, 2 * passes))  # upsampling and noise take as long as the block
        # A critic's step: two forwards with backward, the penalty (7); the generator's passes through the critic: 2.
        passes = (13 * self.hparams.d_steps + 2) * batch_size
        return [*work, (self.discriminator, torch.zeros(1, 3, *self.sizes[stage]), passes)]

    def enter_stage(self, stage: int) -> None:
        """A new stage begins as a copy of the last; its amplitude follows from what it reconstructs without noise."""
        net, fixed, images = self.generator, self.get_buffer(f"fixed_{stage}"), self.trainer.datamodule.sets()["image"]
        if stage == 0 and len(images.originals()) > 1:
            rank_zero_warn(f"ConSinGAN learns one image: the first, {images.names[0]}; datamodule.root may be a file")
        if stage > 0:
            net.blocks[stage].load_state_dict(net.blocks[stage - 1].state_dict())
        self.cache_stage(stage)
        noise = torch.randn(fixed.shape, generator=self.common_generator())
        fixed.copy_(self._real if stage == 0 and self.hparams.mode != "animation" else noise)
        net.eval()
        with torch.no_grad():
            error = (self._reconstruction() - self._real).square().mean().sqrt()
        self.amplitudes[stage] = self.hparams.noise_factor * error if stage else 1.0

    def cache_stage(self, stage: int) -> None:
        image = self.trainer.datamodule.sets()["image"][0].unsqueeze(0)
        self._real = resize(image.to(self.device, self.dtype), self.sizes[stage])

    def fixed_inputs(self, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The inputs of the stages that reconstruct the image; at other sizes than in training their nearest pixels."""
        shapes = [self.generator.input_shape(scale, size) for scale, size in enumerate(sizes)]
        return [F.interpolate(self.get_buffer(f"fixed_{scale}"), shape[1:]) for scale, shape in enumerate(shapes)]

    def _reconstruction(self) -> Tensor:
        """What the stages so far make of the fixed inputs."""
        sizes = self.sizes[: self.stage + 1]
        return self.generator(self.fixed_inputs(sizes), sizes, self.amplitudes)

    def draw(self, num_images: int, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Random inputs of the stages with these sizes."""
        shapes = [self.generator.input_shape(scale, size) for scale, size in enumerate(sizes)]
        inputs = [torch.randn(num_images, *shape, device=self.device) for shape in shapes]
        if self.hparams.mode in ("harmonization", "editing"):
            change, noise = (degrade, 0.0) if self.hparams.mode == "harmonization" else (move_tiles, 0.1)
            image = resize(self.fixed_0, sizes[0])[0]
            inputs[0] = torch.stack([change(image) for _ in range(num_images)]) + noise * inputs[0]
        return inputs

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        drop = LR_DROP if self.stage_progress >= LR_DROP_AT else 1.0
        rates = [*(rate for _, rate in self.generator_rates(self.stage)), self.hparams.lr_d]
        groups = [group for optimizer in self.current_optimizers() for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = drop * rate

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """`d_steps` critic's steps on one set of samples, one gradient of the generator with `g_steps` steps."""
        hp, critic = self.hparams, self.discriminator
        g_opt, d_opt = self.current_optimizers()
        sizes = self.sizes[: self.stage + 1]
        reals = self._real.expand(len(batch["image"]), -1, -1, -1)
        # Drawn once: with the same noise and an unchanged generator all critic's steps would see the same samples.
        fakes = self.generator(self.draw(len(reals), sizes), sizes, self.amplitudes)

        with self.toggled_optimizer(d_opt):
            for _ in range(hp.d_steps):
                loss_critic = wasserstein_d(critic(reals), critic(fakes.detach()))
                loss_gp = gradient_penalty(critic, reals, fakes)
                self.optimize(d_opt, loss_critic + hp.weight_gp * loss_gp)

        with self.toggled_optimizer(g_opt):
            loss_adversarial = wasserstein_g(critic(fakes))
            loss_reconstruction = F.mse_loss(self._reconstruction(), self._real)
            loss = loss_adversarial + hp.weight_reconstruction * loss_reconstruction
            self.optimize(g_opt, loss)

        self._contrast = fakes.detach().std((2, 3)).mean() / self._real.std((2, 3)).mean().clamp(min=1e-3)
        values = {"g_loss": loss, "d_loss": loss_critic, "gp": loss_gp, "reconstruction": loss_reconstruction}
        values |= {"adversarial": loss_adversarial, "contrast": self._contrast, "stage": float(self.stage)}
        for name, value in values.items():
            shown = name in ("g_loss", "d_loss", "reconstruction")
            self.log(f"train/{name}", value, prog_bar=shown, batch_size=len(reals))
        self.log("train/iteration", float(self.iteration), batch_size=len(reals))

    def on_train_batch_end(self, outputs: object, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.trainer.is_last_batch and self.trainer.world_size > 1:
            # Ranks saw other samples: before validation and checkpoint they agree on batch norm's statistics (P 4.1).
            buffers = (buffer for part in self.stage_modules(self.stage) for buffer in part.buffers())
            for buffer in filter(torch.is_floating_point, buffers):
                buffer.copy_(self.trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))

    def on_train_epoch_end(self) -> None:
        if self.current_epoch + 1 == self._stage_ends[self.stage] and self._contrast < FLAT:
            rank_zero_warn(f"{self.stage_name}: samples of almost one colour; try module.batch_norm=true")
        super().on_train_epoch_end()

    def _sizes(self, size: Sequence[int]) -> list[tuple[int, int]]:
        """Sizes of the stages trained so far for an output of `size`."""
        return [proportional_size(size, self.image_size, own) for own in self.sizes[: max(self.stage, 0) + 1]]

    @torch.no_grad()
    def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
        """See `GenerativeModule.sample`; while coarser stages train, their output is enlarged."""
        sizes = self._sizes(size or self.image_size)
        return resize(self.generator(self.draw(num_images, sizes), sizes, self.amplitudes), size or self.image_size)

    @torch.no_grad()
    def inject(self, images: Tensor, scale: int = 0) -> Tensor:
        """The images [N, 3, H, W] re-made with the training image's patches; any size, same size out.

        Paper: images enter at stage 0; here `scale` > 0 also keeps their details up to the size of that stage, and
        noise is random above it only. Not for mode `animation`, which has seen noise only.
        """
        self._check_scale("scale", scale)
        sizes = self._sizes(images.shape[-2:])
        stage = min(scale, len(sizes) - 1)
        fixed, noise = self.fixed_inputs(sizes)[1 : stage + 1], self.draw(len(images), sizes)[stage + 1 :]
        coarse, detailed = resize(images, sizes[0]), resize(images, sizes[stage]) if stage else None
        out = self.generator([coarse, *fixed, *noise], sizes, self.amplitudes, detailed, stage)
        return resize(out, images.shape[-2:])

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """The images [N, 3, H, W] through all stages with the training image's fixed noise.

        In mode `animation` the training image for any image, because images are no inputs there.
        """
        sizes = self._sizes(images.shape[-2:])
        inputs, coarse = self.fixed_inputs(sizes), resize(images, sizes[0])
        inputs[0] = inputs[0].expand_as(coarse) if self.hparams.mode == "animation" else coarse
        return resize(self.generator(inputs, sizes, self.amplitudes), images.shape[-2:])

    @torch.no_grad()
    def walk(self, num_frames: int, alpha: float = 0.1, beta: float = 0.9, start_scale: int = 0) -> Tensor:
        """Frames [num_frames, 3, H, W] of an animation: a random walk of the inputs that begins at the training image.

        `alpha` pulls back to the image, `beta` near 1 makes the motion smooth; scales below `start_scale` stay at rest.
        """
        self._check_scale("start_scale", start_scale)
        sizes = self._sizes(self.image_size)
        rest = self.fixed_inputs(sizes)
        walks = [random_walk(z, alpha, beta) if n >= start_scale else repeat(z) for n, z in enumerate(rest)]
        steps = islice(zip(*walks, strict=False), num_frames)  # lazily: noise of features is larger than the frames
        return resize(torch.cat([self.generator(z, sizes, self.amplitudes) for z in steps]), self.image_size)

    def _check_scale(self, name: str, scale: int) -> None:
        if not 0 <= scale < self.num_scales:
            raise ValueError(f"{name} is {scale}; there are the scales 0 (coarsest) to {self.num_scales - 1} (finest)")

    def diagnostics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        """Reconstruction RMSE of the training image in [-1, 1] at the size of the stage in training; amplitudes."""
        stage, image = max(self.stage, 0), sets["image"][0].unsqueeze(0).to(self.device)
        error = resize(self.reconstruct(image), self.sizes[stage]) - resize(image, self.sizes[stage])
        numbers = {f"reconstruction_rmse_scale{stage}": float(error.square().mean().sqrt())}
        return numbers | {f"noise_amplitude_scale{n}": float(a) for n, a in enumerate(self.amplitudes[: stage + 1])}


def concurrent_sizes(
    image_size: tuple[int, int], min_size: int, num_scales: int, even: bool = False
) -> list[tuple[int, int]]:
    """Heights and widths from coarsest to finest by the released code's rule; `min_size` is the shorter first side.

    Scale i < S = num_scales - 1 has the factor r^e with e = (S - 1) / ln S * ln(S - i) + 1, so that scales crowd at low
    resolution; `even`: e = S - i. ValueError with less than three scales (two if even) or no room for them.
    """
    last, short, least = num_scales - 1, min(image_size), 2 if even else 3
    if num_scales < least:
        raise ValueError(f"num_scales is {num_scales}; at least {least} are needed")
    if short <= min_size:
        size = f"image_size [{image_size[0]}, {image_size[1]}]"
        raise ValueError(f"{size}: the shorter side has to be larger than min_size {min_size}, the coarsest scale")
    ratio = (min_size / short) ** (1 / last)
    exponents = [last - i if even else (last - 1) / math.log(last) * math.log(last - i) + 1 for i in range(last)]
    factors = [*(ratio**e for e in exponents), 1.0]
    return [tuple(math.ceil(side * factor - ROUNDING) for side in image_size) for factor in factors]


class RepeatedAdam(Adam):
    """Adam with several steps on each gradient: the released code calls backward once and then the optimizer thrice."""

    def __init__(self, params: list[dict], lr: float, betas: tuple[float, float], repeats: int) -> None:
        super().__init__(params, lr, betas)
        self.repeats = repeats

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = super().step(closure)
        for _ in range(self.repeats - 1):
            super().step()
        return loss


def random_walk(anchor: Tensor, alpha: float, beta: float, first_step: float = 0.01) -> Iterator[Tensor]:
    """Endless z_0 = anchor, z_1, ...: z_{t+1} = alpha anchor + (1 - alpha) (z_t + beta (z_t - z_{t-1}) + (1 - beta) u).

    u is Gaussian (SinGAN's animation, Rott Shaham et al. 2019; the first step is that of ConSinGAN's code).
    """
    before, now = anchor, torch.lerp(anchor, torch.randn_like(anchor), first_step)
    yield before
    while True:
        yield now
        moved = now + beta * (now - before) + (1 - beta) * torch.randn_like(anchor)
        before, now = now, alpha * anchor + (1 - alpha) * moved


def degrade(image: Tensor) -> Tensor:
    """An image [3, H, W] with other brightness, colours, grey, noise (each with chance 0.25) and cut-outs (0.9).

    Paper: transforms of a library with these chances; here: the like of them. Cut-outs become one random colour each.
    """
    chance = torch.rand(5).tolist()
    if chance[0] < 0.25:
        image = image * float(0.5 + torch.rand(())) + float(0.8 * torch.rand(()) - 0.4)
    if chance[1] < 0.25:
        image = image + (0.8 * torch.rand(3, 1, 1) - 0.4).to(image)
    if chance[2] < 0.25:
        image = luma(image.unsqueeze(0))[0].expand(3, -1, -1)
    if chance[3] < 0.25:
        image = image + float(0.3 * torch.rand(())) * torch.randn_like(image)
    image = image.clamp(-1, 1)
    for _ in range(int(torch.randint(1, 6, ())) if chance[4] < 0.9 else 0):
        image[_random_place(image, _random_sides(image))] = (2 * torch.rand(3, 1, 1) - 1).to(image)
    return image


def move_tiles(image: Tensor) -> Tensor:
    """An image [3, H, W] with one to five of its rectangles copied to other places."""
    moved = image.clone()
    for _ in range(int(torch.randint(1, 6, ()))):
        sides = _random_sides(image)
        moved[_random_place(image, sides)] = image[_random_place(image, sides)]
    return moved


def _random_sides(image: Tensor) -> list[int]:
    """Height and width from an eighth to a third of an image's [3, H, W]."""
    return [int(torch.randint(max(1, side // 8), max(1, side // 3) + 1, ())) for side in image.shape[-2:]]


def _random_place(image: Tensor, sides: Sequence[int]) -> tuple[slice, ...]:
    starts = [int(torch.randint(full - side + 1, ())) for full, side in zip(image.shape[-2:], sides, strict=True)]
    return slice(None), *(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
