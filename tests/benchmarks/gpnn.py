"""GPNN's exact search against the comparison of every patch with every patch, in one run: time, agreement, memory.

    python -m tests.benchmarks.gpnn [--size 256 256] [--iterations 10] [--alpha 0.005] [--threads 1] [--whole]

Each pair of queries and keys that one synthesis meets is searched both ways, by brute force for `--part` queries drawn at
random, whose time is multiplied out; `--whole` searches all of them. Times are CPU seconds of this process, so that other
work on the machine disturbs little. Brute force computes the rows of the full distance matrix tile by tile: the matrix
itself would take 16 GB at 256×256, and writing it would be slower still.
"""

import argparse
import time

import torch

import modules.gpnn as gpnn
from datamodules.folder import ImageFolder
from datamodules.listing import list_images
from modules.gpnn import GPNN
from modules.ops.images import to_uint8
from modules.ops.nearest import extract
from modules.patches.neighbor_index import nearest_scored


def memory_peak(reset: bool = False) -> float:
    """Largest resident memory of this process so far, or since the last reset, in MB (Linux)."""
    if reset:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        return int(file.read().split("VmHWM:")[1].split()[0]) / 1e3


class Watched(gpnn.ExactSearch):
    """Notes the queries, the keys, the seconds and the result of each search."""

    log: list[tuple] = []

    def __init__(self, *arguments, **keywords):
        start = time.process_time()
        super().__init__(*arguments, **keywords)
        self.build = time.process_time() - start

    def __call__(self, image, start=None):
        begin = time.process_time()
        found = super().__call__(image, start)
        self.log.append((image, self, time.process_time() - begin, found))
        return found


def brute_force(search: Watched, queries: torch.Tensor, rows: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Seconds for all queries, indices of the matches of some of them, and the weights of the keys."""
    begin, scale = time.process_time(), None
    if search.alpha is not None:
        scale = 1 / (4 * queries.shape[1] * search.alpha + nearest_scored(search.keys, queries)[0])
    normalized, part = time.process_time(), queries[rows]
    found = nearest_scored(part, search.keys, scale)[1]
    return normalized - begin + (time.process_time() - normalized) * len(queries) / len(rows), found, scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256])
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--alpha", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--image", type=int, default=0, help="which of the starter landscapes")
    parser.add_argument("--part", type=int, default=2048)
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder, files = list_images("datamodules/starter/landscapes")
    image = ImageFolder(folder, [files[options.image]], options.size).stack()
    module = GPNN(options.size, iterations=options.iterations, alpha=options.alpha, max_images=1)
    module.bank.copy_(to_uint8(image))
    module.stored.fill_(1)

    torch.manual_seed(0)
    before = memory_peak(reset=True)
    begin = time.process_time()
    module.sample(1)
    seconds = time.process_time() - begin
    peak = memory_peak() - before
    print(f"{options.size[0]}×{options.size[1]}, {options.iterations} iterations, {options.threads} thread(s)")
    print(f"a sample from end to end: {seconds:.1f} CPU-s, peak of {peak:.0f} MB above the {before:.0f} MB of the process")

    gpnn.ExactSearch = Watched
    torch.manual_seed(0)
    module.sample(1)
    quick = slow = worst = 0.0
    same = number = 0
    for image, search, own, found in Watched.log:
        queries = extract(image.unsqueeze(0), search.patch)[0]
        rows = torch.randperm(len(queries))[: len(queries) if options.whole else options.part]
        seconds, indices, scale = brute_force(search, queries, rows)
        quick, slow, found = quick + own, slow + seconds, found.flatten()[rows]
        scores = [
            (queries[rows] - search.keys[match]).square().sum(1) * (1 if scale is None else scale[match])
            for match in (found, indices)
        ]
        worst = max(worst, float((scores[0] - scores[1]).max()))
        same, number = same + int((found == indices).sum()), number + indices.numel()
    print(f"searches: index {quick:.1f} CPU-s · brute force {slow:.1f} CPU-s · ratio {slow / quick:.1f}")
    print(f"the same patch for {same / number:.4%} of {number} queries; elsewhere the index is worse by at most {worst:.1e}")


if __name__ == "__main__":
    main()
