"""Metrics of samples that two processes hold, one more than the other, equal those of one process."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from metrics.backbones.random_cnn import RandomCNN
from metrics.feature_metric import FeatureMetric
from metrics.frechet import ExtrapolatedFrechet, FrechetDistance
from metrics.inception_score import InceptionScore
from metrics.kernel import KernelDistance
from metrics.manifold import ManifoldScores
from metrics.perceptual_distance import PerceptualDistance
from metrics.perceptual_diversity import PerceptualDiversity


def rows(number: int, seed: int) -> Tensor:
    return torch.randn(number, 4, generator=torch.Generator().manual_seed(seed))


def pictures(number: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (number, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


METRICS: dict[str, tuple[Callable[[], Metric], Tensor]] = {
    "frechet": (lambda: FrechetDistance(rows(6, 0)), rows(9, 1)),
    "kernel": (lambda: KernelDistance(rows(6, 0)), rows(9, 1)),
    "manifold": (lambda: ManifoldScores(rows(50, 0)), rows(57, 1)),
    "extrapolated": (lambda: ExtrapolatedFrechet(rows(2000, 0)), rows(1001, 1)),
    "inception score": (lambda: InceptionScore(rows(0, 0), rows(5, 2)), rows(5001, 1)),
    "perceptual": (lambda: PerceptualDiversity(pictures(3, 0), PerceptualDistance(RandomCNN())), pictures(9, 1)),
}


def compute(metric: Metric, samples: Tensor, chunks: list[tuple[int, int]]) -> dict[str, float]:
    for first, last in chunks:
        metric.update(samples[first:last], first)
    values = metric.compute()
    values = values if isinstance(values, dict) else {"value": values}
    return {key: float(value) for key, value in values.items()}


def chunks_of(number: int, rank: int, ranks: int) -> list[tuple[int, int]]:
    """Chunks of 4, dealt out in turn; the last is smaller."""
    starts = range(0, number, 4)
    return [(starts[i], min(starts[i] + 4, number)) for i in range(rank, len(starts), ranks)]


def work(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = {
        name: compute(new(), samples, [(0, 0), *chunks_of(len(samples), rank, 2)])
        for name, (new, samples) in METRICS.items()
    }
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", METRICS)
def test_two_processes_equal_one(of_two: list[dict], name: str) -> None:
    new, samples = METRICS[name]
    expected = compute(new(), samples, chunks_of(len(samples), 0, 1))
    for found in of_two:
        assert found[name] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("new", "reals", "fakes", "needed"),
    [
        (FrechetDistance, 2, 1, "2 samples and 2 of the reference, got 1 and 2"),
        (KernelDistance, 1, 9, "2 samples and 2 of the reference, got 9 and 1"),
        (ManifoldScores, 49, 50, "50 samples and 50 of the reference, got 50 and 49"),
        (ManifoldScores, 50, 49, "50 samples and 50 of the reference, got 49 and 50"),
        (ExtrapolatedFrechet, 1999, 1000, "1000 samples and 2000 of the reference, got 1000 and 1999"),
        (ExtrapolatedFrechet, 2000, 999, "1000 samples and 2000 of the reference, got 999 and 2000"),
        (lambda reals: InceptionScore(reals, rows(5, 2)), 0, 4999, "5000 samples, got 4999"),
    ],
)
def test_too_few_rows_are_refused(new: Callable[[Tensor], FeatureMetric], reals: int, fakes: int, needed: str) -> None:
    metric = new(rows(reals, 0))
    metric.update(rows(fakes, 1))
    with pytest.raises(ValueError, match=rf"^{type(metric).__name__} needs at least {needed}$"):
        metric.compute()


def test_rows_are_in_the_order_of_their_numbers() -> None:
    class Kept(FeatureMetric):
        def value(self, reals: Tensor, fakes: Tensor) -> Tensor:
            return fakes[:, 0]

    metric = Kept(rows(2, 0))
    for first, last in ((6, 9), (0, 0), (0, 6)):
        metric.update(rows(9, 1)[first:last], first)
    assert torch.equal(metric.compute(), rows(9, 1)[:, 0])
