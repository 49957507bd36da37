"""Trained weights stay the same, bit for bit: SHA-256 of every configuration's fit at its TINY sizes, kept in weights.json.

Floating-point results depend on the processor and the libraries, so the comparison runs only on the platform of the kept
values. To keep new values after an intended change of a method: python -m tests.test_weights
"""

import hashlib
import json
import platform
from pathlib import Path

import pytest
import torch
import torchvision

from tests.test_contract import YAMLS, fit

FILE = Path(__file__).with_name("weights.json")


def this_platform() -> dict[str, str]:
    """What the bits of a training depend on beside the program."""
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


def measured(path: Path, folder: Path) -> dict[str, str | int]:
    _, module = fit(path, folder)
    torch.manual_seed(7)
    samples = module.eval().sample(3)
    return {"iterations": module.iteration, "weights": digest(module.state_dict().values()), "samples": digest([samples])}


@pytest.mark.parametrize("path", YAMLS, ids=[path.stem for path in YAMLS])
def test_trained_weights_are_those_that_are_kept(path, tmp_path):
    kept = json.loads(FILE.read_text())
    if kept["platform"] != this_platform():
        pytest.skip(f"the kept values are from another platform: {kept['platform']}, here {this_platform()}")
    assert measured(path, tmp_path) == kept["configurations"][path.stem]


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = {path.stem: measured(path, Path(folder) / path.stem) for path in YAMLS}
    FILE.write_text(json.dumps({"platform": this_platform(), "configurations": rows}, indent=1) + "\n")
