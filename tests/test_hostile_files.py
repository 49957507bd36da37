"""Files made to do harm: none runs code, none fills the memory, and each is answered with one clear message.

Code that would run leaves a file named CALLED behind. What could fill the memory is read in a process of its own whose
address space is limited to what it has after its imports and half a GiB more.
"""

import io
import json
import os
import pickle
import re
import resource
import stat
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import evaluate
import train
from cli.build import build
from cli.evaluation import rebuild, stored_config
from cli.loader import load_config, read_config
from core.errors import UserError
from core.nodes import find_class
from datamodules.archive import MAX_FILE_BYTES
from datamodules.folder import ImageFolder
from datamodules.image_datamodule import ImageDataModule
from datamodules.listing import list_images
from experiment.checkpoint import read_checkpoint
from modules.base import GenerativeModule
from modules.consingan import ConSinGAN
from modules.fewgan import FewGAN
from modules.gpnn import GPNN
from tasks.harmonize import paste
from tasks.inputs import read_masked
from tasks.superresolve import Superresolve

ROOT = Path(__file__).parent.parent
CALLED = "called"
HALF_GIB = 2**29

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob(CALLED))


def refusal(function, *arguments, error=ValueError, **keywords) -> str:
    """The message; every line of it says something."""
    with pytest.raises(error) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert all(15 < len(line) < 600 for line in message.splitlines()), message
    return message


def entry_point_refuses(entry_point, arguments: list[str], capsys) -> str:
    """The message of train.py or evaluate.py, which exits 2 without a traceback."""
    assert entry_point.main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and "Traceback" not in output.err and output.err.count("\n") == 1, output.err
    return output.err


