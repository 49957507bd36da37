"""Time of sampling codes with a cache of keys and values against one whole pass per code.

    python -m tests.benchmarks.code_sampling [--num 16] [--layers 4] [--width 128] [--device cpu] [--forwards 5]

The loop without cache calls the network with all codes so far; its time is estimated from passes of several lengths.
"""

import argparse

import torch

from modules.networks.code_transformer import CodeTransformer
from tests.benchmarks.pixelcnn_sampling import seconds


def ratio(num: int = 16, layers: int = 4, width: int = 128, device: str = "cpu", forwards: int = 5) -> tuple[float, float]:
    """Seconds for maps of 16 x 16 codes with and without cache."""
    network = CodeTransformer(256, (16, 16), 1, layers, width, 4, above=True).to(device).eval()
    tokens = torch.zeros(num, 256, dtype=torch.long, device=device)
    with torch.no_grad():
        lengths = torch.linspace(1, 256, forwards).long().tolist()
        passes = [min(seconds(lambda n=n: network.steps(tokens[:, :n], tokens, 0), device) for _ in range(3)) for n in lengths]
    network.sample(1)
    return min(seconds(lambda: network.sample(num), device) for _ in range(2)), 256 * sum(passes) / len(passes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=16)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--forwards", type=int, default=5)
    options = parser.parse_args()
    cached, naive = ratio(**vars(options))
    print(f"{options.num} maps of 16×16 codes, {options.device}, {torch.get_num_threads()} thread(s)")
    print(f"cached {cached:.2f} s · without {naive:.1f} s · ratio {naive / cached:.1f}")


if __name__ == "__main__":
    main()
