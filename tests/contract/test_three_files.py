"""A new method is three files: in a copy of the repository DCGAN is added and proves the contract, nothing else is edited."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.tiers import ROOT

FILES = {
    "module.py": "modules/dcgan_toy.py",
    "config.yaml": "configs/dcgan_toy.yaml",
    "tests.py": "tests/modules/test_dcgan_toy.py",
}


@pytest.fixture
def repository(tmp_path):
    """A copy of all files under version control, with those of the new method."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    for source, target in FILES.items():
        shutil.copy(Path(__file__).parent / "example_method" / source, tmp_path / target)
    return tmp_path


def python(repository: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=repository, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
    return result.stdout


def test_a_method_is_three_files(repository):
    names = ["contract", "modules/test_dcgan_toy.py", "test_import_direction.py", "experiment/test_cost.py", "tasks"]
    tests = [f"tests/{name}" for name in names]
    python(repository, "-m", "tests.tasks.table")
    assert "DCGAN" in (repository / "docs/tasks.md").read_text()
    output = python(repository, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "dcgan_toy", *tests)
    assert "passed" in output and "skipped" not in output, output
    plan = python(repository, "train.py", "configs/dcgan_toy.yaml", "--dry-run", "trainer.accelerator=cpu")
    assert "training  48×64" in plan and "parameters; about" in plan