IN_SMALL_MEMORY = f"""
import json, resource, sys, warnings
from pathlib import Path
import modules.consingan, modules.fewgan, modules.gpnn
from experiment.checkpoint import read_checkpoint
from cli.build import build
from cli.evaluation import rebuild, stored_config
from cli.loader import load_config, read_config
from datamodules.image_datamodule import ImageDataModule
from tasks.inputs import read_image

warnings.simplefilter("ignore")
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + {HALF_GIB},) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        if path.suffix == ".ckpt":
            checkpoint = read_checkpoint(path)
            if "config" in checkpoint:
                rebuild(path, checkpoint)
                build(stored_config(path, checkpoint, []).datamodule).setup()
        elif path.suffix == ".yaml":
            load_config([str(path)])
        else:
            ImageDataModule(str(path), [8, 8]).setup()
        message = "read"
    except (ValueError, OSError) as error:
        message = str(error)
    print(json.dumps([path.name, message, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
    if path.suffix not in (".ckpt", ".yaml", ".zip"):
        try:
            read_image(str(path))
            message = "read"
        except ValueError as error:
            message = str(error)
        print(json.dumps(["task:" + path.name, message, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@pytest.fixture(scope="module")
def in_small_memory(tmp_path_factory) -> dict[str, str]:
    """By the name of a file what a process says that may need half a GiB beyond its imports."""
    folder = tmp_path_factory.mktemp("bombs")
    for write in (write_checkpoints, write_settings, write_yaml, write_images, write_archives):
        write(folder)
    result = subprocess.run(
        [sys.executable, "-c", IN_SMALL_MEMORY, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert max(peak_kib for _, _, peak_kib in lines) < 2 * 2**20
    return {name: message for name, message, _ in lines}


def write_checkpoints(folder: Path) -> None:
    """One GiB of zeros in one MiB, which torch by itself would unpack; and a call of bytearray(2**36)."""
    torch.save(stored(state_dict={"weight": torch.ones(2)}), folder / "good.ckpt")
    with zipfile.ZipFile(folder / "good.ckpt") as good:
        with zipfile.ZipFile(folder / "packed.ckpt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb:
            for part in good.infolist():
                if part.filename.endswith("data/0"):
                    write_zeros(bomb, part.filename)
                else:
                    bomb.writestr(part.filename, good.read(part))
    assert (folder / "packed.ckpt").stat().st_size < 2**23
    (folder / "number.ckpt").write_bytes(b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.")


SMALL = {"image_size": [16, 20], "min_size": 8, "scale_factor": 0.45, "width": 4, "prior_width": 4, "prior_layers": 2}
DRAWN = {"class_path": "datamodules.synthetic.SyntheticDataModule", "image_size": [8, 8]}
SIZE_FREE = {"image_size": [80, 80], "min_size": 14}
CONCURRENT = {"image_size": [32, 32], "num_scales": 3, "min_size": 11, "width": 4}
# Settings that would take more than half a GiB: class, its settings, changes of them, changes of the data, answer.
LARGE_SETTINGS = {
    "good": (FewGAN, SMALL, {}, {}, "read"),
    "good_scales": (GPNN, SIZE_FREE, {}, {}, "read"),
    "good_concurrent": (ConSinGAN, CONCURRENT, {}, {}, "read"),
    "scales": (GPNN, SIZE_FREE, {"scale_factor": 1 - 1e-10}, {}, "the maximum is 1000"),
    "num_scales": (ConSinGAN, CONCURRENT, {"num_scales": 10**9}, {}, "at most 1000"),
    "images": (FewGAN, SMALL, {}, {"num_images": 10**9}, "67 million pixels"),
    "side": (FewGAN, SMALL, {}, {"num_side": 10**9}, "67 million pixels"),
    "size": (FewGAN, SMALL, {}, {"image_size": [30_000, 30_000]}, "67 million pixels"),
}


def write_settings(folder: Path) -> None:
    for name, (method, settings, changes, data, _) in LARGE_SETTINGS.items():
        module = method(**settings)
        model = {"state_dict": module.state_dict(), "hyper_parameters": {**module.hparams, **changes}, "epoch": 0, "stage": 0,
                 "pytorch-lightning_version": "2.6.6", "global_step": 0,
                 "class_path": f"{method.__module__}.{method.__name__}", "config": {"datamodule": DRAWN | data}}  # fmt: skip
        torch.save(stored(**model), folder / f"large_{name}.ckpt")


def write_yaml(folder: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (folder / "copies.yaml").write_text("module:\n" + "".join(f"  {line}\n" for line in lines))


def write_images(folder: Path) -> None:
    for name, (data, _) in BAD_IMAGES.items():
        (folder / name).write_bytes(data)
    (folder / "long.gif").write_bytes(gif(64, 64, 200_000))
    with open(folder / "large.png", "wb") as file:
        file.write(good_png())
        file.truncate(8 * 2**30)  # a hole: no space on the disk


def write_archives(folder: Path) -> None:
    """A GiB in one MiB: as it is, and with headers that say 100 bytes."""
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        write_zeros(archive, "bomb.png", good_png())
    data = bytearray((folder / "bomb.zip").read_bytes())
    assert len(data) < 2**23
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = data.rindex(signature) + offset
        data[start : start + 4] = struct.pack("<I", 100)
    (folder / "liar.zip").write_bytes(data)


def write_zeros(archive: zipfile.ZipFile, name: str, start: bytes = b"") -> None:
    with archive.open(name, "w") as file:
        file.write(start)
        for _ in range(64):
            file.write(bytes(2**24))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("packed.ckpt", "not a checkpoint"),
        ("number.ckpt", "number.ckpt"),
        ("copies.yaml", "aliases"),
        ("large.png", "8192 MiB, the limit is 256"),
        ("bomb.zip", "1024 MiB, the limit is 256"),
        ("liar.zip", "cannot read bomb.png"),
        *((f"large_{name}.ckpt", answer) for name, (*_, answer) in LARGE_SETTINGS.items()),
    ],
)
def test_what_could_fill_the_memory_is_refused(name, reason, in_small_memory):
    assert reason in in_small_memory[name] and "\n" not in in_small_memory[name]


def test_images_stay_within_a_small_memory(in_small_memory):
    for name, (_, reason) in BAD_IMAGES.items():
        assert re.search(reason, in_small_memory[name]), (name, in_small_memory[name])
        assert re.search(reason, message := in_small_memory[f"task:{name}"]), (name, message)
        assert message.startswith("task.image=") and message.count(name) == 1 and "\n" not in message
    assert "8192 MiB, the limit is 256" in in_small_memory["task:large.png"]
    assert in_small_memory["task:long.gif"] == "read"
    assert in_small_memory["good.ckpt"] == in_small_memory["long.gif"] == "read"  # of an animation the first frame


# --- checkpoints --------------------------------------------------------------------------------------------------------


class Code:
    """An object that calls a function when it is unpickled by an ordinary loader."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


