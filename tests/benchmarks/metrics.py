"""Cost of the measurements of a test: CPU-seconds of the whole default suite, passes of the diversity around images.

    python -m tests.benchmarks.metrics [IMAGES SIDE REFERENCES]

Without a model: samples are noise. The backbone is loaded before.
"""

import argparse
import resource
import time

import torch
from lightning import Trainer
from torch import Tensor

from callbacks.sample_metrics import SampleMetrics
from datamodules.synthetic import SyntheticDataModule
from metrics.backbones.random_cnn import RandomCNN
from metrics.perceptual_distance import PerceptualDistance
from metrics.perceptual_diversity import PerceptualDiversity
from modules.base import GenerativeModule


class Noise(GenerativeModule):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.image_size = (side, side)

    def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
        noise = torch.rand(num_images, 3, 8, 8) * 2 - 1
        return torch.nn.functional.interpolate(noise, self.image_size, mode="bilinear")


def suite(images: int, side: int, references: int) -> None:
    metrics = SampleMetrics(num_images=images, backbone="mobilenet_v2")
    trainer = Trainer(
        accelerator="cpu", devices=1, callbacks=[metrics], logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    data = SyntheticDataModule([side, side], batch_size=8, num_images=references)
    for name in ("a test, everything", "a validation"):
        measure = trainer.test if name.startswith("a test") else trainer.validate
        begin, wall = time.process_time(), time.monotonic()
        measure(Noise(side), data, verbose=False)
        cpu, wall = time.process_time() - begin, time.monotonic() - wall
        print(f"{images} samples of {side} x {side}, {references} references, {name}: {cpu:.1f} CPU-s, {wall:.1f} s")
    print(f"largest memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def passes() -> None:
    """1000 samples around 10 targets: each image once, where a script goes pair by pair."""

    class Counting(PerceptualDistance):
        seen = 0

        def __call__(self, images: Tensor) -> Tensor:
            self.seen += len(images)
            return super().__call__(images)

    generator = torch.Generator().manual_seed(0)
    low = torch.rand(1010, 3, 4, 4, generator=generator) * 255
    images = torch.nn.functional.interpolate(low, (64, 64), mode="bilinear").to(torch.uint8)
    distance = Counting(RandomCNN())
    metric = PerceptualDiversity(images[:10], distance)
    metric.update(images[10:], 0)
    begin = time.process_time()
    metric.compute()
    seconds = time.process_time() - begin
    sizes = metric.nearest.bincount().clamp(max=50)
    pairwise = int(2 * (1000 * 10 + (sizes * (sizes - 1) // 2).sum()))
    print(f"intra distance of 1000 images, 10 targets: {distance.seen} passes, pair by pair {pairwise}", end=" ")
    print(f"({pairwise / distance.seen:.0f} times as many), {seconds:.1f} CPU-s with the small network")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 100), ("side", 64), ("references", 5)):
        parser.add_argument(name, type=int, nargs="?", default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    suite(options.images, options.side, options.references)
    passes()


if __name__ == "__main__":
    main()
