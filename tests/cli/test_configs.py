"""The way from words and files to objects: order, types, and what a user reads after a mistake."""

import inspect
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

import train
from cli.build import OWN, build, check
from cli.environment import configure_openmp
from cli.errors import is_user_error
from cli.loader import MAPPING, load_config, nodes
from cli.signatures import signature_of
from cli.values import converted, out_of_range
from core.errors import UserError, nearest_hint
from datamodules.image_datamodule import check_image_size
from modules.fewgan import FewGAN
from modules.ops.scales import proportional_size

ROOT = Path(__file__).parents[2]
YAMLS = sorted(path for path in ROOT.glob("configs/*.yaml") if path.name != "base.yaml")
CHECKPOINT = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def plain(config) -> dict:
    return OmegaConf.to_container(config)


def refusal(function, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    return str(caught.value)


# --- order and values -------------------------------------------------------------------------------------------------


def test_files_from_left_to_right_then_words_wherever_they_stand(tmp_path):
    first = write(tmp_path, "first.yaml", "seed: 1\nrun_name: first\nmodule: {a: 1, b: 1, c: [1, 2, 3]}")
    second = write(tmp_path, "second.yaml", "seed: 2\nmodule: {b: 2, c: [4]}")
    config = load_config(["module.b=3", first, "module.b=4", second])
    assert config.seed == 2 and plain(config.module) == {"a": 1, "b": 4, "c": [4]}
    assert config.run_dir == "runs/first"


def test_base_yaml_is_the_start_unless_another_is_given():
    assert load_config([]).run_dir == "runs/run"
    given = {"run_name": "old", "datamodule": {"root": "a", "image_size": [3, 4]}}
    config = load_config(["datamodule.root=b", "out=there"], start=given, extra_keys={"out": (str,)})
    assert plain(config) == {"run_name": "old", "datamodule": {"root": "b", "image_size": [3, 4]}, "out": "there"}
    assert given["datamodule"]["root"] == "a"


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("trainer.devices=2", "trainer.devices", 2),
        ("datamodule.image_size=[48,64]", "datamodule.image_size", [48, 64]),
        ("callbacks.checkpoint=null", "callbacks.checkpoint", None),
        ("logger=null", "logger", None),
        ("module.lr_g=1e-4", "module.lr_g", 0.0001),
        ("resume=runs/a/checkpoints/epoch=3.ckpt", "resume", "runs/a/checkpoints/epoch=3.ckpt"),
        ("resume=null", "resume", None),
        ("run_name=007", "run_name", "007"),
        ("run_name=no", "run_name", "no"),
        ("run_dir=1e3", "run_dir", "1e3"),
    ],
)
def test_values_are_yaml_and_names_stay_as_written(word, key, value):
    assert OmegaConf.select(load_config([word]), key) == value


def test_interpolation_and_environment(monkeypatch):
    monkeypatch.setenv("PHOTOS", "somewhere/photos")
    config = load_config(["seed=7", "module.image_size=${datamodule.image_size}", "datamodule.image_size=[8,9]",
                          "datamodule.root=${oc.env:PHOTOS}"])  # fmt: skip
    assert plain(config.module) == {"image_size": [8, 9]}
    assert config.datamodule.root == "somewhere/photos" and config.callbacks.images.seed == 7


# --- mistakes in words and files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("foo", ["foo", ".yaml", "key=value"]),
        ("seed", ["seed", "key=value"]),
        ("--dryrun", ["--dryrun", "--dry-run"]),
        ("modul.lr_g=1", ["modul", "Did you mean module"]),
        ("seed=abc", ["seed", "int", "'abc'"]),
        ("seed=1.5", ["seed", "int", "1.5"]),
        ("seed=true", ["seed", "int", "True"]),
        ("seed.x=1", ["seed", "int"]),
        ("module=3", ["module", "mapping", "3"]),
        ("trainer=null", ["trainer", "mapping"]),
        ("run_name=a/b", ["run_name", "'a/b'", "letters"]),
        ("run_name=", ["run_name=", "no value"]),
        ("datamodule.root=", ["datamodule.root=", "no value"]),
        ("=3", ["=3", "not a key"]),
        ("module..x=3", ["module..x", "not a key"]),
        ("module.x={", ["module.x={", "YAML"]),
        ("module.x=${nowhere}", ["module.x", "nowhere"]),
        ("module.x=${oc.env:HANDFUL_NOT_SET}", ["module.x", "HANDFUL_NOT_SET"]),
        ("module.x=${oc.create:1}", ["module.x", "oc.create", "oc.env"]),
        ("module.x=???", ["module.x", "needs a value"]),
    ],
)
def test_a_wrong_word_is_named_with_what_would_be_right(word, parts):
    message = refusal(load_config, [word])
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_a_missing_file_is_answered_with_the_nearest(tmp_path):
    write(tmp_path, "fewgan.yaml", "seed: 1")
    message = refusal(load_config, [str(tmp_path / "fewgam.yaml")])
    assert "fewgam.yaml: no such file" in message and f"Did you mean {tmp_path / 'fewgan.yaml'}" in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed: 1\nmodule:\n  a: [1\nrun_name: x\n", ["line 4"]),
        ("seed: 1\nseed: 2\n", ["line 2", "duplicate"]),
        ("- 1\n- 2\n", ["key: value"]),
        ("seed: !!python/object/apply:os.getcwd []\n", ["line 1", "python"]),
        ("sede: 1\n", ["sede", "Did you mean seed"]),
    ],
)
def test_a_broken_file_is_named_with_the_line(tmp_path, text, parts):
    file = write(tmp_path, "broken.yaml", text)
    message = refusal(load_config, [file])
    assert all(part in message for part in parts), message
    assert "sede" in text or "broken.yaml" in message


