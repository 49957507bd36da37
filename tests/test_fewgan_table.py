"""The table of FewGAN and its baselines: what is done goes on from what is there, and what is written follows the rows."""

import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from metrics.protocol import CODE_VERSION
from tests.benchmarks import fewgan_table
from tests.benchmarks.fewgan_table import STARTER, Trial, call, measured, overrides_of, summary, table, trials

KEYS = ["kd_mobilenet_v2", "kd_mobilenet_v2_crops", "fd_mobilenet_v2", "pixel_diversity", "pd_mobilenet_v2_pairs"]


def measurement(value: float) -> dict:
    metrics = dict.fromkeys([*KEYS, "nearest_psnr_max"], value)
    rest = {"intervals": {}, "verdict": {"copies": False}, "reference_points": {}, "diagnostics": {}}
    return {"metrics": metrics, "protocol": {"hash": "0123456789abcdef", "code_version": CODE_VERSION}, **rest}


def row(photos: str, method: str, seed: int, value: float) -> dict:
    return {"set": photos, "method": method, "seed": seed, "cpu_minutes": 2.0, **measurement(value)}


class Machine:
    """Stands in for train.py, which takes 30 s and may be killed, and evaluate.py."""

    def __init__(self, runs: Path, killed: int = 0) -> None:
        self.runs, self.killed, self.calls = runs, killed, []

    def __call__(self, program: str, *arguments: str) -> float:
        self.calls.append((program, arguments))
        if program == "evaluate.py":
            Path(arguments[0]).parents[1].joinpath("metrics.json").write_text(json.dumps(measurement(0.5)))
        else:
            run = Path(next(word for word in arguments if word.startswith("run_dir=")).removeprefix("run_dir="))
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
            if self.killed:
                self.killed -= 1
                raise RuntimeError("killed")
        return 30.0


def test_a_finished_training_is_not_repeated(tmp_path):
    machine = Machine(tmp_path)
    trial = Trial(tmp_path / "photos", "fewgan", 1)
    first = measured(trial, tmp_path, tmp_path, ["module.width=8"], machine)
    assert [program for program, _ in machine.calls] == ["train.py", "evaluate.py"]
    assert "callbacks.metrics.seed=0" in machine.calls[1][1]  # one protocol for trainings of all seeds
    assert {"seed=1", "resume=auto", "module.width=8", f"datamodule.side_root={tmp_path}"} <= set(machine.calls[0][1])
    assert first["cpu_minutes"] == 0.5 and first["metrics"]["pixel_diversity"] == 0.5
    assert measured(trial, tmp_path, tmp_path, ["module.width=8"], machine) == first and len(machine.calls) == 2
    card_file = tmp_path / trial.label / "metrics.json"
    card_file.write_text(card_file.read_text().replace(f'"code_version": {CODE_VERSION}', '"code_version": 0'))
    assert measured(trial, tmp_path, tmp_path, ["module.width=8"], machine) == first  # measured anew, its time is kept
    assert [program for program, _ in machine.calls] == ["train.py", "evaluate.py"] * 2


def test_a_killed_training_goes_on_in_its_folder(tmp_path):
    machine = Machine(tmp_path, killed=1)
    trial = Trial(STARTER / "landscapes", "hpvaegan", 0)
    with pytest.raises(RuntimeError):
        measured(trial, tmp_path, tmp_path, [], machine)
    found = measured(trial, tmp_path, tmp_path, [], machine)
    assert found["cpu_minutes"] is None  # nobody knows what the killed part took
    first, second = (arguments for program, arguments in machine.calls if program == "train.py")
    assert first == second and not any("side_root" in word for word in first)


def test_a_row_of_photographs_is_as_long_as_the_set(tmp_path):
    arguments = overrides_of(Trial(STARTER / "landscapes", "concat_singan", 0), tmp_path, tmp_path / "x")
    assert "module.tiles=[1,5]" in arguments and "run_name=x" in arguments
    arguments = overrides_of(Trial(STARTER / "landscapes", "fewgan", 0), tmp_path, tmp_path / "x")
    assert f"datamodule.side_root={STARTER / 'side'}" in arguments  # the default run


def test_seeds_come_in_rounds():
    order = list(trials([Path("a"), Path("b")], 2))
    assert [trial.seed for trial in order] == [0] * 6 + [1] * 6 and len({trial.label for trial in order}) == 12