CODE = {
    "os.system": Code(os.system, f"touch {CALLED}"),
    "subprocess": Code(subprocess.Popen, ["touch", CALLED]),
    "eval": Code(eval, f"open('{CALLED}', 'w')"),
    "os.mkdir": Code(os.mkdir, CALLED),
    "torch.load": Code(torch.load, "inner.pkl"),
    "getattr": Code(getattr, "text", "upper"),
}


def stored(**changes) -> dict:
    """A checkpoint that would do, with `changes`."""
    return {
        "state_dict": {"weight": torch.zeros(2)}, "class_path": "modules.gpdm.GPDM", "loops": {}, "optimizer_states": [],
        "hyper_parameters": {"image_size": [8, 8]}, "iteration": 0, "images_seen": 0,
    } | changes  # fmt: skip


@pytest.mark.parametrize("name", CODE)
@pytest.mark.parametrize("key", ["state_dict", "config", "hyper_parameters", "loops"])
def test_a_checkpoint_with_code_is_refused(name, key):
    inner = {"deep": [{"deeper": (1, CODE[name])}]}
    torch.save(stored(**{key: inner}), "hostile.ckpt")
    assert "refused" in refusal(read_checkpoint, "hostile.ckpt")


def test_the_code_of_these_tests_would_run_with_an_ordinary_loader(tmp_path):
    torch.save(stored(config=CODE["os.mkdir"]), "hostile.ckpt")
    torch.load("hostile.ckpt", weights_only=False)
    assert (tmp_path / CALLED).is_dir()
    (tmp_path / CALLED).rmdir()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_with_code_is_refused(protocol):
    Path("hostile.ckpt").write_bytes(pickle.dumps(stored(config=CODE["os.system"]), protocol))
    refusal(read_checkpoint, "hostile.ckpt")


def test_code_hidden_in_a_part_of_a_good_checkpoint_is_refused():
    """The pickle inside the zip file is replaced; all else, sums too, is as torch wrote it."""
    torch.save(stored(), "good.ckpt")
    with zipfile.ZipFile("good.ckpt") as good, zipfile.ZipFile("hostile.ckpt", "w") as hostile:
        for part in good.infolist():
            code = part.filename.endswith("data.pkl")
            hostile.writestr(part.filename, pickle.dumps(CODE["os.system"], 2) if code else good.read(part))
    assert "refused" in refusal(read_checkpoint, "hostile.ckpt")


def test_entry_points_refuse_a_checkpoint_with_code(capsys, monkeypatch):
    torch.save(stored(config=CODE["os.system"]), "hostile.ckpt")
    hostile = str(Path("hostile.ckpt").resolve())
    assert "refused" in entry_point_refuses(evaluate, [hostile], capsys)
    monkeypatch.chdir(ROOT)
    arguments = ["configs/gpdm.yaml", "trainer.accelerator=cpu", f"run_dir={Path(hostile).parent / 'run'}"]
    assert "refused" in entry_point_refuses(train, [*arguments, f"resume={hostile}"], capsys)
    assert not (Path(hostile).parent / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"class_path": "os.system"},
        {"class_path": "builtins.eval"},
        {"class_path": "modules.base.Path.cwd"},
        {"class_path": "modules.gpdm.os"},
        {"class_path": 5},
        {"hyper_parameters": {"image_size": [8, 8], "_instantiator": "os.system"}},
        {"hyper_parameters": {"_instantiator": "antigravity.geohash", "_class_path": "os.system"}},
        {"hyper_parameters": {"class_path": "lightning.pytorch.cli.LightningCLI"}},
        {"hyper_parameters": {"class_path": "os.system"}},
        {"hyper_parameters": ["os.system"]},
        {"hyper_parameters": {"image_size": "__import__('os').system('touch called')"}},
        {"hparams": {"image_size": [8, 8], "_instantiator": "os.system"}},
        {"hparams_type": "os.system"},
    ],
    ids=str,
)
def test_a_checkpoint_cannot_name_what_is_built(changes):
    torch.save(stored(**changes), "hostile.ckpt")
    refusal(rebuild, Path("hostile.ckpt"), read_checkpoint("hostile.ckpt"))


