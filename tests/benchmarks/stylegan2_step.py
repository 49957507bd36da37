"""One iteration of StyleGAN2 (discriminator and generator step, without the lazy terms) in several formulations.

    python -m tests.benchmarks.stylegan2_step [--sizes 32 64 256] [--channels 32] [--batch 4] [--seconds 10] [--threads 1]
        [--reference FOLDER]

Formulations: modulating inputs, as the project does, or weights (grouped convolutions); the FIR filter depth-wise, as the
project does, or on [N·C, 1, H, W]; memory channels first, as the project does, or last. They take turns; medians of CPU
milliseconds count. With a checkout of rosinality's stylegan2-pytorch as FOLDER also its path for machines without CUDA, the
same weights, latents and losses, in turns with the project's: the largest difference of the losses is printed.
"""

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from modules.losses.adversarial import nonsaturating_d, nonsaturating_g
from modules.networks import residual_discriminator, style_generator
from modules.networks.residual_discriminator import ResidualDiscriminator
from modules.networks.style_checkpoints import to_rosinality
from modules.networks.style_generator import EPSILON, ModulatedConv, StyleGenerator
from modules.ops.fir import TAPS


def modulated_weights(self: ModulatedConv, images: Tensor, w: Tensor) -> Tensor:
    """The paper's formulation: a weight of its own for each image, as one grouped convolution."""
    batch_size, inputs = images.shape[:2]
    weight = self.weight * self.scale * self.affine(w)[:, None, :, None, None]
    if self.demodulate:
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + EPSILON)
    images = images.reshape(1, batch_size * inputs, *images.shape[-2:])
    if self.up:
        images = F.conv_transpose2d(images, weight.transpose(1, 2).flatten(0, 1), stride=2, groups=batch_size)
        images = images.reshape(batch_size, -1, *images.shape[-2:])
        return style_generator.filter_images(images, padding=1, gain=4.0)
    images = F.conv2d(images, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=batch_size)
    return images.reshape(batch_size, -1, *images.shape[-2:])


def filter_reshaped(images: Tensor, padding: int, stride: int = 1, gain: float = 1.0) -> Tensor:
    taps = images.new_tensor(TAPS)
    kernel = torch.outer(taps, taps)
    flat = images.reshape(-1, 1, *images.shape[-2:])
    flat = F.conv2d(flat, gain * (kernel / kernel.sum())[None, None], stride=stride, padding=padding)
    return flat.reshape(*images.shape[:2], *flat.shape[-2:])


@contextmanager
def formulation(weights: bool = False, reshaped: bool = False):
    with ExitStack() as stack:
        if weights:
            stack.enter_context(patch.object(ModulatedConv, "forward", modulated_weights))
        if reshaped:
            for module in (style_generator, residual_discriminator):
                stack.enter_context(patch.object(module, "filter_images", filter_reshaped))
        yield


