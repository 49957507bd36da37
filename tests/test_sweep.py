"""Sweeps: the grid of sweep.py, also when it is killed, and W&B's agent."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

import sweep
from cli.grid import trials
from cli.loader import load_config, read_config
from core.errors import UserError

ROOT = Path(__file__).parent.parent
FEWGAN = "configs/fewgan.yaml"
TINY = ["configs/singan.yaml", "datamodule.class_path=datamodules.synthetic.SyntheticDataModule",
        "datamodule.image_size=[12,16]",
        "datamodule.samples_per_epoch=2", "module.depth=1", "module.min_size=6", "module.scale_factor=0.5", "module.width=4",
        "module.epochs_per_stage=10", "module.d_steps=1", "module.g_steps=1", "trainer.accelerator=cpu", "trainer.devices=1",
        "logger.wandb=null", "callbacks.images=null", "callbacks.metrics=null", "callbacks.progress=null"]  # fmt: skip
EPOCHS = 3 * 10  # of three scales
PATIENCE = 1800  # seconds, for a machine that does much else


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_every_combination_is_a_trial_with_a_name_and_a_folder_of_its_own() -> None:
    grid = trials([FEWGAN, "run_name=birds", "module.lr_g=1e-3,0.0005", "seed=0,1,2", "module.width=8"])
    assert [(t.config.module.lr_g, t.config.seed) for t in grid] == list(itertools.product([1e-3, 5e-4], [0, 1, 2]))
    assert [t.config.run_name for t in grid][:4] == [
        "birds_lr_g-1e-3_seed-0", "birds_lr_g-1e-3_seed-1", "birds_lr_g-1e-3_seed-2", "birds_lr_g-0_0005_seed-0",
    ]  # fmt: skip
    assert [str(t.folder) for t in grid] == [f"runs/{t.config.run_name}" for t in grid]
    assert all(t.config.module.width == 8 and t.config.resume == "auto" for t in grid)
    assert all(load_config(t.arguments) == t.config for t in grid), "train.py gets the same"
    larger = trials([FEWGAN, "run_name=birds", "module.lr_g=1e-2,1e-3,0.0005", "seed=2,1,0,3", "module.width=8"])
    assert {t.folder for t in grid} < {t.folder for t in larger}, "an extended grid finds what is finished"


def test_commas_in_brackets_braces_and_quotes_do_not_separate() -> None:
    grid = trials([FEWGAN, "datamodule.image_size=[48,64],[72,96]", "module.betas=[0.5,0.9]", "run_dir=out/here"])
    assert [list(t.config.datamodule.image_size) for t in grid] == [[48, 64], [72, 96]]
    assert len({t.folder for t in grid}) == 2 and all(str(t.folder).startswith("out/here_image_size-") for t in grid)
    quoted = trials([FEWGAN, "datamodule.root='a,b',\"c, d\",e"])
    assert [t.config.datamodule.root for t in quoted] == ["a,b", "c, d", "e"]
    mapped = trials([FEWGAN, "callbacks.images=null,{class_path: callbacks.image_grid.ImageGrid, num_images: 4}"])
    assert [t.config.callbacks.images and t.config.callbacks.images.num_images for t in mapped] == [None, 4]


def test_names_tell_keys_of_the_same_name_apart_and_stay_short() -> None:
    first, *_ = trials([FEWGAN, "callbacks.images.num_images=4,9", "callbacks.metrics.num_images=5,6"])
    assert first.config.run_name == "fewgan_callbacks_images_num_images-4_callbacks_metrics_num_images-5"
    long = [f"datamodule.root={','.join(letter * 90 for letter in 'ab')}", "seed=1,2"]
    names = [t.config.run_name for t in trials([FEWGAN, *long])]
    assert len(set(names)) == 4 and max(map(len, names)) < 40


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["seed=1"], ["nothing to sweep", "seed=0,1,2"]),
        (["seed=0,0"], ["seed=0 and seed=0", "the same"]),
        (["seed=0,,1"], ["seed=0,,1", "empty value"]),
        (["seed=0,1", "seed=2,3"], ["seed", "twice"]),
        (["run_name=a,b"], ["run_name", "cannot be swept"]),
        (["module.lr_g=1e-3,fast"], ["module.lr_g", "float", "'fast'"]),
        (["module.lr_g=1e-3,-1"], ["module.lr_g", "float > 0"]),
        (["module.lrg=1,2"], ["module.lrg", "lr_g"]),
    ],
)
def test_a_mistake_in_any_trial_is_found_before_the_first_begins(arguments, parts, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sweep, "train", lambda *_: pytest.fail("a training was begun"))
    assert sweep.main([FEWGAN, *arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(part in message for part in ["error: ", *parts]), message


def test_a_grid_is_made_and_shown_without_torch() -> None:
    code = "import sys, sweep; assert sweep.main(sys.argv[1:]) == 0; assert not {'torch', 'lightning'} & set(sys.modules)"
    arguments = [FEWGAN, "seed=0,1", "run_dir=out/no_such_place", "--dry-run"]
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    assert [line.split() for line in result.stdout.splitlines()] == [
        [f"seed={seed}", "open", f"out/no_such_place_seed-{seed}"] for seed in (0, 1)
    ]
    assert not (ROOT / "out").exists()


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "train.py").write_text("import sys; sys.exit(3 if 'seed=1' in sys.argv else 0)")
    monkeypatch.setattr(sweep, "TRAIN", tmp_path / "train.py")
    assert sweep.main([FEWGAN, "seed=0,1,2", f"run_dir={tmp_path}/run"]) == 1
    table = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert table == [["seed=0", "finished"], ["seed=1", "failed,"], ["seed=2", "finished"]]


def test_the_end_of_the_sweep_ends_the_training_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import time; print('begun', flush=True); time.sleep(600)")
    run = f"import sys, sweep; sweep.TRAIN = {str(tmp_path / 'train.py')!r}; sys.exit(sweep.main(sys.argv[1:]))"
    command = [sys.executable, "-c", run, FEWGAN, "seed=0,1", f"run_dir={tmp_path}/run"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert "seed=0" in process.stdout.readline() and process.stdout.readline() == "begun\n"
    process.terminate()
    output, _ = process.communicate(timeout=PATIENCE)  # ends only when the training has closed the pipe, too
    assert process.returncode == 130
    assert [line.split()[:2] for line in output.splitlines()] == [["seed=0", "interrupted"], ["seed=1", "open"]]


# --- killed -----------------------------------------------------------------------------------------------------------


def started(run_dir: Path) -> subprocess.Popen:
    """A sweep over four trials, which writes to a file: a pipe would break for a training that outlives it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "PL_"))}
    arguments = [*TINY, "module.lr_g=1e-3,5e-4", "seed=0,1", f"run_dir={run_dir}"]
    with open(run_dir.with_suffix(".log"), "w") as log:
        return subprocess.Popen(
            [sys.executable, "sweep.py", *arguments], cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=log, stderr=log,
        )  # fmt: skip


