"""One iteration of SinGAN (3 critic and 3 generator steps) in a fit against a plain loop without Lightning, in one run.

    python -m tests.benchmarks.singan_iteration [--sizes 25 64 128] [--seconds 12] [--threads 1] [--channels-last]

The fit is that of train.py with configs/singan.yaml, but for pictures, metrics and W&B. Its iterations and those of the
loop take turns, both from the same weights and random numbers; medians count, and how far the weights of the two are
apart in the end is printed (`max diff`): 0 means equal bits. Shares are of the loop's iteration: the frozen generators
that make the inputs, the penalty (what an iteration without it saves), Adam; `overhead`: what the fit costs on top.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train
from cli.loader import load_config
from modules.singan import SinGAN


def convolutions(width: int, outputs: int) -> nn.Sequential:
    """Five 3x3 convolutions without padding, with batch norm and LeakyReLU 0.2 behind the first four."""
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.Conv2d(width if i else 3, width, 3), nn.BatchNorm2d(width), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(width, outputs, 3))


def enlarge(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)


class PlainLoop:
    """SinGAN's training of its last scale as one would write it down, beginning with the weights of `module`."""

    def __init__(self, module: SinGAN, memory_format: torch.memory_format) -> None:
        pyramid, stage = module.pyramid, module.stage
        self.sizes, self.amplitudes = module.sizes[: stage + 1], pyramid.noise_amplitudes
        self.generators = [convolutions(width, 3) for width in module.widths[: stage + 1]]
        self.critic = convolutions(module.widths[stage], 1)
        for own, other in zip(self.generators, pyramid.generators, strict=False):
            own.load_state_dict(other.body.state_dict())
            own.eval().requires_grad_(False).to(memory_format=memory_format)
        self.critic.load_state_dict(module.discriminators[stage].state_dict())
        self.critic.to(memory_format=memory_format)
        self.generator = self.generators[stage].train().requires_grad_(True)
        rates = {"lr": 5e-4, "betas": (0.5, 0.999), "fused": True}
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), **rates)
        self.generator_adam = torch.optim.Adam(self.generator.parameters(), **rates)
        self.real, self.reconstruction_input = module._real, module._reconstruction_input
        self.reconstruction_noise = F.pad(pyramid.zstar, [5] * 4).expand(1, 3, -1, -1)
        if stage:
            self.reconstruction_noise = torch.zeros(1, 3, *(side + 10 for side in self.sizes[stage]))
        self.seconds = {"chain": 0.0, "Adam": 0.0}

    def timed(self, part: str, function: Callable, *arguments) -> Tensor:
        start = time.perf_counter()
        result = function(*arguments)
        self.seconds[part] += time.perf_counter() - start
        return result

    def noise(self, scale: int, number: int) -> Tensor:
        noise = torch.randn(number, 3 if scale else 1, *self.sizes[scale])
        return F.pad(noise, [5] * 4).expand(-1, 3, -1, -1)

    def make(self, scale: int, noise: Tensor, below: Tensor) -> Tensor:
        return torch.tanh(self.generators[scale](self.amplitudes[scale] * noise + F.pad(below, [5] * 4))) + below

    @torch.no_grad()
    def inputs(self) -> Tensor:
        noises = [self.noise(scale, 3) for scale in range(len(self.sizes) - 1)]
        images = torch.zeros(3, 3, *self.sizes[0])
        for scale, noise in enumerate(noises):
            images = enlarge(self.make(scale, noise, images), self.sizes[scale + 1])
        return images

    def penalty(self, fakes: Tensor) -> Tensor:
        between = torch.lerp(fakes, self.real, torch.rand(1, 1, 1, 1)).requires_grad_()
        (gradient,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        return (gradient.norm(2, dim=(1,)) - 1).square().mean()

    def iterate(self, with_penalty: bool = True) -> None:
        last = len(self.sizes) - 1
        noise = self.noise(last, 1)
        inputs = self.timed("chain", self.inputs).split(1)
        self.generator.requires_grad_(False)
        for below in inputs:
            fakes = self.make(last, noise, below)
            score = self.critic(self.real).mean()
            loss = self.critic(fakes).mean() - score
            if with_penalty:
                loss = loss + 0.1 * self.penalty(fakes)
            self.critic_adam.zero_grad()
            loss.backward()
            self.timed("Adam", self.critic_adam.step)
        self.generator.requires_grad_(True)
        self.critic.requires_grad_(False)
        for _ in range(3):
            loss = -self.critic(self.make(last, noise, inputs[-1])).mean()
            loss = loss + 10 * F.mse_loss(self.make(last, self.reconstruction_noise, self.reconstruction_input), self.real)
            self.generator_adam.zero_grad()
            loss.backward()
            self.timed("Adam", self.generator_adam.step)
        self.critic.requires_grad_(True)

    def distance(self, module: SinGAN) -> float:
        """Largest difference of a weight from that of `module`."""
        own = [*self.generator.parameters(), *self.critic.parameters()]
        others = [p for part in module.stage_modules(module.stage) for p in part.parameters()]
        return max(float((a - b).abs().max()) for a, b in zip(own, others, strict=True))


class Turns(lightning.Callback):
    """Between two iterations of the fit one of the loop, from the same random numbers."""

    def __init__(self, seconds: float, memory_format: torch.memory_format) -> None:
        self.times: dict[str, list[float]] = {"fit": [], "loop": [], "chain": [], "Adam": []}
        self.budget, self.memory_format, self.loop, self.since = seconds, memory_format, None, 0.0

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        now = time.perf_counter()
        if self.loop is None:
            self.loop, self.begin = PlainLoop(module, self.memory_format), now
        elif batch_idx > 1:
            self.times["fit"].append(now - self.since)
        state, self.loop.seconds = torch.get_rng_state(), dict.fromkeys(self.loop.seconds, 0.0)
        start = time.perf_counter()
        self.loop.iterate()
        if batch_idx > 1:
            self.times["loop"].append(time.perf_counter() - start)
            for part, seconds in self.loop.seconds.items():
                self.times[part].append(seconds)
        torch.set_rng_state(state)
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if time.perf_counter() - self.begin > 0.75 * self.budget:
            trainer.should_stop = True

    def on_train_end(self, trainer, module) -> None:
        self.apart = self.loop.distance(module)
        self.times["no penalty"] = []
        while time.perf_counter() - self.begin < self.budget or len(self.times["no penalty"]) < 5:
            start = time.perf_counter()
            self.loop.iterate(with_penalty=False)
            self.times["no penalty"].append(time.perf_counter() - start)


def measure(size: int, options: argparse.Namespace) -> str:
    """A row of the table for images of size x size at their last scale; 25 is scale 0."""
    turns = Turns(options.seconds, torch.channels_last if options.channels_last else torch.contiguous_format)
    arguments = ["trainer.accelerator=cpu", "trainer.max_epochs=1", "logger.wandb=null", "callbacks.images=null"]
    arguments += ["callbacks.metrics=null", "datamodule.samples_per_epoch=1000000", "module.epochs_per_stage=1"]
    arguments += [f"datamodule.image_size=[{max(size, 33)},{max(size, 33)}]", "module.scale_factor=0.75"]
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(["configs/singan.yaml", *arguments, f"run_dir={folder}/run"])
        trainer, module, data, _ = train.prepare(config, dry_run=False)
        if size > 25:
            module._stage_ends = [0] * (module.num_scales - 1) + [1]  # straight to the last stage
        trainer.callbacks.insert(0, turns)
        trainer.fit(module, data)
    medians = {name: statistics.median(times) for name, times in turns.times.items()}
    loop, fit = medians["loop"], medians["fit"]
    shares = [medians["chain"], loop - medians["no penalty"], medians["Adam"], fit - loop]
    cells = [f"{size:4d}", f"{1e3 * fit:8.1f}", f"{1e3 * loop:8.1f}", f"{fit / loop:6.3f}"]
    cells += [f"{share / loop:9.1%}" for share in shares]
    return "  ".join([*cells, f"{len(turns.times['fit']):6d}", f"{turns.apart:.0e}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[25, 64, 128])
    parser.add_argument("--seconds", type=float, default=12, help="for each size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels-last", action="store_true", help="networks of the loop in that memory format")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(size, options) for size in options.sizes]
    print(f"{options.threads} thread(s), milliseconds an iteration")
    print("size       fit      loop   ratio     inputs    penalty       Adam   overhead   turns  max diff")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
