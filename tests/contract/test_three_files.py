"""A new method is three files: in a copy of the repository DCGAN is added and proves the contract, nothing else is edited."""

import os
import re
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


# In one process, as importing torch and lightning takes longer than the rest.
SCRIPT = """
import runpy, sys
import pytest, train
for generator in ("tests.tasks.table", "tests.cli.reference_page"):
    runpy.run_module(generator, run_name="__main__")
assert train.main(["configs/dcgan_toy.yaml", "trainer.accelerator=cpu", "--dry-run"]) == 0
names = ["contract", "modules/test_dcgan_toy.py", "test_import_direction.py", "experiment/test_cost.py", "tasks"]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "dcgan_toy", *(f"tests/{name}" for name in names)]))
"""


def test_a_method_is_three_files(repository):
    """The whole contract, the tasks, the plan, and the generated pages of the documentation."""
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", SCRIPT]
    result = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
    assert re.search("training +48×64", result.stdout) and "parameters; about" in result.stdout
    assert "DCGAN" in (repository / "docs/tasks.md").read_text()
    reference = (repository / "docs/reference.md").read_text()
    assert "`modules.dcgan_toy.DCGAN` in [dcgan_toy]" in reference and "| `module.width` | int >= 1 |" in reference
    passed = int(re.search(r"(\d+) passed", result.stdout)[1])
    assert passed > 20 and "skipped" not in result.stdout