def manifest(folder: Path) -> dict:
    file = folder / "run.json"
    return json.loads(file.read_text()) if file.exists() else {"epoch": -1, "status": None}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def ended(run_dir: Path) -> dict[str, str]:
    """The table of a sweep that comes to its end: outcome by folder name."""
    code = started(run_dir).wait(timeout=PATIENCE)
    output = run_dir.with_suffix(".log").read_text()
    assert code == 0, output
    return {line.split()[-1].rsplit("/", 1)[-1]: " ".join(line.split()[2:-1]) for line in output.splitlines()[-4:]}


@pytest.mark.slow
def test_a_killed_grid_goes_on_and_trains_each_trial_once_to_its_end(tmp_path: Path) -> None:
    names = [f"run_lr_g-{rate}_seed-{seed}" for rate in ("1e-3", "5e-4") for seed in (0, 1)]
    first, second, third, fourth = folders = [tmp_path / name for name in names]

    process = started(tmp_path / "run")  # killed alone: the training of the second goes on without it
    wait_for(lambda: manifest(second)["epoch"] >= 1)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}

    process = started(tmp_path / "run")  # killed with its training, as when a machine goes down
    wait_for(lambda: any((folder / "checkpoints/last.ckpt").exists() for folder in (third, fourth)))
    running = third if manifest(third)["epoch"] >= 0 else fourth
    assert manifest(running)["status"] == "running"
    process.kill()
    os.kill(manifest(running)["pid"], signal.SIGKILL)
    process.wait()

    outcomes = ended(tmp_path / "run")
    assert set(outcomes) == set(names) and outcomes[first.name] == "finished before" and outcomes[running.name] == "finished"
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before, "a finished trial was touched"
    for folder in folders:
        assert manifest(folder)["status"] == "finished"
        assert len(manifest(folder)["starts"]) == (2 if folder == running else 1), "trained again, or not at all"
        checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
        assert (checkpoint["iteration"], checkpoint["epoch"] + 1) == (2 * EPOCHS, EPOCHS)
    assert set(ended(tmp_path / "run").values()) == {"finished before"}


# --- W&B --------------------------------------------------------------------------------------------------------------


def agents_words(parameters: dict) -> list[str]:
    """The arguments that W&B's agent calls train.py with for one choice of the sweep's parameters."""
    config = yaml.safe_load((ROOT / "configs/sweeps/wandb.yaml").read_text())
    values = create_sweep_command_args({"args": {key: {"value": value} for key, value in parameters.items()}})
    values |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [config["program"]]}
    command = create_sweep_command(list(config["command"]))
    expanded = [w for word in command for w in (values[word[2:-1]] if word.startswith("${") and word.endswith("}") else [word])]
    assert expanded[:3] == ["/usr/bin/env", "python", "train.py"]
    return expanded[3:]


def choices(parameters: dict) -> list[dict]:
    """Every parameter at each of its values, or at both ends of its range, at least once."""
    lists = {key: p["values"] if "values" in p else [p["min"], p["max"]] for key, p in parameters.items()}
    return [{key: values[i % len(values)] for key, values in lists.items()} for i in range(max(map(len, lists.values())))]


def test_wandbs_agent_drives_train_py_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "k3x9ab2c")
    parameters = yaml.safe_load((ROOT / "configs/sweeps/wandb.yaml").read_text())["parameters"]
    for choice in choices(parameters):
        config = load_config(agents_words(choice))
        assert config.run_name == "fewgan_k3x9ab2c" and config.run_dir == "runs/fewgan_k3x9ab2c" and config.resume == "auto"
        assert config.module.lr_g == choice["module.lr_g"] and config.datamodule.side_flip is choice["datamodule.side_flip"]
        assert str(list(config.module.epochs_per_stage)) == choice["module.epochs_per_stage"]


@pytest.mark.parametrize("value", [True, False, 7, 1e-05, 2.5e-10, [8, 4, 4], ["fd", "kd"], "adam", [0.5, 0.999]])
def test_what_the_agent_writes_is_read_as_it_was_meant(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "k3x9ab2c")
    assert read_config(agents_words({"module.own": value})).module.own == value


def test_a_sweep_without_the_agent_is_refused_with_the_variable() -> None:
    with pytest.raises(UserError, match="run_name.*WANDB_RUN_ID"):
        load_config(agents_words({}))
