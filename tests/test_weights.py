"""Trained weights stay the same, bit for bit: SHA-256 of each method's fit at its TINY sizes, stored in weights.json.

Floating-point results depend on the processor and the libraries, so the comparison runs only on the platform of the stored
values. To store new values after an intended change of a method: python -m tests.test_weights
"""

import hashlib
import json
import platform
from pathlib import Path

import pytest
import torch
import torchvision
from lightning import LightningModule

from tests.contract.runs import fit, straight
from tests.contract.tiers import DISTINCT, by_path

FILE = Path(__file__).with_name("weights.json")


def this_platform() -> dict[str, str]:
    """What the bits of a training depend on besides the program."""
    rows = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    cpu = {key.strip(): value for key, value in reversed(rows)}
    model, flags = cpu.get("model name", ""), cpu.get("flags", "")
    return {
        "machine": platform.machine(),
        "processor": model.strip(),
        "flags": hashlib.sha256(flags.encode()).hexdigest()[:16],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def digest(tensors) -> str:
    """SHA-256 of tensors, whatever their names and order: renaming a submodule changes nothing."""
    rows = [
        hashlib.sha256(f"{tuple(t.shape)} {t.dtype}".encode() + t.detach().contiguous().numpy().tobytes()).hexdigest()
        for t in tensors
    ]
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


def measured(module: LightningModule) -> dict[str, str | int]:
    torch.manual_seed(7)
    samples = [module.eval().sample(3)] if module.samples_ready else []
    return {"iterations": module.iteration, "weights": digest(module.state_dict().values()), "samples": digest(samples)}


@by_path(DISTINCT)
def test_trained_weights_equal_the_stored_ones(path):
    stored = json.loads(FILE.read_text())
    if stored["platform"] != this_platform():
        pytest.skip(f"the stored values are from another platform: {stored['platform']}, here {this_platform()}")
    if path.stem not in stored["configurations"]:
        pytest.skip("no stored value; python -m tests.test_weights stores it")
    assert measured(straight(path).module) == stored["configurations"][path.stem]


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = {path.stem: measured(fit(path, Path(folder) / path.stem).module) for path in DISTINCT}
    FILE.write_text(json.dumps({"platform": this_platform(), "configurations": rows}, indent=1) + "\n")
