"""Time of cached sampling against one forward pass per code.

    python -m tests.benchmarks.pixelcnn_sampling [--num 16] [--size 24 32] [--codes 256] [--device cpu] [--forwards 5]

The naive loop calls the network once per code; its time is that of `--forwards` calls times the number of codes.
"""

import argparse
import time

import torch

from modules.networks.pixelcnn import GatedPixelCNN


def seconds(function, device: str) -> float:
    """Wall-clock seconds of one call, the device's queue included."""
    start = time.perf_counter()
    function()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=[24, 32])
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--forwards", type=int, default=5)
    options = parser.parse_args()
    network = GatedPixelCNN(options.codes).to(options.device).eval()
    size = tuple(options.size)
    maps = torch.zeros(options.num, *size, dtype=torch.int64, device=options.device)
    with torch.no_grad():
        network(maps)
        forward = min(seconds(lambda: network(maps), options.device) for _ in range(options.forwards))
    network.sample(options.num, (2, size[1]))
    cached = min(seconds(lambda: network.sample(options.num, size), options.device) for _ in range(3))
    cells = size[0] * size[1]
    naive = forward * cells
    threads = torch.get_num_threads()
    print(
        f"{options.num} maps of {size[0]}×{size[1]} codes, K = {options.codes}, {options.device}, {threads} thread(s)"
    )
    print(
        f"cached {cached:.2f} s · naive {naive:.1f} s ({forward * 1000:.0f} ms × {cells}) · ratio {naive / cached:.0f}"
    )


if __name__ == "__main__":
    main()
