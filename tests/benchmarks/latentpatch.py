"""Speed of LatentPatch's synthesis on random codes, and of its tables against gathered features with a matrix product.

    python -m tests.benchmarks.latentpatch [--images 16] [--threads 1]

Seconds are CPU time of this process without decoding; the limits are those that the project promises on one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from modules.patches.latent_patches import LatentSources, compose, interpolate, latent_sizes, plan_windows
from tests.benchmarks.gpnn import memory_peak


class Case(NamedTuple):
    sources: int
    patch: int
    scales: int
    limit: float | None  # seconds


CASES = (
    Case(16, 4, 1, 0.5), Case(16, 4, 5, 0.5), Case(1_000, 6, 1, None), Case(1_000, 6, 5, None), Case(3_600, 4, 1, 4.0),
    Case(3_600, 4, 5, 4.0), Case(30_000, 6, 1, None), Case(30_000, 6, 5, None),
)  # fmt: skip
SIZE, CODES, RANK = (16, 16), 256, 16


def random_sources(number: int) -> LatentSources:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, CODES, (number, *SIZE), generator=generator, dtype=torch.int16)
    return LatentSources(codes, torch.randn(CODES, RANK, generator=generator))


def synthesize(sources: LatentSources, case: Case, images: int) -> Tensor:
    sizes = latent_sizes(SIZE, case.scales)
    features = torch.zeros(images, sizes[0][0] * sizes[0][1], RANK)
    for number, size in enumerate(sizes):
        windows = plan_windows(size, case.patch, -(-case.patch // 3), masked=number == 0)
        features = interpolate(features, sizes[max(number - 1, 0)], size)
        origin = compose(sources.at(size), features, windows, torch.rand(images, len(windows), 2), 3)
    return origin


def gathered(sources: LatentSources, query: Tensor, cells: Tensor) -> Tensor:
    """Distances [G, B] the usual way: features of all sources in the window, and their product with the queries."""
    features = sources.book[sources.codes[:, cells].long()].flatten(1)
    product = query.flatten(1) @ features.T
    return features.square().sum(1) - 2 * product + query.square().sum((1, 2)).unsqueeze(1)


def seconds(*functions: Callable[[], object], repeats: int = 1) -> list[float]:
    """Median CPU time of each function; they are called in turns, as a shared machine is not always equally fast."""
    times = [[] for _ in functions]
    for _ in range(repeats):
        for function, own in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            own.append(time.process_time() - start)
    return list(map(statistics.median, times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for case in CASES:
        memory_peak(reset=True)
        sources = random_sources(case.sources)
        (spent,) = seconds(lambda case=case, sources=sources: synthesize(sources, case, arguments.images))
        limit = f" (limit {case.limit} s)" if case.limit else ""
        text = f"{case.sources:6,} sources, patch {case.patch}, {case.scales} scale(s): {spent:.2f} s{limit}"
        print(f"{text}, {memory_peak():.0f} MB in all", flush=True)
    sources, cells = random_sources(30_000), torch.arange(256).view(16, 16)[:6, :6].flatten()[:32]
    scale = sources.at(SIZE)
    for images in (1, arguments.images):
        query = sources.book[torch.randint(0, CODES, (images, len(cells)))]
        error = (scale.distances(query, cells) - gathered(sources, query, cells)).abs().max()
        both = partial(scale.distances, query, cells), partial(gathered, sources, query, cells)
        fast, slow = seconds(*both, repeats=7)
        times = f"tables {fast:.3f} s, gathered {slow:.3f} s, {slow / fast:.1f} times"
        print(f"one window, {images} image(s), 30,000 sources: {times}; difference {error:.1e}")


if __name__ == "__main__":
    main()
