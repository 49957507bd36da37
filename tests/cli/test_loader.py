"""From arguments and files to one configuration: order, values, and what a user reads after a mistake."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cli.loader import load_config, nodes, parse_value, read_config
from cli.schema import signature_of
from core.errors import UserError, nearest_hint

ROOT = Path(__file__).parents[2]
YAMLS = sorted(path for path in ROOT.glob("configs/*.yaml") if path.name != "base.yaml")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


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
    config = read_config(["module.b=3", first, "module.b=4", second])
    assert config.seed == 2 and plain(config.module) == {"a": 1, "b": 4, "c": [4]}
    assert config.run_dir == "runs/first"


def test_the_last_of_equal_keys_counts_also_when_an_argument_is_repeated():
    assert read_config(["seed=1", "seed=2"]).seed == 2 and read_config(["seed=1", "seed=2", "seed=1"]).seed == 1


def test_base_yaml_is_the_start_unless_another_is_given():
    assert read_config([]).run_dir == "runs/run"
    given = {"run_name": "old", "datamodule": {"root": "a", "image_size": [3, 4]}}
    config = read_config(["datamodule.root=b", "out=there"], start=given)
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
    assert OmegaConf.select(read_config([word]), key) == value


def test_interpolation_and_environment(monkeypatch):
    monkeypatch.setenv("PHOTOS", "somewhere/photos")
    config = read_config(["seed=7", "module.image_size=${datamodule.image_size}", "datamodule.image_size=[8,9]",
                          "datamodule.root=${oc.env:PHOTOS}"])  # fmt: skip
    assert plain(config.module) == {"image_size": [8, 9]}
    assert config.datamodule.root == "somewhere/photos" and config.callbacks.images.seed == 7


# --- mistakes in arguments and files --------------------------------------------------------------------------------------


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
    message = refusal(read_config, [word])
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_a_missing_file_is_answered_with_the_nearest(tmp_path):
    write(tmp_path, "fewgan.yaml", "seed: 1")
    message = refusal(read_config, [str(tmp_path / "fewgam.yaml")])
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
    message = refusal(read_config, [file])
    assert all(part in message for part in parts), message
    assert "sede" in text or "broken.yaml" in message


def test_the_keys_of_evaluate_py_have_types_too():
    assert plain(read_config(["task.image=a.png"], start={}).task) == {"image": "a.png"}
    assert "task" in refusal(read_config, ["task.image=a.png"])
    assert "mapping" in refusal(read_config, ["task=5"], start={})


def test_nearest():
    assert nearest_hint("lr_gg", ["lr_g", "width"]) == " Did you mean lr_g?"
    assert nearest_hint("zzz", ["lr_g", "width"]) == ""
    assert nearest_hint("pant.yaml", ["paint.yaml", "paint.yaml", "print.yaml"]) == " Did you mean paint.yaml or print.yaml?"




def test_an_override_that_is_no_whole_yaml_value_is_a_text():
    for text in ("birds #1", "[1,2] #x", "'a' #1", "a: b", "- a", "#1", "12:30:00", "001", "010", "0x1f", "0b1", "1_000",
                 "2024_10", "2024-01-02", "-007", "00.5"):  # fmt: skip
        assert parse_value(text) == text
    values = {"0": 0, "-1": -1, "+3": 3, "0.5": 0.5, ".5": 0.5, "1.": 1.0, "1e-4": 1e-4, "-.inf": -float("inf"), "null": None,
              "[001, 1]": ["001", 1], "{a: 007}": {"a": "007"}, "'a # b'": "a # b", "true": True}  # fmt: skip
    for text, value in values.items():
        assert parse_value(text) == value and type(parse_value(text)) is type(value)


def test_texts_with_leading_zeros_stay_texts_in_files_too(tmp_path):
    file = write(tmp_path, "a.yaml", "module: {image: 001, time: 12:30:00, number: 10}")
    assert plain(read_config([file]).module) == {"image": "001", "time": "12:30:00", "number": 10}


def test_the_home_folder_is_expanded_wherever_a_path_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = write(tmp_path, "home.yaml", "run_dir: ~/runs/x\nresume: ~/a.ckpt\ndatamodule: {root: ~/photos}")
    config = load_config(["configs/fewgan.yaml", file, "datamodule.side_root=~/side", "callbacks.metrics.weights=~/w"])
    assert config.run_dir == config.trainer.default_root_dir == config.logger.csv.run_dir == f"{tmp_path}/runs/x"
    assert config.resume == f"{tmp_path}/a.ckpt" and config.callbacks.checkpoint.dirpath == f"{tmp_path}/runs/x/checkpoints"
    assert config.datamodule.root == f"{tmp_path}/photos" and config.datamodule.side_root == f"{tmp_path}/side"
    assert config.callbacks.metrics.weights == f"{tmp_path}/w" and "~" not in OmegaConf.to_yaml(config)
    assert load_config([file, str(ROOT / "configs/fewgan.yaml"), "run_dir=~"]).run_dir == str(tmp_path)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_complete(path):
    config = load_config([str(path)])
    found = dict(nodes(config))
    assert {"module", "datamodule", "trainer", "logger.csv", "callbacks.checkpoint"} <= found.keys()
    for node in found.values():
        named = {name for name, p in signature_of(node.class_path).items() if p.kind is not p.VAR_KEYWORD}
        assert node.keys() == {"class_path", *named} or node.class_path.startswith("lightning.")
    extractor = (config.module.get("condition") or {}).get("extractor")  # part of the name where it decides what is measured
    assert config.run_name in (path.stem, f"{path.stem}_{extractor}"), "run folders of different methods would be the same"
    assert load_config([], start=plain(config)) == config, "completing twice changes nothing"
    message = refusal(load_config, [str(path), "module.nothing=1"])
    assert message.startswith("module.nothing: ") and "\n" not in message


def test_all_mistakes_of_a_command_are_in_one_error():
    arguments = ["configs/fewgan.yaml", "sed=1", "seed=-1", "module.lrg=1", "module.width=0", "trainer.devces=2", "x.y={",
                 "datamodule.seed=${nowhere}", "callbacks.image.num_images=3"]  # fmt: skip
    with pytest.raises(UserError) as caught:
        load_config(arguments)
    keys = [message.split(":")[0] for message in caught.value.args]
    assert sorted(keys) == ["callbacks.image", "datamodule.seed", "module.lrg", "module.width", "sed", "seed", "trainer.devces",
                            "x.y={"]  # fmt: skip
    with pytest.raises(UserError) as caught:  # without the file nothing is known about the objects
        load_config(["configs/fewgam.yaml", "seed", "--fast", "module.x={", "module.width=0"])
    assert len(caught.value.args) == 4


def test_loading_imports_neither_torch_nor_lightning():
    code = "import sys, cli.build, train, evaluate, sweep; cli.build; from cli.loader import load_config; "
    code += "load_config(['configs/fewgan.yaml']); print({'torch', 'lightning', 'wandb'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