def test_extra_keys_have_types_too():
    keys = {"task": MAPPING, "out": (str,)}
    assert plain(load_config(["task.image=a.png"], extra_keys=keys).task) == {"image": "a.png"}
    assert "task" in refusal(load_config, ["task.image=a.png"])
    assert "mapping" in refusal(load_config, ["task=5"], extra_keys=keys)


def test_nearest():
    assert nearest_hint("lr_gg", ["lr_g", "width"]) == " Did you mean lr_g?"
    assert nearest_hint("zzz", ["lr_g", "width"]) == ""
    assert nearest_hint("pant.yaml", ["paint.yaml", "paint.yaml", "print.yaml"]) == " Did you mean paint.yaml or print.yaml?"


# --- objects ----------------------------------------------------------------------------------------------------------


def test_build_passes_the_given_keys_as_plain_values_of_the_right_type():
    node = {"class_path": "datamodules.synthetic.SyntheticDataModule", "image_size": [12, 16], "batch_size": 2}
    data = build(OmegaConf.create(node))
    assert type(data).__name__ == "SyntheticDataModule" and data.batch_size == 2 and data.samples_per_epoch == 4000
    assert type(data.image_size) is list and data.image_size == [12, 16]
    callback = build(OmegaConf.create({"class_path": "callbacks.image_grid.ImageGrid", "seed": 3}))
    assert (callback.seed, callback.num_images) == (3, 16)


def test_build_injects_objects_that_yaml_cannot_hold():
    callback = build(OmegaConf.create({"class_path": "callbacks.image_grid.ImageGrid"}))
    node = OmegaConf.create({"class_path": "lightning.Trainer", "accelerator": "cpu"})
    assert callback in build(node, callbacks=[callback], logger=[]).callbacks
    node.callbacks = []
    assert "callbacks" in refusal(build, node, callbacks=[callback])


def config_with(**node):
    return OmegaConf.create({"callbacks": {"own": node}}).callbacks.own


@pytest.mark.parametrize(
    ("node", "parts"),
    [
        ({"class_path": "os.system"}, ["callbacks.own.class_path", "os.system", "modules."]),
        ({"class_path": "moduleslike.X"}, ["callbacks.own.class_path", "modules."]),
        ({"seed": 1}, ["callbacks.own.class_path", "None"]),
        ({"class_path": "callbacks.image_gird.ImageGrid"}, ["callbacks.own.class_path", "callbacks.image_gird"]),
        ({"class_path": "callbacks.image_grid.ImageGird"}, ["callbacks.own.class_path", "Did you mean ImageGrid"]),
        ({"class_path": "callbacks.image_grid.evaluating"}, ["no class evaluating"]),
        ({**CHECKPOINT, "save_topk": 1}, ["callbacks.own.save_topk", "ModelCheckpoint", "save_top_k"]),
        ({**CHECKPOINT, "zzz": 1}, ["callbacks.own.zzz", "ModelCheckpoint", "It has:", "save_top_k"]),
        ({**CHECKPOINT, "save_top_k": "many"}, ["callbacks.own.save_top_k", "int", "'many'"]),
        ({**CHECKPOINT, "save_top_k": 1.5}, ["callbacks.own.save_top_k", "int", "1.5"]),
        ({**CHECKPOINT, "verbose": [1]}, ["callbacks.own.verbose", "bool", "[1]"]),
        ({**CHECKPOINT, "mode": 7}, ["callbacks.own.mode", "str", "7", "Quote"]),
        ({**CHECKPOINT, "filename": False}, ["callbacks.own.filename", "str", "False", "Quote"]),
        ({"class_path": "lightning.pytorch.callbacks.EarlyStopping"}, ["callbacks.own.monitor", "missing"]),
        ({"class_path": "datamodules.fewshot.FewShotDataModule", "root": "a", "image_size": [1, "x"]},
         ["callbacks.own.image_size", "list[int]", "'x'"]),
        ({"class_path": "lightning.pytorch.loggers.WandbLogger", "projct": "x"}, ["callbacks.own.projct", "project"]),
    ],
)  # fmt: skip
def test_a_node_that_does_not_fit_its_class_is_refused_with_the_full_key(node, parts):
    message = refusal(check, config_with(**node))
    assert all(part in message for part in parts), message
    assert refusal(build, config_with(**node)) == message


