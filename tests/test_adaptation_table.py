"""The table of adaptations: finished trainings are kept, stopped ones continue, and the table follows the curves."""

import csv
import json
import math
from pathlib import Path

import pytest

from callbacks.adaptation_curve import COLUMNS
from tests.benchmarks.adaptation_table import (
    METHODS,
    Trial,
    at_end,
    at_realism,
    equal_realism,
    measured,
    orders,
    read,
    table,
    trials,
    write,
)

ROOT = Path(__file__).parents[1]
CURVE = [(0, 0.0, 0.2, 0.25, 0.3), (100, 0.8, 0.15, 0.2, 0.2), (200, 1.0, 0.1, 0.1, 0.1)]  # iteration, realism, intra, …


def points(shift: float = 0.0) -> list[dict]:
    keys = ("iteration", "realism", "intra", "pairs", "nearest_heldout")
    rest = dict.fromkeys(COLUMNS, 0.5) | {"protocol": "pd at 64 pixels"}
    return [rest | dict(zip(keys, row, strict=True)) | {"pairs": row[3] + shift} for row in CURVE]


class Machine:
    """Stands in for train.py, which takes 30 s and may be killed, and evaluate.py."""

    def __init__(self, killed: int = 0) -> None:
        self.killed, self.calls = killed, []

    def __call__(self, program: str, *arguments: str) -> float:
        self.calls.append((program, arguments))
        folders = {key: Path(a.removeprefix(key)) for key in ("run_dir=", "out=") for a in arguments if a.startswith(key)}
        if "configs/tasks/realism.yaml" in arguments:
            folders["out="].mkdir(parents=True)
            (folders["out="] / "realism.pt").touch()
        elif program == "evaluate.py":
            Path(arguments[0]).parents[1].joinpath("metrics.json").write_text(json.dumps({"verdict": {"copies": True}}))
        else:
            run = folders["run_dir="]
            run.mkdir(parents=True, exist_ok=True)
            if self.killed:
                self.killed -= 1
                raise RuntimeError("killed")
            (run / "run.json").write_text(json.dumps({"status": "finished", "git": {"commit": "abc"}}))
            with (run / "curve.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(points())
        return 30.0


def test_a_finished_training_is_not_repeated(tmp_path):
    machine, trial = Machine(), Trial("sketch", "cdc_0", 1)
    first = measured(trial, tmp_path, tmp_path, None, ["module.lr=1e-3"], machine)
    assert [program for program, _ in machine.calls] == ["evaluate.py", "train.py", "evaluate.py"]  # first the classifier
    arguments = set(machine.calls[1][1])
    assert {"seed=1", "resume=auto", "module.weight_cdc=0", "module.lr=1e-3", "callbacks.curve.seed=0"} <= arguments
    assert f"datamodule.root={tmp_path / 'sketch-10shot'}" in arguments
    assert first["commit"] == "abc" and first["cpu_minutes"] == 0.5 and len(first["curve"]) == 3
    assert measured(trial, tmp_path, tmp_path, None, ["module.lr=1e-3"], machine) == first and len(machine.calls) == 3


def test_a_killed_training_continues_in_its_folder(tmp_path):
    machine, trial = Machine(killed=1), Trial("sketch", "tgan", 0)
    with pytest.raises(RuntimeError):
        measured(trial, tmp_path, tmp_path, None, [], machine)
    assert measured(trial, tmp_path, tmp_path, None, [], machine)["cpu_minutes"] is None
    first, second = (arguments for program, arguments in machine.calls if program == "train.py")
    assert first == second


def test_whole_rounds_come_first():
    order = list(trials(["a", "b"], ["tgan", "cdc"], 2))
    assert len(order) == 8 and [trial.seed for trial in order] == [0] * 4 + [1] * 4


def test_the_table_interpolates_at_equal_realism_and_shows_the_end(tmp_path):
    rows = [
        {"target": "sketch", "method": method, "seed": seed, "overrides": [], "cpu_minutes": None,
         "curve": points(shift * seed), "verdict": {"copies": method == "tgan"}}
        for method, shift in (("tgan", 0.0), ("cdc", 0.02)) for seed in (0, 1)
    ]  # fmt: skip
    assert equal_realism(rows[0], "pairs") == pytest.approx(0.15) and equal_realism(rows[0], "iteration") == 150
    assert at_end(rows[0], "pairs") == 0.1 and math.isnan(at_end(rows[0], "cpu_minutes"))
    copies = points()[0] | {"verdict": {"copies": True}}
    content = {"rows": rows, "references": {"sketch": {"copies": copies}}}
    text = table(content)
    lines = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines()[2:8]}
    assert lines["TGAN"][:4] == ["2", "150 ± 0", "0.125 ± 0.000", "0.150 ± 0.000"] and lines["TGAN"][-1] == "2 of 2 copies"
    assert lines["CDC"][3].startswith("0.160 ± ") and lines["CDC"][-1] == "no copying found"
    assert lines["copies of the ten"][-1] == "1 of 1 copies" and lines["source"][6] == "0.200"
    assert "Not measured: DCL, CDC, λ = 0, FreezeD" in text and "## toonhead\n\nNot measured." in text
    claims = dict(line.removeprefix("- ").rsplit(": ", 1) for line in orders(rows))
    expected = ["0.010 (does not hold; 2 seed(s))", "not measured"] * 3 + ["1.000 (holds; 2 seed(s))"] * 2
    assert list(claims.values()) == expected
    low = [row | {"curve": row["curve"][:1]} if row["method"] == "cdc" else row for row in rows]
    assert orders(low)[0].endswith("2 of 4 trainings do not reach it")
    write(tmp_path, content)
    assert (tmp_path / "adaptation_table.md").read_text() == text
    raw = json.loads((tmp_path / "adaptation_table.json").read_text())
    assert read(tmp_path / "adaptation_table.json")["rows"] == raw["rows"]


def test_every_method_has_a_configuration():
    assert all((ROOT / arguments[0]).is_file() for _, arguments in METHODS.values())


def test_the_published_table_is_that_of_its_json():
    assert table(read(ROOT / "docs/adaptation_table.json")) == (ROOT / "docs/adaptation_table.md").read_text(encoding="utf-8")


def test_value_at_equal_realism_is_interpolated_where_it_is_first_reached():
    rows = [(0.0, 0.5), (0.8, 0.3), (1.0, 0.2), (0.7, 0.1), (1.0, 0.0)]
    assert at_realism(rows, 0.9) == pytest.approx(0.25) and at_realism(rows, 0.0) == 0.5
    assert at_realism(rows[:1], 0.0) == 0.5 and math.isnan(at_realism(rows[:2], 0.9))