@pytest.mark.parametrize("class_path", ["os.system", "subprocess.Popen", "builtins.eval", "lightning.pytorch.cli.LightningCLI"])
@pytest.mark.parametrize("key", ["datamodule", "callbacks.metrics"])
def test_the_configuration_in_a_checkpoint_cannot_name_what_is_built(class_path, key):
    config = OmegaConf.create({"run_name": "x", "datamodule": {"class_path": "datamodules.synthetic.SyntheticDataModule"}})
    OmegaConf.update(config, f"{key}.class_path", class_path, force_add=True)
    torch.save(stored(config=OmegaConf.to_container(config)), "hostile.ckpt")
    checkpoint = read_checkpoint("hostile.ckpt")
    assert f"{key}.class_path: {class_path!r}" in refusal(stored_config, Path("hostile.ckpt"), checkpoint, [])


@pytest.mark.parametrize("config", [["a"], "text", {"datamodule": {"root": "${oc.env:HOME}"}}], ids=str)
def test_a_configuration_that_no_training_stored_is_refused(config):
    refusal(stored_config, Path("hostile.ckpt"), stored(config=config), [])


def test_a_chain_of_interpolations_in_a_checkpoint_is_not_followed():
    """Each link doubles the text: resolved, the first would have 2^40 letters."""
    chain = {f"a{i}": f"${{datamodule.a{i + 1}}}${{datamodule.a{i + 1}}}" for i in range(40)} | {"a40": "x"}
    refusal(stored_config, Path("hostile.ckpt"), stored(config={"datamodule": chain}), [])


# --- configurations -----------------------------------------------------------------------------------------------------

FORBIDDEN = [
    "os.system", "posix.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "torch.load", "pickle.loads",
    "importlib.import_module", "lightning.pytorch.cli.LightningCLI", "lightning.fabric.cli._main",
    "lightning.pytorch.loggers.wandb.Path", "datamodules.archive.Path", "callbacks.fit_control.torch.load",
    "modules...os.system", "modules.", "modules", "../evil.Evil",
]  # fmt: skip


@pytest.mark.parametrize("class_path", FORBIDDEN)
@pytest.mark.parametrize("key", ["module", "datamodule", "trainer", "callbacks.own", "logger.own"])
def test_a_configuration_names_only_classes_of_the_project_and_parts_of_the_trainer(class_path, key):
    Path("hostile.yaml").write_text(
        OmegaConf.to_yaml(OmegaConf.from_dotlist([f"{key}.class_path={class_path}", f"{key}.command=touch {CALLED}"]))
    )
    for argument in ("hostile.yaml", f"{key}.class_path={class_path}"):
        with pytest.raises(UserError) as caught:
            load_config([str(ROOT / "configs/singan.yaml"), argument])
        assert any(message.startswith(f"{key}.class_path: ") for message in caught.value.args)


def test_a_class_that_a_module_has_imported_is_not_its_own(monkeypatch):
    """As `from subprocess import Popen` in any module of Lightning would make it reachable."""
    import datamodules.synthetic

    monkeypatch.setattr(datamodules.synthetic, "Popen", subprocess.Popen, raising=False)
    node = OmegaConf.create({"class_path": "datamodules.synthetic.Popen", "args": ["touch", CALLED]})
    assert "no class Popen" in refusal(build, node, error=UserError)
    assert "no class Popen" in refusal(find_class, node.class_path, ["datamodules."], error=UserError)


def test_train_refuses_a_hostile_configuration(capsys, tmp_path):
    Path("hostile.yaml").write_text(f"module: {{class_path: os.system, command: touch {CALLED}}}\nrun_dir: {tmp_path}/run\n")
    arguments = [str(ROOT / "configs/singan.yaml"), "hostile.yaml"]
    assert "module.class_path" in entry_point_refuses(train, arguments, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch called']",
        "!!python/object/new:os.system ['touch called']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/object:subprocess.Popen {args: [touch, called]}",
        "!!python/tuple [1, 2]",
        "!exec touch called",
    ],
)
def test_tags_of_yaml_build_nothing(value):
    Path("hostile.yaml").write_text(f"seed: 1\nmodule:\n  x: {value}\n")
    assert "hostile.yaml, line 3" in refusal(read_config, ["hostile.yaml"], error=UserError)
    assert "module.x=" in refusal(read_config, [f"module.x={value}"], error=UserError)


