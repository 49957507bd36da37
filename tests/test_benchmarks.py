"""The scripts in tests/benchmarks start."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(path.stem for path in Path(__file__).parent.glob("benchmarks/*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_starts_and_says_how_it_is_used(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"tests.benchmarks.{name}", run_name="__main__")
    assert end.value.code == 0
    assert f"python -m tests.benchmarks.{name}" in capsys.readouterr().out
