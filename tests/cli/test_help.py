"""Help: the usage of the entry points, the keys of a configuration, and how soon they come."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import evaluate
import train
from cli.loader import load_config, nodes
from cli.reference import Key, descriptions, help_text, key_table, yaml_comments
from cli.schema import signature_of

ROOT = Path(__file__).parents[2]
YAMLS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/*.yaml") if path.name != "base.yaml")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAMLS)
def test_every_key_of_a_configuration_has_a_row_with_type_and_value(path: str) -> None:
    config = load_config([path, "seed=7"])
    rows = {row.key: row for row in key_table(config)}
    assert rows["seed"].default == rows["callbacks.images.seed"].default == "7"
    for key, node in nodes(config):
        named = {name for name, p in signature_of(node.class_path).items() if p.kind is not p.VAR_KEYWORD}
        missing = {f"{key}.{name}" for name in named} - rows.keys()
        assert missing <= {"trainer.logger", "trainer.callbacks", "trainer.plugins"}
    assert all(row.type and row.default and "\n" not in row.description for row in rows.values())


def test_explanations_come_from_docstrings_of_the_class_and_its_bases_and_from_comments() -> None:
    rows = {row.key: row for row in key_table(load_config(["configs/fewgan.yaml"]))}
    assert rows["module.num_codes"] == Key("module.num_codes", "int >= 1", "256", rows["module.code_dim"].description)
    assert "code book" in rows["module.num_codes"].description
    assert rows["module.weight_ssim"].description.startswith("weight")
    assert "batch" in rows["trainer.log_every_n_steps"].description
    assert rows["module.betas"].default == "[0.5, 0.999]"
    assert rows["datamodule.batch_size"].description == "per device", "from ImageDataModule"
    assert rows["resume"].description.startswith("null: a new run; auto: ")
    assert "folder" in descriptions("datamodules.image_datamodule.ImageDataModule")["root"]


def test_comments_of_a_yaml_file_by_dotted_key(tmp_path: Path) -> None:
    text = "# head\na: 1  # one\nb:  # group\n  c: x # two\n  d:\n    e: [1]   # three\n  f: 2\ng: 3 # four\n"
    (tmp_path / "a.yaml").write_text(text)
    expected = {"a": "one", "b": "group", "b.c": "two", "b.d.e": "three", "g": "four"}
    assert yaml_comments(tmp_path / "a.yaml") == expected


def test_train_py_shows_the_keys_of_a_configuration(capsys: pytest.CaptureFixture) -> None:
    assert train.main(["configs/singan.yaml", "module.depth=3", "--help"]) == 0
    output = capsys.readouterr().out
    assert "module  (modules.singan.SinGAN)" in output and "  depth: int >= 1 = 3" in output
    assert output.strip() == help_text(load_config(["configs/singan.yaml", "module.depth=3"])).strip()
    assert train.main(["configs/singan.yaml", "module.dept=3", "--help"]) == 2
    assert "Did you mean depth?" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/tasks/*.yaml")))
def test_evaluate_py_shows_the_keys_of_a_task(path: str, capsys: pytest.CaptureFixture) -> None:
    assert evaluate.main([path, "--help"]) == 0
    node = OmegaConf.load(path).task
    output = capsys.readouterr().out
    assert f"task  ({node.class_path})" in output and all(f"  {name}: " in output for name in node if name != "class_path")
    types = {"image_size": "[height, width], both >= 1"}  # the other keys without a default are files
    required = [name for name in node if OmegaConf.is_missing(node, name)]
    assert all(f"  {name}: {types.get(name, 'path')} = required" in output for name in required)


def test_evaluate_py_shows_the_keys_of_a_measurement(capsys: pytest.CaptureFixture) -> None:
    assert evaluate.main(["runs/a/checkpoints/last.ckpt", "--help"]) == 0
    assert "  num_images: int >= 1 = 100" in capsys.readouterr().out


@pytest.mark.parametrize("entry", [train, evaluate])
def test_plain_help_is_the_usage(entry, capsys: pytest.CaptureFixture) -> None:
    for option in ("--help", "-h"):
        assert entry.main([option]) == 0
        assert capsys.readouterr().out.strip() == entry.__doc__.strip()


# --- time -------------------------------------------------------------------------------------------------------------


def cpu_seconds(*arguments: str, code: int = 0) -> float:
    """Of a whole Python process that ends with `code`; the machine may do other things meanwhile."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == code
    return usage.ru_utime + usage.ru_stime


@pytest.mark.slow
def test_help_and_the_configuration_of_a_dry_run_come_well_before_torch_could() -> None:
    to_the_plan = "import sys, train; train.prepare = lambda *_: sys.exit(7); sys.exit(train.main(sys.argv[1:]))"
    calls = {
        "torch": ["-c", "import torch"],
        "train": ["train.py", "--help"],
        "evaluate": ["evaluate.py", "--help"],
        "sweep": ["sweep.py", "--help"],
        "configuration": ["-c", to_the_plan, "configs/fewgan.yaml", "--dry-run"],
        "mistake": ["train.py", "configs/fewgan.yaml", "module.widht=3"],
        "keys": ["train.py", "configs/fewgan.yaml", "--help"],
        "grid": ["sweep.py", "configs/fewgan.yaml", "seed=0,1", "run_dir=out/nowhere", "--dry-run"],
    }
    codes = {"mistake": 2, "configuration": 7}  # of the stub, which is reached
    rounds = [{name: cpu_seconds(*arguments, code=codes.get(name, 0)) for name, arguments in calls.items()} for _ in range(2)]
    best = {name: min(times[name] for times in rounds) for name in calls}
    assert all(best[name] < best["torch"] for name in calls if name != "torch"), best


def test_the_configuration_of_a_dry_run_is_shown_before_its_plan_is_there() -> None:
    arguments = [sys.executable, "train.py", "configs/fewgan.yaml", "module.width=8", "--dry-run"]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("# the plan follows"):
                break
        running = process.poll() is None
        process.kill()
    assert running and lines[-1].startswith("# the plan follows")
    assert OmegaConf.create("".join(lines)).module.width == 8 and "module:\n" in lines


def test_a_dry_run_imports_little_more_than_lightning() -> None:
    code = "import sys, train; train.main(sys.argv[1:]); print('#', {'wandb', 'lpips', 'kornia'} & set(sys.modules))"
    arguments = ["configs/fewgan.yaml", "datamodule.image_size=[48,64]", "module.width=8", "--dry-run"]
    result = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert result.stdout.endswith("# set()\n"), result.stdout[-200:] + result.stderr