@pytest.mark.parametrize("value", ["${oc.create:1}", "${oc.decode:x}", "${oc.dict.keys:module}", "${eval:1}"])
def test_only_the_environment_can_be_asked(value):
    assert "oc.env" in refusal(read_config, [f"module.x={value}"], error=UserError)


def test_yaml_that_is_nested_too_deeply_is_refused():
    Path("deep.yaml").write_text("module: " + "[" * 20_000)
    assert "deep.yaml" in refusal(load_config, ["deep.yaml"], error=UserError)


# --- images -------------------------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 1, pixels: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + end


def good_png(size: tuple[int, int] = (12, 10)) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 60).save(file, "PNG")
    return file.getvalue()


def gif(width: int, height: int, frames: int) -> bytes:
    """A GIF of one gray and as many frames as wanted, each 1 pixel large."""
    frame = b"\x21\xf9\x04\0\0\0\0\0" + b"\x2c\0\0\0\0\1\0\1\0\0" + b"\x02\x02\x44\x01\0"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6) + frame * frames + b";"


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def not_a_number() -> bytes:
    """A TIFF of floats that have no brightness."""
    file = io.BytesIO()
    Image.new("F", (2, 2), float("nan")).save(file, "TIFF")
    return file.getvalue()


ZEROS = zlib.compress(bytes(2**26), 9)  # 64 MiB in 64 KiB
BAD_IMAGES = {
    "50k.png": (png(50_000, 50_000), "too large"),
    "100_million.png": (png(10_000, 10_000), "too large"),
    "widest.png": (png(2**31 - 1, 2**31 - 1), "too large"),
    "giant.gif": (gif(65_535, 65_535, 3), "too large"),
    "giant.bmp": (bmp(2**30, 2**30), "too large"),
    "giant.webp": (b"RIFF\x1e\0\0\0WEBPVP8X\n\0\0\0\x02\0\0\0\xff\xff\xff\xff\xff\xff", "cannot read|too large"),
    "text_bomb.png": (png(8, 8, *[chunk(b"zTXt", b"Comment\0\0" + ZEROS)] * 20, pixels=bytes(16)), "[Dd]ecompressed data"),
    "international_text_bomb.png": (
        png(8, 8, *[chunk(b"iTXt", b"Comment\0\1\0\0\0" + ZEROS)] * 20, pixels=bytes(16)), "[Dd]ecompressed data",
    ),
    "profile_bomb.png": (png(8, 8, chunk(b"iCCP", b"Profile\0\0" + ZEROS), pixels=bytes(16)), "[Dd]ecompressed data"),
    "many_texts.png": (png(8, 8, *[chunk(b"tEXt", b"Text\0" + b"x" * 2**20)] * 80, pixels=bytes(16)), "MAX_TEXT"),
    "cut.png": (good_png((100, 100))[:2_000], "truncated"),
    "svg.png": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "none of the formats"),
    "html.png": (b"<!DOCTYPE html><script>document.location='//example.org'</script>", "none of the formats"),
    "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(called) (w) file\n%%EOF\n", "none of the formats"),
    "pdf.jpg": (b"%PDF-1.7\n1 0 obj << /OpenAction << /S /JavaScript >> >> endobj\n%%EOF", "none of the formats"),
    "python.png": (b"import os\nos.system('touch called')\n", "none of the formats"),
    "pickle.png": (pickle.dumps(CODE["os.system"]), "none of the formats"),
    "zip.png": (b"PK\x05\x06" + bytes(18), "none of the formats"),
    "empty.png": (b"", "empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_hostile_image_is_refused(name, tmp_path):
    data, reason = BAD_IMAGES[name]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(data)
    (tmp_path / "set" / "good.png").write_bytes(good_png())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=reason) as caught:
        ImageDataModule(str(tmp_path / "set"), [8, 8]).setup()
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB: half a GiB


class Model(GenerativeModule):
    image_size = (10, 12)

    def sample(self, num_images, size=None):
        raise AssertionError("nothing is sampled")

    def super_resolve(self, images, factor):
        raise AssertionError("the files come first")