def test_a_class_with_open_keywords_takes_more_than_it_names():
    _, keywords = check(config_with(class_path="lightning.pytorch.loggers.WandbLogger", entity="team", project="x"))
    assert keywords == {"entity": "team", "project": "x"}


def test_a_node_that_is_no_mapping_is_refused():
    assert "callbacks.images" in refusal(check, 5, "callbacks.images")
    assert "configs/fewgan.yaml" in refusal(check, None, "module")


def test_values_that_a_constructor_refuses_are_reported_with_the_key():
    node = config_with(class_path="callbacks.image_grid.ImageGrid", num_images=1)
    assert refusal(build, node).startswith("callbacks.own: num_images=1")


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_shipped_configuration_fits_its_classes(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config([str(path)])
    found = dict(nodes(config))
    assert {"module", "datamodule", "trainer", "logger.csv", "callbacks.checkpoint"} <= found.keys()
    for key, node in found.items():
        check(node, key)
    assert config.run_name == path.stem, "run folders of different methods would be the same"
    assert "module.nothing" in refusal(check, OmegaConf.merge(config.module, {"nothing": 1}), "module")


def test_configs_import_neither_torch_nor_lightning():
    code = "import sys, cli.build, train, evaluate, sweep; print({'torch', 'lightning', 'wandb'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# --- signatures, values, mistakes -------------------------------------------------------------------------------------


def class_paths() -> list[str]:
    """All that the shipped YAML files name."""
    texts = [path.read_text() for path in ROOT.glob("configs/**/*.yaml")]
    return sorted({name for text in texts for name in re.findall(r"^\s*class_path: (\S+)", text, re.M) if name.startswith(OWN)})


@pytest.mark.parametrize("class_path", class_paths())
def test_the_signature_in_the_source_is_that_of_the_class(class_path: str) -> None:
    module, name = class_path.rsplit(".", 1)
    real = inspect.signature(getattr(import_module(module), name)).parameters
    read = signature_of(class_path).parameters
    assert [(p.name, p.kind) for p in read.values()] == [(p.name, p.kind) for p in real.values()]
    for key, parameter in real.items():
        known = read[key].default is not ...
        assert read[key].default == parameter.default if known else parameter.default is not parameter.empty, key
        if parameter.kind is not parameter.VAR_KEYWORD:
            assert read[key].annotation in (parameter.annotation, Any), key


def test_a_class_without_a_constructor_has_that_of_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.signatures.ROOT", tmp_path)
    (tmp_path / "modules").mkdir()
    source = "class First:\n    def __init__(self, a: int, /, b: 'list[int]' = C, *, c=None): ..."
    write(tmp_path / "modules", "first.py", source)
    source = "from modules.first import First\nfrom os import Any\nclass Other(Any): ...\nclass Second(First): ...\n"
    source += "class Third(Second): ...\n"
    write(tmp_path / "modules", "second.py", source)
    parameters = signature_of("modules.second.Third").parameters
    assert [(p.name, p.default) for p in parameters.values()] == [("a", inspect.Parameter.empty), ("b", ...), ("c", None)]
    with pytest.raises(TypeError, match="modules.second.Other"):
        signature_of("modules.second.Other")


@pytest.mark.parametrize(
    ("hint", "fitting", "others"),
    [
        (int, [(3, 3), (-1, -1)], [True, 3.0, "3", None, [3]]),
        (float, [(3, 3.0), (0.5, 0.5), (float("inf"), float("inf"))], [True, "0.5", None, float("nan")]),
        (bool, [(True, True)], [1, 0, "yes", None]),
        (str, [("3", "3")], [3, None, ["a"]]),
        (int | None, [(3, 3), (None, None)], [3.5, "None"]),
        (float | None, [(3, 3.0)], [[3]]),
        (str | int | None, [("3", "3"), (3, 3)], [3.5]),
        (int | list[int], [(3, 3), ([3, 4], [3, 4])], [[3, "4"], {"a": 3}, 3.5]),
        (list[int], [([], []), ((3,), [3])], [3, [3.5]]),
        (tuple[int, int], [([3, 4], (3, 4))], [[3], [3, 4, 5], [3, "4"]]),
        (tuple[float, ...], [([3, 4], (3.0, 4.0)), ([], ())], [["a"]]),
        (dict, [({"a": 1}, {"a": 1})], [[1]]),
        (Literal["min", "max"], [("min", "min")], ["mean", None]),
        (Literal[1], [(1, 1)], [True]),
        (Path, [], ["a"]),
        (Any, [(3, 3), (None, None)], []),
    ],
)
def test_values_are_of_the_type_of_the_parameter(hint: Any, fitting: list, others: list) -> None:
    for given, expected in fitting:
        assert converted(given, hint) == expected and type(converted(given, hint)) is type(expected)
    for given in others:
        with pytest.raises(ValueError):
            converted(given, hint)


@pytest.mark.parametrize("class_path", class_paths())
def test_every_default_is_within_the_range_of_its_name(class_path: str) -> None:
    parameters = signature_of(class_path).parameters.values()
    assert not {p.name: out_of_range(p.name, p.default) for p in parameters if out_of_range(p.name, p.default)}


def raised(function, *arguments) -> Exception:
    with pytest.raises(Exception) as caught:
        function(*arguments)
    return caught.value


def test_what_the_project_refuses_is_a_mistake_and_what_breaks_is_not() -> None:
    assert is_user_error(raised(check_image_size, [1]))
    assert is_user_error(raised(load_config, ["seed"]))
    assert is_user_error(raised(open, "no such file"))
    assert not is_user_error(raised(proportional_size, (1,), (2, 2), (1, 1)))  # a zip of unequal parts, in the project
    assert not is_user_error(raised(import_module("torch").ones, 2, -3))
    assert not is_user_error(raised(int, "x"))


MISTAKE, FAULT = lambda _: check_image_size([1]), lambda _: proportional_size((1,), (2, 2), (1, 1))  # noqa: E731


@pytest.mark.parametrize(("broken", "code"), [(MISTAKE, 2), (FAULT, None)], ids=["mistake", "fault"])
def test_a_mistake_found_late_is_one_line_and_a_fault_has_its_traceback(broken, code, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(FewGAN, "on_train_epoch_start", broken)
    words = ["configs/fewgan.yaml", "datamodule.class_path=datamodules.synthetic.SyntheticDataModule",
             "datamodule.image_size=[16,20]",
             "module.min_size=8", "module.width=4", "logger.wandb=null", "callbacks.images=null", "callbacks.metrics=null",
             "trainer.accelerator=cpu", "trainer.devices=1", f"run_dir={tmp_path}/run"]  # fmt: skip
    if code is None:
        with pytest.raises(ValueError, match="zip"):
            train.main(words)
    else:
        assert train.main(words) == code
        assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: image_size must be")]
    assert '"status": "failed"' in (tmp_path / "run/run.json").read_text()


# --- time -------------------------------------------------------------------------------------------------------------


def cpu_seconds(*words: str, code: int = 0) -> float:
    """Of a whole Python process that ends with `code`; the machine may do other things meanwhile."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, env=environment)
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
        "grid": ["sweep.py", "configs/fewgan.yaml", "seed=0,1", "run_dir=out/nowhere", "--dry-run"],
    }
    codes = {"configuration": 7}  # of the stub, which is reached
    rounds = [{name: cpu_seconds(*words, code=codes.get(name, 0)) for name, words in calls.items()} for _ in range(2)]
    best = {name: min(times[name] for times in rounds) for name in calls}
    assert all(best[name] < best["torch"] for name in calls if name != "torch"), best


def test_the_configuration_of_a_dry_run_is_shown_before_its_plan_is_there() -> None:
    words = [sys.executable, "train.py", "configs/fewgan.yaml", "module.width=8", "--dry-run"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
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
    words = ["configs/fewgan.yaml", "datamodule.image_size=[48,64]", "module.width=8", "--dry-run"]
    result = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert result.stdout.endswith("# set()\n"), result.stdout[-200:] + result.stderr


# --- environment ------------------------------------------------------------------------------------------------------


def test_threads_sleep_unless_the_user_decided():
    environment = {}
    configure_openmp(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    for chosen in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "0"}):
        environment = dict(chosen)
        configure_openmp(environment)
        assert environment == chosen
