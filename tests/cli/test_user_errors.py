"""What a user reads after a mistake: one message with the key, the value, what is allowed, and the nearest right one."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

import evaluate
import train
from cli.loader import load_config
from core.errors import ErrorCollector, UserError, is_user_error, report_user_errors
from modules.fewgan import FewGAN
from modules.ops.scales import proportional_size, scale_sizes

ROOT = Path(__file__).parents[2]
FEWGAN, SINGAN, GPNN = "configs/fewgan.yaml", "configs/singan.yaml", "configs/gpnn.yaml"
TASK = "configs/tasks"
SMALL = ["datamodule.image_size=[48,64]", "module.width=8", "module.epochs_per_stage=1", "trainer.accelerator=cpu",
         "trainer.devices=1"]  # fmt: skip

# Entry point, arguments, and parts of the message. {data} is a folder with the files that `files` makes; it holds a run, too.
# Of the first table nothing needs more than the arguments, the YAML files and the source: neither torch nor lightning.
AT_ONCE: dict[str, tuple[str, list[str], list[str]]] = {
    # arguments
    "no method": ("train", [], ["module: missing", "configs/fewgan.yaml"]),
    "unknown option": ("train", [FEWGAN, "--dryrun"], ["--dryrun: no such option", "Did you mean --dry-run?"]),
    "value after a blank": ("train", [FEWGAN, "seed", "3"], ["seed: no value", "seed=…"]),
    "dotted key without a value": ("train", [FEWGAN, "module.lr_g", "3"], ["module.lr_g: no value", "module.lr_g=…"]),
    "method without its file": ("train", ["fewgam"], ["fewgam", "neither a .yaml file nor key=value", "configs/fewgan.yaml"]),
    "unknown method": ("train", ["configs/fewgna.yaml"],
        ["configs/fewgna.yaml: no such file", "Did you mean configs/fewgan.yaml"]),
    "file in another folder": ("train", ["fewgan.yaml"], ["fewgan.yaml: no such file", "Did you mean configs/fewgan.yaml?"]),
    "task for train.py": ("train", [FEWGAN, f"{TASK}/generate.yaml"], ["task: no such key", "evaluate.py"]),
    "value that is not YAML": ("train", [FEWGAN, "datamodule.image_size=[48,64"], ["datamodule.image_size=[48,64", "YAML"]),
    "broken file": ("train", ["{data}/broken.yaml"], ["broken.yaml, line 4"]),
    "key given twice in a file": ("train", ["{data}/twice.yaml"], ["twice.yaml, line 2", "duplicate", "seed"]),
    "file without keys": ("train", ["{data}/list.yaml"], ["list.yaml", "key: value"]),
    "empty value": ("train", [FEWGAN, "datamodule.root="], ["datamodule.root=", "no value", "null"]),
    # typos at each level
    "top level": ("train", [FEWGAN, "modul.lr_g=1"], ["modul: no such key", "Did you mean module or datamodule?"]),
    "module": ("train", [FEWGAN, "module.lrg=1"], ["module.lrg", "FewGAN", "Did you mean lr_g"]),
    "datamodule": ("train", [FEWGAN, "datamodule.side_rot=x"], ["datamodule.side_rot", "ImageDataModule", "side_root"]),
    "callbacks": ("train", [FEWGAN, "callbacks.image.num_images=4"], ["callbacks.image:", "Did you mean callbacks.images"]),
    "nested entry": ("train", [FEWGAN, "callbacks.images.num_image=4"],
        ["callbacks.images.num_image:", "ImageGrid", "num_images"]),
    "logger": ("train", [FEWGAN, "logger.wanb.project=x"], ["logger.wanb:", "Did you mean logger.wandb"]),
    "logger's key": ("train", [FEWGAN, "logger.csv.run_dri=x"], ["logger.csv.run_dri:", "MetricsCSV", "run_dir"]),
    "logger's open keys": ("train", [FEWGAN, "logger.wandb.projct=x"], ["logger.wandb.projct:", "Did you mean project?"]),
    "nothing similar": ("train", [FEWGAN, "module.zzz=1"], ["module.zzz", "FewGAN", "It has:", "num_codes", "lr_g"]),
    "key of another method": ("train", [SINGAN, "module.num_codes=9"], ["module.num_codes", "SinGAN has no such key"]),
    "key below a value": ("train", [FEWGAN, "module.epochs_per_stage.first=3"],
                          ["module.epochs_per_stage.first=3", "below one that has a value"]),
    "task": ("evaluate", ["{data}/old.ckpt", f"{TASK}/generate.yaml", "task.num_image=3"],
        ["task.num_image:", "Generate", "num_images"]),
    # classes
    "class outside of the project": ("train", [FEWGAN, "module.class_path=os.system"],
        ["module.class_path", "'os.system'", "modules."]),
    "no such module": ("train", [FEWGAN, "module.class_path=modules.fewgun.FewGAN"],
                       ["module.class_path", "no module modules.fewgun", "Did you mean modules.fewgan"]),
    "no such class": ("train", [FEWGAN, "module.class_path=modules.fewgan.FewGun"],
                      ["module.class_path", "no class FewGun", "Did you mean FewGAN?"]),
    "class that a module imports only": ("train", [FEWGAN, "module.class_path=modules.fewgan.Adam"],
        ["module.class_path", "Adam"]),
    "class of another package": ("train", [FEWGAN, "callbacks.own.class_path=tasks.generat.Generate"],
                              ["callbacks.own.class_path", "Did you mean tasks.generate"]),
    # types
    "text for a number": ("train", [FEWGAN, "module.width=wide"], ["module.width", "int", "'wide'"]),
    "fraction for a whole number": ("train", [FEWGAN, "datamodule.batch_size=1.5"], ["datamodule.batch_size", "int", "1.5"]),
    "list for a number": ("train", [FEWGAN, "module.lr_g=[1,2]"], ["module.lr_g", "float", "[1, 2]"]),
    "truth for a number": ("train", [FEWGAN, "module.depth=true"], ["module.depth", "int", "True"]),
    "number for a truth": ("train", [FEWGAN, "datamodule.flip=2"], ["datamodule.flip", "bool", "2"]),
    "number for a list": ("train", [FEWGAN, "datamodule.image_size=48"],
        ["datamodule.image_size: expected [height, width]", "48"]),
    "text in a list": ("train", [FEWGAN, "module.epochs_per_stage=[1,two,3]"],
        ["module.epochs_per_stage", "list[int >= 1]", "'two'"]),
    "text for a number or a list": ("train", [FEWGAN, "module.epochs_per_stage=many"],
        ["module.epochs_per_stage", "int", "'many'"]),
    "list of another length": ("train", [FEWGAN, "module.betas=[0.5]"], ["module.betas", "[beta1, beta2]", "[0.5]"]),
    "null": ("train", [FEWGAN, "module.lr_g=null"], ["module.lr_g", "float", "None"]),
    "null for a size": ("train", [FEWGAN, "datamodule.image_size=null"], ["datamodule.image_size", "[height, width]", "None"]),
    "number for a text": ("train", [FEWGAN, "datamodule.root=7"], ["datamodule.root", "path", "7", "Quote"]),
    "not a number": ("train", [FEWGAN, "module.lr_g=.nan"], ["module.lr_g", "float", "nan"]),
    "seed": ("train", [FEWGAN, "seed=first"], ["seed", "int", "'first'"]),
    "value for a group": ("train", [FEWGAN, "callbacks=false"], ["callbacks", "mapping or null", "False"]),
    "null for a group": ("train", [FEWGAN, "trainer=null"], ["trainer", "mapping", "None"]),
    "value for a nested entry": ("train", [FEWGAN, "callbacks.images=7"], ["callbacks.images", "7"]),
    "task's size": ("evaluate", ["{data}/old.ckpt", f"{TASK}/generate.yaml", "task.size=48"],
        ["task.size", "[height, width], both >= 1 or null", "48"]),
    "trainer's key": ("train", [FEWGAN, "trainer.devces=2"], ["trainer.devces", "Trainer", "Did you mean devices"]),
    "precision": ("train", [FEWGAN, "trainer.precision=bf16-mxed"],
        ["trainer.precision", "'bf16-mxed'", "Did you mean", "bf16-mixed"]),
    "devices": ("train", [FEWGAN, "trainer.devices=[one]"], ["trainer.devices", "['one']"]),
    # numbers
    "negative learning rate": ("train", [FEWGAN, "module.lr_d=-1e-4"], ["module.lr_d", "float > 0", "-0.0001"]),
    "batch of nothing": ("train", [FEWGAN, "datamodule.batch_size=0"], ["datamodule.batch_size", "int >= 1", "0"]),
    "negative number of pictures": ("train", [FEWGAN, "callbacks.images.num_images=-4"],
                                    ["callbacks.images.num_images", "int >= 2", "-4"]),
    "no samples to measure": ("train", [FEWGAN, "callbacks.metrics.num_images=0"],
        ["callbacks.metrics.num_images", "int >= 1", "0"]),
    "size of zero": ("train", [FEWGAN, "datamodule.image_size=[0,64]"], ["image_size", "both >= 1", "[0, 64]"]),
    "negative size": ("train", [GPNN, "datamodule.image_size=[-48,64]"], ["image_size", "both >= 1", "[-48, 64]"]),
    "scales that grow": ("train", [FEWGAN, "module.scale_factor=1.5"], ["module.scale_factor", "float > 0 and < 1", "1.5"]),
    "no epochs": ("train", [FEWGAN, "module.epochs_per_stage=[1,0,1]"], ["module.epochs_per_stage", "int >= 1", "[1, 0, 1]"]),
    "momentum": ("train", [FEWGAN, "module.betas=[0.5,1.0]"], ["module.betas", "< 1", "1.0"]),
    "negative seed": ("train", [FEWGAN, "seed=-1"], ["seed", "from 0 to 2^32 - 1", "-1"]),
    "task's number": ("evaluate", ["{data}/old.ckpt", f"{TASK}/generate.yaml", "task.num_images=0"],
                      ["task.num_images", "int >= 1", "0"]),
    # names and folders
    "name with slashes": ("train", [FEWGAN, "run_name=birds/first"], ["run_name", "'birds/first'", "letters, digits, _ and -"]),
    "name with blanks": ("train", [FEWGAN, "run_name=my run"], ["run_name", "'my run'"]),
    "environment variable": ("train", [FEWGAN, "datamodule.root=${oc.env:NO_SUCH_PHOTOS}"],
        ["datamodule.root", "NO_SUCH_PHOTOS"]),
    "link to nothing": ("train", [FEWGAN, "module.width=${module.wdth}"], ["module.width", "module.wdth"]),
    "no checkpoint": ("evaluate", [], ["no checkpoint given", "last.ckpt"]),
    "unknown checkpoint": ("evaluate", ["{data}/od.ckpt"], ["od.ckpt: no such checkpoint", "Did you mean old.ckpt"]),
    "checkpoint in an unknown folder": ("evaluate", ["{data}/runs/old.ckpt"], ["runs/old.ckpt: no such checkpoint"]),
    "value after a blank, evaluate": ("evaluate", ["{data}/old.ckpt", "out", "there"],
        ["out", "neither a checkpoint", "Did you mean out"]),
    "unknown option, evaluate": ("evaluate", ["{data}/old.ckpt", "--fast"], ["--fast: no such option"]),
    "key that the checkpoint fixes": ("evaluate", ["{data}/old.ckpt", "module.width=9"],
        ["module.width: fixed by the checkpoint", "out,"]),
    "file that the checkpoint fixes": ("evaluate", ["{data}/old.ckpt", FEWGAN], ["module: fixed by the checkpoint"]),
    "trainer's key, evaluate": ("evaluate", ["{data}/old.ckpt", "trainer.device=2"],
        ["trainer.device", "Did you mean trainer.devices"]),
    "task that is a number": ("evaluate", ["{data}/old.ckpt", "task=5"], ["task: expected mapping, got 5"]),
    "unknown task": ("evaluate", ["{data}/old.ckpt", f"{TASK}/generat.yaml"],
        ["generat.yaml: no such file", f"{TASK}/generate.yaml"]),
    "task without its picture": ("evaluate", ["{data}/old.ckpt", f"{TASK}/edit.yaml"], ["task.image", "needs a value"]),
    "run folder as a checkpoint": ("evaluate", ["{data}/run"], ["run: a folder", "Did you mean", "run/checkpoints/last.ckpt?"]),
    "folder without a checkpoint": ("evaluate", ["{data}/texts"], ["texts: a folder; a checkpoint is a file."]),
    "old option of a task": ("evaluate", ["{data}/old.ckpt", f"{TASK}/generate.yaml", "task.temperature=2"],
        ["task.temperature: Generate has no such key", "task.options.temperature=…"]),
    "seed of a task": ("evaluate", ["{data}/old.ckpt", f"{TASK}/generate.yaml", "task.seed=99999999999999999999"],
        ["task.seed", "from 0 to 2^32 - 1", "99999999999999999999"]),
    "list for a text": ("train", [FEWGAN, "datamodule.root=[x]"], ["datamodule.root", "'datamodule.root=\"[x]\"'"]),
    "name of a file in another normal form": ("train", ["{data}/e\u0301te\u0301.yaml"], ["Did you mean", "\u00e9t\u00e9.yaml"]),
    "two tasks": ("evaluate", ["{data}/old.ckpt", f"{TASK}/animate.yaml", f"{TASK}/generate.yaml"],
        ["task.", "Generate has no such key"]),
}  # fmt: skip

# What only lightning's classes, the constructors or the data can tell.
LATER: dict[str, tuple[str, list[str], list[str]]] = {
    "accelerator": ("train", [FEWGAN, "trainer.accelerator=abacus"], ["trainer", "'abacus'", "cpu"]),
    "strategy": ("train", [FEWGAN, "trainer.strategy=dpp"], ["trainer", "'dpp'", "ddp"]),
    "no devices": ("train", [FEWGAN, "trainer.devices=0"], ["trainer", "devices", "0"]),
    "missing folder": ("train", [FEWGAN, "datamodule.root={data}/photo"],
        ["root", "photo does not exist", "Did you mean", "photos"]),
    "empty folder": ("train", [FEWGAN, "datamodule.root={data}/empty"], ["root", "no image in", "empty", ".png"]),
    "folder of texts": ("train", [FEWGAN, "datamodule.side_root={data}/texts"], ["side_root", "no image", ".txt"]),
    "damaged image": ("train", [FEWGAN, "datamodule.root={data}/damaged"], ["a.png"]),
    "no such image": ("train", [SINGAN, "datamodule.image=001.jpeg"], ["image", "001.jpeg", "Did you mean 001.jpg"]),
    "image number": ("train", [SINGAN, "datamodule.image=9"], ["image", "index 9"]),
    "three numbers for a size": ("train", [FEWGAN, "datamodule.image_size=[48,64,3]"],
        ["image_size", "[height, width]", "[48, 64, 3]"]),
    "smaller than a scale": ("train", [FEWGAN, "datamodule.image_size=[20,64]"],
        ["module", "image_size [20, 64]", "min_size 24"]),
    "scale above the image": ("train", [FEWGAN, "module.min_size=60"], ["module", "[48, 64]", "min_size 60"]),
    "too small for a patch": ("train", [GPNN, "module.patch=31"], ["module", "min_size", "patch 31"]),
    "epochs of other stages": ("train", [FEWGAN, "module.epochs_per_stage=[1,2]"],
        ["module", "epochs_per_stage", "[1, 2]", "expected"]),
    "one image and several": ("train", [SINGAN, "datamodule.image=null"], ["SinGAN", "one image", "datamodule.image=NAME"]),
    "one image and its mirror image": ("train", [SINGAN, "datamodule.flip=true"],
        ["SinGAN", "one image", "datamodule.flip=false"]),
    "tiles without a tiling": ("train", [SINGAN, "module.tiles=[1,5]"], ["module.tiles", "[1, 5]", "datamodule.tile"]),
    "tiling without tiles": ("train", [SINGAN, "datamodule.image=null", "datamodule.tile=row"],
        ["module.tiles", "module.tiles=[1,5]"]),
    "unknown tiling": ("train", [SINGAN, "datamodule.tile=rows"], ["datamodule.tile", "'rows'", "'row' or 'column' or 'grid'"]),
    "too many images": ("train", [GPNN, "module.max_images=2"], ["module.max_images", "2", "module.max_images=5"]),
    "unknown backend": ("train", [GPNN, "module.backend=exat"], ["module", "backend", "'exat'", "exact"]),
    "no side images": ("train", ["{data}/few.yaml"], ["FewGAN", "side images"]),
    **{f"former class {name}": ("train", [FEWGAN, f"datamodule.class_path=datamodules.{name}DataModule"],
        ["datamodule.class_path", f"datamodules.{name}DataModule is datamodules.image_datamodule.ImageDataModule now"])
       for name in ("fewshot.FewShot", "side.Side", "source.Source")},
    "name of one image of a file": ("train", [SINGAN, "datamodule.root=datamodules/starter/landscapes/001.jpg"],
        ["image: 000.jpg", "landscapes/001.jpg", "datamodule.image=null"]),
    "metric": ("train", [FEWGAN, "callbacks.metrics.metrics=[fid]"], ["callbacks.metrics", "'fid'", "fd", "Did you mean"]),
    "weights of the metrics": ("train", [FEWGAN, "callbacks.metrics.weights={data}/no.pth"], ["callbacks.metrics", "no.pth"]),
    "backbone of the metrics": ("train", [FEWGAN, "callbacks.metrics.backbone=vgg61"],
        ["callbacks.metrics", "backbone", "vgg61"]),
    "resume from nothing": ("train", [FEWGAN, "resume={data}/nothing.ckpt"], ["nothing.ckpt", "no such"]),
    "resume from a folder": ("train", [FEWGAN, "resume={data}/photos"], ["photos"]),
    "resume from a text": ("train", [FEWGAN, "resume={data}/old.ckpt"], ["old.ckpt", "a checkpoint"]),
    "folder that is a file": ("train", [FEWGAN, "run_dir={data}/list.yaml"], ["list.yaml"]),
    "folder of another run": ("train", [FEWGAN, "run_dir={data}/run"], ["run holds a run", "resume=auto", "run_name=…"]),
    "text as a checkpoint": ("evaluate", ["{data}/old.ckpt"], ["old.ckpt", "a checkpoint"]),
}  # fmt: skip


def files(folder: Path) -> Path:
    """What the tables speak of."""
    texts = {
        "broken.yaml": "seed: 1\nmodule:\n  a: [1\n",
        "twice.yaml": "seed: 1\nseed: 2\n",
        "list.yaml": "- 1\n",
        "\u00e9t\u00e9.yaml": "seed: 1",
        "few.yaml": "module: {class_path: modules.fewgan.FewGAN, image_size: [48, 64], min_size: 24}\n"
        "datamodule: {class_path: datamodules.image_datamodule.ImageDataModule, root: datamodules/starter/landscapes}\n",
        "old.ckpt": "no checkpoint",
        "texts/a.txt": "no image",
        "damaged/a.png": "no image",
        "run/checkpoints/last.ckpt": "a run",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "empty").mkdir()
    (folder / "photos").mkdir()
    Image.new("RGB", (64, 48)).save(folder / "photos/a.png")
    return folder


def filled(arguments: list[str], data: Path, run_dir: Path | None) -> list[str]:
    """The arguments with the folder of the files, and with a folder for the run unless they give one."""
    arguments = [word.replace("{data}", str(data)) for word in arguments]
    given = {word.split("=")[0] for word in arguments}
    return arguments if "run_dir" in given or run_dir is None else [*arguments, f"run_dir={run_dir}"]


# Cases with several mistakes, and how many.
SEVERAL = {"value after a blank": 2, "dotted key without a value": 2, "value after a blank, evaluate": 2, "two tasks": 2,
           "task without its picture": 2, "folder that the method's data does not have": 2}  # fmt: skip


def check(case: str, code: int, output: str, error: str, parts: list[str]) -> None:
    lines = [line for line in error.splitlines() if line and not line.startswith(("GPU ", "TPU "))]
    assert code == 2, error
    assert len(lines) == SEVERAL.get(case, 1) and all(line.startswith("error: ") for line in lines), error
    assert any(all(part in line for part in parts) for line in lines), error
    assert not output


def files_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files(tmp_path_factory.mktemp("wrong") / "data")


CALLS = """
import contextlib, io, json, sys
import evaluate, train
for name, (entry, arguments) in json.load(sys.stdin).items():
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        code = {"train": train, "evaluate": evaluate}[entry].main(arguments)
    heavy = sorted({"torch", "lightning", "wandb", "torchvision"} & set(sys.modules))
    print(json.dumps([name, code, output.getvalue(), error.getvalue(), heavy]))