# How a task reads the file of each key; the other files are good.
READERS = {
    "task.image": lambda bad, good: read_masked(bad, good, Model(), None),
    "task.mask": lambda bad, good: read_masked(good, bad, Model(), None),
    "task.object": lambda bad, good: paste(torch.zeros(1, 3, 8, 8), bad, None, None),
    "task.reference": lambda bad, good: next(Superresolve(image=good, reference=bad)(Model())),
}
BAD_TASK_FILES = {
    "bomb.png": (png(13_000, 13_000), "too large"),
    "full_bomb.png": (png(13_000, 13_000, pixels=bytes(1626 * 13_000)), "too large"),
    "cut.png": (good_png((100, 100))[:2_000], "truncated"),
    "wrong.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(called) (w) file\n%%EOF\n", "none of the formats"),
    "not_a_number.tif": (not_a_number(), "values nan to nan"),
    "large.png": (good_png(), "257 MiB, the limit is 256"),
}


@pytest.mark.parametrize("name", BAD_TASK_FILES)
@pytest.mark.parametrize("key", READERS)
def test_a_hostile_file_of_a_task_is_refused(key, name, tmp_path):
    data, reason = BAD_TASK_FILES[name]
    bad, good = tmp_path / name, tmp_path / "good.png"
    good.write_bytes(good_png())
    bad.write_bytes(data)
    if name == "large.png":
        os.truncate(bad, MAX_FILE_BYTES + 2**20)  # a hole: no space on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refusal(READERS[key], str(bad), str(good))
    assert message.startswith(f"{key}={bad}") and reason in message and message.count(name) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB: 64 MiB