def test_the_command_makes_what_is_missing_and_keeps_the_rest(tmp_path, monkeypatch):
    shutil.copytree(STARTER / "landscapes", tmp_path / "sets/b")
    (tmp_path / "sets/c").mkdir()
    kept = [row("b", "fewgan", 0, 0.25), row("starter", "concat_singan", 0, 0.75)]
    (tmp_path / "fewgan_table.json").write_text(json.dumps(kept))
    machine = Machine(tmp_path)
    monkeypatch.setattr(fewgan_table, "call", lambda *arguments, threads: machine(*arguments))
    arguments = [str(tmp_path / "sets"), "--names", "b", "--seeds", "1", "--jobs", "2", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["fewgan_table", *arguments, "--out", str(tmp_path)])
    fewgan_table.main()
    rows = json.loads((tmp_path / "fewgan_table.json").read_text())
    assert len(rows) == 6 and kept[0] in rows and kept[1] in rows and len(machine.calls) == 8
    assert (tmp_path / "fewgan_table.md").read_text() == table(rows)
    fewgan_table.main()
    assert len(machine.calls) == 8 and len(list(tmp_path.glob("fewgan_table*"))) == 2
    rows[0]["protocol"]["code_version"] = CODE_VERSION - 1
    (tmp_path / "fewgan_table.json").write_text(json.dumps(rows))
    fewgan_table.main()  # what other metrics have measured is measured again
    found = json.loads((tmp_path / "fewgan_table.json").read_text())
    assert {row["protocol"]["code_version"] for row in found} == {CODE_VERSION}


def test_one_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    machine = Machine(tmp_path)

    def call(program: str, *arguments: str, threads: int) -> float:
        if "seed=1" in arguments and "configs/hpvaegan.yaml" in arguments:
            raise subprocess.CalledProcessError(1, [program, *arguments])
        return machine(program, *arguments)

    monkeypatch.setattr(fewgan_table, "call", call)
    (tmp_path / "sets").mkdir()
    arguments = [str(tmp_path / "sets"), "--seeds", "2", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["fewgan_table", *arguments])
    with pytest.raises(SystemExit, match="hpvaegan"):
        fewgan_table.main()
    rows = json.loads((tmp_path / "fewgan_table.json").read_text())
    assert [(row["method"], row["seed"]) for row in rows].count(("hpvaegan", 1)) == 0 and len(rows) == 5


def test_means_intervals_and_the_best_of_each_column():
    values = [0.1, 0.2, 0.4]
    rows = [row("a", "fewgan", seed, value) for seed, value in enumerate(values)] + [row("a", "hpvaegan", 0, 0.3)]
    lines = table(rows).splitlines()
    half = 4.303 * statistics.stdev(values) / math.sqrt(3)
    assert f"| **0.233 ± {half:.2g}** |" in lines[2] and "| **0.3** |" in lines[3]
    assert lines[2].startswith("| a | FewGAN | 3 |") and lines[3].endswith("| no copying found | 01234567 |")
    best = ["**" in cell for cell in lines[2].split("|")[4:-3]]
    assert best == [True, True, True, False, False, False, False]  # distances low, diversity high, the others unjudged


def test_what_is_unknown_is_a_dash(tmp_path):
    (tmp_path / "x_fewgan_0").mkdir()
    (tmp_path / "x_fewgan_0/metrics.json").write_text(json.dumps(measurement(0.5)))  # measured elsewhere
    found = measured(Trial(tmp_path / "x", "fewgan", 0), tmp_path, tmp_path, [])
    assert found["cpu_minutes"] is None and "| 0.5 | – | no copying found |" in table([found])


def test_pairs_of_trainings_are_counted():
    rows = [row("a", "fewgan", 0, 0.1), row("a", "hpvaegan", 0, 0.2), row("a", "hpvaegan", 1, 0.2)]
    rows += [row("b", "fewgan", 0, 0.3), row("b", "hpvaegan", 0, 0.2)]
    line = summary(rows)
    assert line.startswith("FewGAN is better than HP-VAE-GAN by kernel distance in 1 of 2, of crops in 1 of 2")
    assert "Concat" not in line


def test_ties_and_unknown_values_are_no_wins():
    rows = [row("a", "fewgan", 0, 0.2), row("a", "hpvaegan", 0, 0.2), row("a", "fewgan", 1, 0.1), row("a", "hpvaegan", 1, 0.2)]
    rows[2]["metrics"]["fd_mobilenet_v2"] = None
    assert "kernel distance in 1 of 2" in summary(rows) and "Fréchet distance in 0 of 1" in summary(rows)


def test_verdicts_and_reference_points_stand_in_the_table():
    rows = [row("a", "fewgan", seed, 0.1) for seed in range(3)]
    rows[0]["verdict"] = {"copies": True, "undecided": False}
    rows[1]["verdict"] = {"copies": False, "undecided": True}
    rows[2]["reference_points"] = {"split_half": {"kd_mobilenet_v2": -0.08, "fd_mobilenet_v2": 281.0}}
    text = table(rows)
    assert "| 1 of 3 copies, 1 of 3 undecided |" in text and "Not comparable with published FID and KID." in text
    assert "- a, one half of the photographs against the other: kernel distance -0.08, Fréchet distance 281" in text


def test_time_is_the_time_of_the_processor(tmp_path, monkeypatch):
    (tmp_path / "busy.py").write_text("import time\nwhile time.process_time() < 0.3: pass\ntime.sleep(1)\n")
    monkeypatch.setattr(fewgan_table, "ROOT", tmp_path)
    assert 0.3 <= call("busy.py") < 1
