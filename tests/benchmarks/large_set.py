"""Memory and time of training on, and of measuring against, 30,000 images of 256×256: too many to keep decoded (5.5 GiB).

    python -m tests.benchmarks.large_set [number of images, default 30000] [--measure] [--max-reference 10000]

Writes that many JPEG files into a temporary folder (about 0.6 GB), then starts two processes one after the other, each of
which sets up the data module with its default `max_memory_gib`, checks the images, takes the fingerprints and trains a
one-stage GAN for 100 iterations of 8 images with two loader workers. Prints a JSON object for each: seconds of the start and
of the training, and the peak memory in MB of the process and of its largest worker.

With --measure one process measures 100 samples of noise against the images, with all metrics, as evaluate.py does.

Measured with 30,000 images on 2 shared cores (load average 16): the process 1,028 MB at most, of which 805 MB are imports,
each of the two workers 543 MB, together 2.1 GB; a second start takes 21 s under that load. The measurement: 3,227 MB at
most, its worker 461 MB, 565 s on one thread.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import lightning
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from callbacks.sample_metrics import SampleMetrics
from datamodules.image_datamodule import ImageDataModule
from tests.benchmarks.metrics import Noise

SIZE = 256


class ToyGAN(lightning.LightningModule):
    """A generator and a critic of a few layers with alternating steps."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        layers = [nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=8), nn.Conv2d(16, 3, 3, padding=1)]
        self.generator = nn.Sequential(*layers, nn.Tanh())
        self.critic = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 4, 4))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(part.parameters(), 1e-4) for part in (self.generator, self.critic)]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for_generator, for_critic = self.optimizers()
        fake = self.generator(torch.randn(len(batch["image"]), 8, SIZE // 8, SIZE // 8))
        real_score, fake_score = self.critic(batch["image"]), self.critic(fake.detach())
        for_critic.zero_grad()
        self.manual_backward((1 - real_score).relu().mean() + (1 + fake_score).relu().mean())
        for_critic.step()
        for_generator.zero_grad()
        self.manual_backward(-self.critic(fake).mean())
        for_generator.step()


def write_images(folder: Path, number: int) -> None:
    """JPEG files of different content: 32 encoded pictures, each with a comment that is the file's index."""
    chance, encoded = np.random.default_rng(0), []
    for _ in range(32):
        cells = chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        data = BytesIO()
        Image.fromarray(cells).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(data, "JPEG", quality=95)
        encoded.append(data.getvalue())
    for index in range(number):
        start, rest = encoded[index % 32][:2], encoded[index % 32][2:]
        (folder / f"{index:06d}.jpg").write_bytes(start + b"\xff\xfe\x00\x0a" + f"{index:08d}".encode() + rest)


def fit(folder: str, *, iterations: int = 100, **keys: float) -> dict[str, float]:
    """Trains in this process and measures it."""
    before, start = _peak(resource.RUSAGE_SELF), time.perf_counter()
    data = ImageDataModule(folder, [SIZE, SIZE], batch_size=8, samples_per_epoch=8 * iterations, num_workers=2, **keys)
    data.setup("fit")
    data.check_images()
    data.fingerprints()
    ready = time.perf_counter()
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(ToyGAN(), data)
    return {
        "images": len(data.sets()["image"]),
        "start_seconds": round(ready - start, 1),
        "training_seconds": round(time.perf_counter() - ready, 1),
        "imports_mb": before,
        "peak_mb": _peak(resource.RUSAGE_SELF),
        "peak_worker_mb": _peak(resource.RUSAGE_CHILDREN),
    }


def evaluation(folder: str, **keys: int | None) -> dict[str, float]:
    """Measures samples in this process."""
    before, start = _peak(resource.RUSAGE_SELF), time.perf_counter()
    data, metrics = ImageDataModule(folder, [SIZE, SIZE], batch_size=8), SampleMetrics(num_images=100, **keys)
    data.setup("test")
    lightning.Trainer(
        accelerator="cpu", callbacks=[metrics], logger=False, enable_progress_bar=False, enable_model_summary=False,
    ).test(Noise(SIZE), datamodule=data, verbose=False)  # fmt: skip
    return {
        "images": len(data.sets()["image"]),
        "measured": metrics.results["protocol"]["num_real"],
        "metrics": len(metrics.results["metrics"]),
        "seconds": round(time.perf_counter() - start, 1),
        "imports_mb": before,
        "peak_mb": _peak(resource.RUSAGE_SELF),
        "peak_worker_mb": _peak(resource.RUSAGE_CHILDREN),
    }


def _peak(who: int) -> int:
    """Largest resident memory so far, in MB."""
    return resource.getrusage(who).ru_maxrss * 1024 // 10**6


def measure(number: int, folder: Path, function: str = "fit", times: int = 2, **keys: float | None) -> list[dict[str, float]]:
    """A function of this file in new processes; the second one finds the fingerprints that the first has cached."""
    images = folder / "images"
    images.mkdir()
    write_images(images, number)
    time.sleep(6)  # only files that have been left alone for 5 seconds are cached
    call = f"{function}({str(images)!r}, **{keys})"
    program = f"import json; from tests.benchmarks.large_set import {function}; print(json.dumps({call}))"
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", program]
    outputs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(times)]
    return [json.loads(output.stdout.splitlines()[-1]) for output in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=int, nargs="?", default=30_000)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--max-reference", type=int, default=10_000)
    options = parser.parse_args()
    what = {"function": "evaluation", "times": 1, "max_reference": options.max_reference} if options.measure else {}
    with tempfile.TemporaryDirectory() as temporary:
        for results in measure(options.images, Path(temporary), **what):
            print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
