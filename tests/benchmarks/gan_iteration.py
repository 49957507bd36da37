"""An iteration of SNGAN, BigGAN and SNGAN with DISP in a fit against a plain loop without Lightning, one thread.

    python -m tests.benchmarks.gan_iteration [--rounds 8] [--iterations 20]

The loop has the same networks, optimizers and losses. Short fits and loops take turns, so that other programs on the machine
disturb both; medians of all iterations count. The prior's cost is the median of its fits against that of SNGAN's fits.
"""

import argparse
import copy
import statistics
import time

import lightning
import torch
import torch.nn.functional as F

from cli.build import build
from cli.loader import load_config
from datamodules.image_datamodule import ImageDataModule


class Clock(lightning.Callback):
    """CPU seconds from the end of an iteration to that of the next one."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.ends.append(time.process_time())

    @property
    def seconds(self) -> list[float]:
        return [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]


def fit(name: str, iterations: int) -> tuple[list[float], torch.nn.Module]:
    """Seconds of the iterations of a fit as train.py's, without pictures, metrics and files."""
    config = load_config([f"configs/{name}.yaml", f"module.iterations={iterations}", "module.standing_batches=0"])
    data = config.datamodule
    samples = data.batch_size * config.module.n_dis * iterations
    datamodule = ImageDataModule(data.root, data.image_size, data.batch_size, samples, labels=data.labels)
    lightning.seed_everything(0, verbose=False)
    module, clock = build(config.module), Clock()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=-1, num_sanity_val_steps=0, callbacks=[clock], **quiet)
    trainer.fit(module, datamodule)
    return clock.seconds[1:], module


def loop(module: torch.nn.Module, iterations: int, batch: int) -> list[float]:
    """The same written down, with classes or without."""
    hp, classes = module.hparams, module.condition_dim
    generator, discriminator = copy.deepcopy(module.generator).train(), copy.deepcopy(module.discriminator).train()
    average = copy.deepcopy(generator).requires_grad_(False)
    for net in (generator, discriminator):
        net.requires_grad_(True)
    g_adam = torch.optim.Adam(generator.parameters(), hp.lr_g, tuple(hp.betas))
    d_adam = torch.optim.Adam(discriminator.parameters(), hp.lr_d, tuple(hp.betas))
    images = torch.rand(100, 3, *module.image_size) * 2 - 1
    seconds = []

    def vectors() -> torch.Tensor | None:
        return F.one_hot(torch.randint(classes, (batch,)), classes).float() if classes else None

    for _ in range(iterations):
        start = time.process_time()
        for _ in range(hp.n_dis):
            reals, real_y, fake_y = images[torch.randint(100, (batch,))], vectors(), vectors()
            with torch.no_grad():
                fakes = generator(torch.randn(batch, hp.z_dim), fake_y)
            if module.joined_batches:
                joined = None if fake_y is None else torch.cat([fake_y, real_y])
                fake, real = discriminator(torch.cat([fakes, reals]), joined).logits.chunk(2)
            else:
                real, fake = discriminator(reals, real_y).logits, discriminator(fakes, fake_y).logits
            d_adam.zero_grad()
            (F.relu(1 - real).mean() + F.relu(1 + fake).mean()).backward()
            d_adam.step()
        discriminator.requires_grad_(False)
        y = vectors()
        g_adam.zero_grad()
        (-discriminator(generator(torch.randn(batch, hp.z_dim), y), y).logits.mean()).backward()
        g_adam.step()
        discriminator.requires_grad_(True)
        with torch.no_grad():
            for mean, value in zip(average.parameters(), generator.parameters(), strict=True):
                mean.lerp_(value, 1 - hp.ema_decay)
        seconds.append(time.process_time() - start)
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ("sngan", "biggan", "disp_sngan")
    fits: dict[str, list[float]] = {name: [] for name in names}
    loops: dict[str, list[float]] = {name: [] for name in names[:2]}
    for _ in range(arguments.rounds):
        for name in names:
            seconds, module = fit(name, arguments.iterations)
            fits[name] += seconds
            if name in loops:
                loops[name] += loop(module, arguments.iterations, 16)
    medians = {name: statistics.median(seconds) for name, seconds in fits.items()}
    for name in loops:
        plain = statistics.median(loops[name])
        print(f"{name}: fit {1000 * medians[name]:.1f} ms, loop {1000 * plain:.1f} ms, {medians[name] / plain:.3f} times")
    print(f"DISP on SNGAN: {1000 * medians['disp_sngan']:.1f} ms, {medians['disp_sngan'] / medians['sngan']:.3f} times SNGAN")


if __name__ == "__main__":
    main()