"""


@pytest.fixture(scope="module")
def answers(data: Path) -> dict[str, list]:
    """Code, output, error and heavy imports so far of every call of the first table, in one process of their own."""
    out = data.parent / "out"
    folders = {"train": out, "evaluate": None}
    calls = {name: (entry, filled(arguments, data, folders[entry])) for name, (entry, arguments, _) in AT_ONCE.items()}
    before = files_of(data)
    result = subprocess.run(
        [sys.executable, "-c", CALLS], cwd=ROOT, input=json.dumps(calls), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert files_of(data) == before and not out.exists()
    return {name: rest for name, *rest in map(json.loads, result.stdout.splitlines())}


@pytest.mark.parametrize("case", AT_ONCE, ids=[name.replace(" ", "-") for name in AT_ONCE])
def test_what_words_and_files_tell_is_answered_at_once(case: str, answers: dict[str, list]) -> None:
    code, output, error, heavy = answers[case]
    check(case, code, output, error, AT_ONCE[case][2])
    assert not heavy


@pytest.mark.parametrize("case", LATER, ids=[name.replace(" ", "-") for name in LATER])
def test_what_needs_the_classes_or_the_data_leaves_nothing_behind(
    case: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    entry, arguments, parts = LATER[case]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # lightning's handler writes to the stderr of an earlier test
    out, before = data.parent / "out", files_of(data)
    small = [word for word in SMALL if arguments[0] != GPNN or word.startswith(("datamodule", "trainer"))]
    small = [word.replace("module.width", "module.max_width") if arguments[0] == SINGAN else word for word in small]
    if entry == "train":
        arguments = filled([arguments[0], *small, *arguments[1:]], data, out)
    else:
        arguments = filled(arguments, data, None)
    code = {"train": train, "evaluate": evaluate}[entry].main(arguments)
    captured = capsys.readouterr()
    check(case, code, captured.out, captured.err, parts)
    assert files_of(data) == before and not out.exists()


# --- user errors and bugs ---------------------------------------------------------------------------------------------


def raised(function, *arguments) -> Exception:
    with pytest.raises(Exception) as caught:
        function(*arguments)
    return caught.value


def test_what_the_project_refuses_is_a_user_error_and_what_breaks_is_not() -> None:
    assert is_user_error(raised(scale_sizes, (8, 8), 8))
    assert is_user_error(raised(load_config, ["seed"]))
    assert is_user_error(raised(open, "no such file"))
    assert is_user_error(MisconfigurationException("of Lightning"))
    assert not is_user_error(raised(proportional_size, (1,), (2, 2), (1, 1)))  # a zip of unequal parts, in the project
    assert not is_user_error(raised(torch.ones, 2, -3))
    assert not is_user_error(raised(int, "x")) and not is_user_error(KeyError("x")) and not is_user_error(MemoryError())


@pytest.mark.parametrize("is_bug", [False, True])
def test_a_user_error_in_training_is_one_line_and_a_bug_has_its_traceback(
    is_bug: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    broken = (lambda _: proportional_size((1,), (2, 2), (1, 1))) if is_bug else (lambda _: scale_sizes((8, 8), 8))
    monkeypatch.setattr(FewGAN, "on_train_epoch_start", broken)
    arguments = ["configs/fewgan.yaml", "datamodule.class_path=datamodules.synthetic.SyntheticDataModule",
                 "datamodule.image_size=[16,20]", "module.min_size=8", "module.width=4", "logger.wandb=null",
                 "callbacks.images=null", "callbacks.metrics=null", "trainer.accelerator=cpu", "trainer.devices=1",
                 f"run_dir={tmp_path}/run"]  # fmt: skip
    if is_bug:
        with pytest.raises(ValueError, match="zip"):
            train.main(arguments)
    else:
        assert train.main(arguments) == 2
        assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: image_size [8, 8]")]
    assert '"status": "failed"' in (tmp_path / "run/run.json").read_text()


def test_every_message_of_a_user_error_is_a_line(capsys: pytest.CaptureFixture) -> None:
    with report_user_errors() as errors:
        raise UserError("first", "second")
    assert errors.exit_code == 2 and capsys.readouterr().err == "error: first\nerror: second\n"
    mistakes = ErrorCollector()
    mistakes.raise_any()
    with mistakes.collect("a"):
        raise UserError("a: wrong")
    mistakes.add("a", "a: a second message")
    mistakes.add("b", "b: as a is")
    mistakes.copies["b"] = "a"
    with pytest.raises(UserError) as caught:
        mistakes.raise_any()
    assert caught.value.args == ("a: wrong",)