class Step:
    """Networks with optimizers; a call is one iteration with the same fakes in both steps and gives the two losses."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module, generate: Callable, discriminate: Callable) -> None:
        self.parts, self.generate, self.discriminate = (generator, discriminator), generate, discriminate
        self.optimizers = [Adam(part.parameters(), 0.002, (0.0, 0.99)) for part in self.parts]

    def __call__(self, z: Tensor, reals: Tensor) -> tuple[float, float]:
        (generator, discriminator), (g_opt, d_opt) = self.parts, self.optimizers
        fakes = self.generate(generator, z)
        d_opt.zero_grad()
        loss_d = nonsaturating_d(self.discriminate(discriminator, reals), self.discriminate(discriminator, fakes.detach()))
        loss_d.backward()
        d_opt.step()
        discriminator.requires_grad_(False)
        g_opt.zero_grad()
        loss_g = nonsaturating_g(self.discriminate(discriminator, fakes))
        loss_g.backward()
        g_opt.step()
        discriminator.requires_grad_(True)
        return float(loss_d.detach()), float(loss_g.detach())


def project_step(side: int, channels: list[int] | None, multiplier: float, last: bool = False) -> Step:
    torch.manual_seed(0)
    settings = {"channel_multiplier": multiplier, "channels": channels}
    generator, discriminator = StyleGenerator(side, **settings), ResidualDiscriminator(side, **settings)
    memory = torch.channels_last if last else torch.contiguous_format
    for part in (generator, discriminator):
        part.to(memory_format=memory)

    def discriminate(d: nn.Module, x: Tensor) -> Tensor:
        return d(x.contiguous(memory_format=memory)).logits

    return Step(generator, discriminator, lambda g, z: g(z, "const").images, discriminate)


def reference_step(folder: Path, project: Step, side: int, multiplier: int) -> Step:
    """Rosinality's networks with the project's weights; its extensions are not compiled, which its CPU path does not use."""
    sys.path.insert(0, str(folder))
    with patch("torch.utils.cpp_extension.load", lambda *_, **__: SimpleNamespace()):
        model = importlib.import_module("model")
    state = {f"{name}.{key}": value for name, part in zip(("generator", "discriminator"), project.parts, strict=True)
             for key, value in part.state_dict().items()}  # fmt: skip
    layers = len(project.parts[0].mapping_layers)
    generator, discriminator = model.Generator(side, 512, layers, multiplier), model.Discriminator(side, multiplier)
    weights = to_rosinality(state)
    generator.load_state_dict(weights["g"])
    discriminator.load_state_dict(weights["d"])
    generate = lambda g, z: g([z], randomize_noise=False)[0]  # noqa: E731
    return Step(generator, discriminator, generate, lambda d, x: d(x))


def compare(steps: dict[str, tuple[Step, dict]], side: int, batch: int, seconds: float) -> dict[str, list]:
    """CPU milliseconds of each and the losses; the first turn is not counted."""
    times: dict[str, list] = {name: [] for name in steps}
    losses: dict[str, list] = {name: [] for name in steps}
    end, turn = time.monotonic() + seconds * len(steps), 0
    while time.monotonic() < end or turn < 4:
        generator = torch.Generator().manual_seed(turn)
        z, reals = torch.randn(batch, 512, generator=generator), torch.randn(batch, 3, side, side, generator=generator)
        for name, (step, choice) in steps.items():
            with formulation(**choice):
                begin = time.process_time()
                losses[name].append(step(z, reals))
                times[name] += [1000 * (time.process_time() - begin)] if turn else []
        turn += 1
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians))
    difference = max(abs(a - b) for name in losses for x, y in zip(losses[first][:1], losses[name][:1], strict=True)
                     for a, b in zip(x, y, strict=True))  # fmt: skip
    for name, value in medians.items():
        print(f"  {name:40} {value:9.1f} ms   × {value / medians[first]:.2f}")
    print(f"  largest difference of the first losses {difference:.1e}, {turn} turns", flush=True)
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 256])
    parser.add_argument("--channels", type=int, default=32, help="at 4 to 16 pixels; half as many at each size above")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10, help="for each formulation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reference", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for side in options.sizes:
        channels = [max(8, min(options.channels, options.channels * 16 // 2**k)) for k in range(2, side.bit_length())]
        print(f"{side} pixels, channels {channels}, batch {options.batch}")
        plain = {"modulated inputs, depth-wise": {}, "modulated weights, depth-wise": {"weights": True},
                 "modulated inputs, reshaped filter": {"reshaped": True}}  # fmt: skip
        steps = {name: (project_step(side, channels, 2), choice) for name, choice in plain.items()}
        steps["modulated inputs, depth-wise, channels last"] = (project_step(side, channels, 2, last=True), {})
        compare(steps, side, options.batch, options.seconds)
    if options.reference:
        side, multiplier = 64, 1
        print(f"{side} pixels, published channels × {multiplier}, batch {options.batch}, against {options.reference.name}")
        project = project_step(side, None, multiplier)
        steps = {"project": (project, {}), "reference": (reference_step(options.reference, project, side, multiplier), {})}
        compare(steps, side, options.batch, options.seconds)


if __name__ == "__main__":
    main()