# --- names and links ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new\nline.png", "escape\x1b[2J.png", "bell\x07.png", "delete\x7f.png"])
def test_names_with_control_characters_are_refused(name, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(good_png())
    message = refusal(list_images, str(tmp_path / "set"))
    assert "control characters" in message and message.isprintable()


@pytest.mark.parametrize(
    "name",
    ["-rf.png", "--help.png", "a" * 251 + ".png", "$(touch called).png", "; touch called;.png", "%n%s.png", "..a...png"[1:],
     "{0.__class__}.png", "a=b.png", " .png", "‮gnp.exe.png", "CON.png", "*.png", "~.png", "${oc.env:HOME}.png"],
)  # fmt: skip
def test_odd_names_are_names_like_any_other(name, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(good_png())
    if name.startswith("."):
        assert "no image" in refusal(list_images, str(tmp_path / "set"))  # hidden
        return
    module = ImageDataModule(str(tmp_path / "set"), [10, 12], image=0)
    module.setup()
    assert module.sets()["image"].files == [name]


@pytest.mark.parametrize("target", ["file", "passwd", "folder", "zero", "broken", "itself"])
def test_a_link_out_of_the_folder_is_not_followed(target, tmp_path):
    folder, outside = tmp_path / "set", tmp_path / "private"
    for parent in (folder, outside):
        parent.mkdir()
        (parent / "a.png").write_bytes(good_png())
    targets = {"file": outside / "a.png", "passwd": Path("/etc/passwd"), "folder": outside, "zero": Path("/dev/zero"),
               "broken": tmp_path / "nowhere", "itself": folder / "link.png"}  # fmt: skip
    (folder / "link.png").symlink_to(targets[target])
    for recursive in (False, True):
        if target in ("file", "passwd"):
            message = refusal(list_images, str(folder), recursive)
            assert "link.png" in message and str(targets[target]) in message
        else:
            assert list_images(str(folder), recursive)[1] == ["a.png"]


def test_links_inside_a_folder_and_to_it_are_followed(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(good_png())
    (tmp_path / "set" / "b.png").symlink_to("a.png")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert list_images(str(tmp_path / "link"))[1] == ["a.png", "b.png"]


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "no image" in refusal(list_images, str(tmp_path))


# --- zip files ----------------------------------------------------------------------------------------------------------


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name) if method == zipfile.ZIP_STORED else name, data)
    return path


def test_a_zip_file_is_a_folder(tmp_path):
    members = {"a.png": good_png(), "b.PNG": good_png(), "birds/c.png": good_png((9, 9)), "notes.txt": b"x", ".d.png": b"",
               "__MACOSX/._a.png": b""}  # fmt: skip
    for name, data in members.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    archive = write_zip(tmp_path / "set.ZIP", members, zipfile.ZIP_DEFLATED)
    for name in ("", "birds"):
        for recursive in (False, True):
            for in_memory in (False, True):
                pair = [
                    ImageFolder(*list_images(str(root / name), recursive), (10, 12), True, in_memory=in_memory)
                    for root in (tmp_path / "set", archive)
                ]
                assert pair[0].files == pair[1].files and pair[0].fingerprint == pair[1].fingerprint
                assert torch.equal(pair[0].stack(), pair[1].stack())
    assert list_images(str(archive / "birds" / "c.png")) == (archive / "birds", ["c.png"])
    assert "subfolder(s) birds: choose one" in refusal(list_images, str(write_zip(tmp_path / "b.zip", {"birds/c.png": b"x"})))
    for wrong in (archive / "bird", archive / "birds" / "d.png", tmp_path / "sat.zip"):
        assert "does not exist" in refusal(list_images, str(wrong))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.zip", "set", "set.ZIP"]  # nothing was unpacked


def test_worker_processes_read_a_zip_file(tmp_path):
    archive = write_zip(tmp_path / "set.zip", {f"{i}.png": good_png((12, 10 + i)) for i in range(6)})
    module = ImageDataModule(str(archive), [10, 12], 3, 12, num_workers=2, max_memory_gib=0)
    module.setup()
    images = module.sets()["image"]
    for batch in module.train_dataloader():
        assert torch.equal(batch["image"], torch.stack([images[i] for i in batch["index"].tolist()]))


@pytest.mark.parametrize(
    "name",
    ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png", "C:evil.png", "\\\\host\\evil.png"],
)
def test_a_member_that_leads_out_of_the_archive_is_refused(name, tmp_path):
    archive = write_zip(tmp_path / "slip.zip", {"good.png": good_png(), name: good_png()})
    assert "points outside of the archive" in refusal(list_images, str(archive))
    assert [path.name for path in tmp_path.iterdir()] == ["slip.zip"]


def test_links_encrypted_and_doubled_members_are_refused(tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "'link.png' is a link" in refusal(list_images, str(tmp_path / "link.zip"))
    with zipfile.ZipFile(tmp_path / "double.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for size in (8, 9):
            archive.writestr("a.png", good_png((size, size)))
    assert "two members named 'a.png'" in refusal(list_images, str(tmp_path / "double.zip"))
    data = bytearray(write_zip(tmp_path / "locked.zip", {"a.png": good_png()}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    (tmp_path / "locked.zip").write_bytes(data)
    assert "encrypted" in refusal(ImageDataModule(str(tmp_path / "locked.zip"), [8, 8]).setup)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no archive", b"PK\x05\x06" + b"\xff" * 18], ids=str)
def test_a_file_that_is_no_archive_is_refused(data, tmp_path):
    (tmp_path / "set.zip").write_bytes(data)
    assert "set.zip: not a zip file" in refusal(list_images, str(tmp_path / "set.zip"))


def test_a_damaged_member_is_named(tmp_path):
    data = bytearray(write_zip(tmp_path / "set.zip", {"a.png": good_png()}, zipfile.ZIP_DEFLATED).read_bytes())
    data[60:90] = bytes(30)
    (tmp_path / "set.zip").write_bytes(data)
    assert "cannot read a.png in" in refusal(ImageDataModule(str(tmp_path / "set.zip"), [8, 8]).setup)


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """The trick of the densest bombs: a thousand entries, one piece of packed data."""
    data = write_zip(tmp_path / "bomb.zip", {"000.png": good_png()}, zipfile.ZIP_DEFLATED).read_bytes()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entries = b"".join(data[start:end].replace(b"000.png", f"{i:03d}.png".encode()) for i in range(1000))
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1000, 1000, len(entries), start, 0)
    (tmp_path / "bomb.zip").write_bytes(data[:start] + entries + tail)
    assert "cannot read" in refusal(ImageDataModule(str(tmp_path / "bomb.zip"), [8, 8]).setup)


def test_an_archive_in_an_archive_is_not_opened(tmp_path):
    inner = write_zip(tmp_path / "inner.zip", {"a.png": good_png()}).read_bytes()
    outer = write_zip(tmp_path / "outer.zip", {"inner.zip": inner})
    assert "no image" in refusal(list_images, str(outer))
    assert "does not exist" in refusal(list_images, str(outer / "inner.zip" / "a.png"))


def test_the_limit_leaves_room_for_the_largest_picture():
    assert 3 * Image.MAX_IMAGE_PIXELS <= MAX_FILE_BYTES
