"""Images that are hard to take, for every YAML of a method at the sizes TINY of its test file, on the way of a user.

Every mode that has one meaning becomes known RGB; what has none, or leaves nothing to learn from, is one line of error, exit
code 2 and no run folder.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import evaluate
import train
from cli.loader import load_config
from modules.stylegan2 import StyleGAN2
from tests.contract.tiers import YAMLS, method_class, tiny

ROOT = Path(__file__).parent.parent
FIXED = [path for path in YAMLS if method_class(path).fixed_size]  # squares of a power of two, or multiples of one
PATHS = [path for path in YAMLS if path not in FIXED or path.stem == "stylegan2"]  # one for all that take squares
ONE_IMAGE = ("singan", "singan_250", "consingan", "consingan_250")
QUIET = ["trainer.accelerator=cpu", "logger.wandb=null", "callbacks.metrics=null", "callbacks.images=null",
         "callbacks.progress=null"]  # fmt: skip
# Mode, value left, value right, the two RGB colors that they mean. Half transparent black on white is 204 for alpha 51.
PICTURES = {
    "bilevel.png": ("1", 0, 255, (0, 0, 0), (255, 255, 255)),
    "gray.png": ("L", 10, 77, (10, 10, 10), (77, 77, 77)),
    "gray_alpha.png": ("LA", (0, 51), (90, 255), (204, 204, 204), (90, 90, 90)),
    "color.bmp": ("RGB", (255, 0, 0), (1, 2, 3), (255, 0, 0), (1, 2, 3)),
    "alpha.png": ("RGBA", (255, 0, 0, 0), (0, 100, 200, 255), (255, 255, 255), (0, 100, 200)),
    "palette.png": ("P", 0, 1, (255, 255, 255), (0, 0, 255)),  # entry 0 is transparent
    "print.tif": ("CMYK", (0, 255, 255, 0), (0, 0, 0, 255), (255, 0, 0), (0, 0, 0)),
    "deep.png": ("I;16", 25700, 65535, (100, 100, 100), (255, 255, 255)),
    "float.tif": ("F", 0.4, 1.0, (102, 102, 102), (255, 255, 255)),
}


def paint(file: Path, mode: str, left, right, size: tuple[int, int] = (40, 32)) -> None:
    """An image of `size` (width, height) with one value left and another one right."""
    image = Image.new(mode, size, left)
    if size[0] > 1:
        image.paste(right, (size[0] // 2, 0, *size))
    options = {}
    if mode == "P":
        image.putpalette([255, 0, 0, 0, 0, 255])
        options = {"transparency": 0}
    image.save(file, **options)


def noise(folder: Path, number: int, size: tuple[int, int] = (400, 400)) -> Path:
    """A folder of ordinary pictures of `size` (width, height)."""
    folder.mkdir()
    for index in range(number):
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`odd`: one picture of every mode; `plain`: five ordinary ones."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "odd").mkdir()
    for name, (mode, left, right, *_) in PICTURES.items():
        paint(folder / "odd" / name, mode, left, right)
    noise(folder / "plain", 5)
    return folder


def command_line(path: Path, root: Path, side: Path, *more: str) -> list[str]:
    """The command line for a YAML with images from `root` and, where the method takes side images, `side`."""
    config = OmegaConf.load(path)
    small = [word for word in tiny(path) if not word.startswith(("datamodule.num_images", "module.max_images"))]
    sides = [f"datamodule.side_root={side}"] if "side_root" in config.datamodule else []
    first = ["datamodule.image=0"] if path.stem in ONE_IMAGE else []
    plain = {"flip": "false", "heldout_root": "null"}
    plain = [f"datamodule.{key}={value}" for key, value in plain.items() if key in config.datamodule]
    return [str(path), *small, *QUIET, f"datamodule.root={root}", *plain, *sides, *first, *more]


def refused(path: Path, folders: Path, tmp_path: Path, capsys, root: Path, *more: str) -> str:
    """The one line that train.py answers with; it leaves no run folder."""
    assert train.main(command_line(path, root, folders / "plain", f"run_dir={tmp_path / 'run'}", *more)) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ") and not any("Traceback" in line for line in error)
    assert sum(line.startswith("error: ") for line in error) == 1 and not (tmp_path / "run").exists()
    return error[-1]


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_every_mode_with_one_meaning_is_learned_from(path, folders, tmp_path):
    choices = [[f"datamodule.image={name}"] for name in ("alpha.png", "deep.png")] if path.stem in ONE_IMAGE else [[]]
    if path.stem.startswith("concat_singan"):
        choices = [[f"module.tiles=[1,{len(PICTURES)}]"]]
    for more in choices:
        config = load_config(command_line(path, folders / "odd", folders / "plain", f"run_dir={tmp_path / 'run'}", *more))
        _, _, datamodule, _ = train.prepare(config, dry_run=True)
        images = datamodule.sets().get("tile", datamodule.sets()["image"])
        assert len(images) == (1 if path.stem in ONE_IMAGE else len(PICTURES))
        for name, image in zip(images.files, images.stack(), strict=True):
            found = ((image + 1) * 127.5).round()
            width = image.shape[2]
            for column, color in zip((width // 6, width * 4 // 5), PICTURES[name][3:], strict=True):
                assert (found[:, :, column] - torch.tensor(color).view(3, 1)).abs().max() <= 1, name


SIZES = {"below the coarsest scale": "[7,60]", "one row": "[1,300]", "one column": "[300,1]", "strip": "[8,400]"}


@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_sizes_without_room_for_scales_are_refused(path, case, folders, tmp_path, capsys):
    """TINY's coarsest scales are 8 or 9 pixels high."""
    message = refused(path, folders, tmp_path, capsys, folders / "plain", f"datamodule.image_size={SIZES[case]}")
    reasons = ("square", "multiples of") if path in FIXED else ("min_size",)
    assert any(reason in message for reason in reasons) and SIZES[case].replace(",", ", ") in message and "module" in message


@pytest.mark.parametrize(("size", "reason"), [("[24,24]", "power of two"), ("[8,8]", "at least 16"), ("[16,32]", "square")])
def test_sizes_that_are_no_square_of_a_power_of_two_are_refused(size, reason, folders, tmp_path, capsys):
    for path in (path for path in FIXED if issubclass(method_class(path), StyleGAN2)):
        message = refused(path, folders, tmp_path, capsys, folders / "plain", f"datamodule.image_size={size}")
        assert message.startswith("error: module: image_size is") and reason in message


FILES = {
    "one pixel wide": (("RGB", (9, 8, 7), (1, 2, 3), (1, 300)), "too small"),
    "one pixel high": (("RGB", (9, 8, 7), (1, 2, 3), (300, 1)), "too small"),
    "tiny": (("RGB", (9, 8, 7), (1, 2, 3), (4, 3)), "too small"),
    "float beyond white": (("F", 0.0, 7.0), "gray values 0.0 to 7.0"),
    "gray beyond 16 bits": (("I", 0, 70000), "gray values 0 to 70000"),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_files_without_a_picture_or_a_meaning_are_refused_by_name(path, case, folders, tmp_path, capsys):
    values, reason = FILES[case]
    (tmp_path / "data").mkdir()
    paint(tmp_path / "data/odd_one.tif", *values)
    message = refused(path, folders, tmp_path, capsys, tmp_path / "data")
    assert "odd_one.tif" in message and reason in message


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_extreme_files_give_their_middle(path, folders, tmp_path):
    """A banner of 30 rows and 2000 columns: what is used has the wanted aspect."""
    (tmp_path / "data").mkdir()
    paint(tmp_path / "data/banner.png", "RGB", (200, 10, 10), (10, 10, 200), (2000, 30))
    more = ["datamodule.batch_size=1", *(["module.tiles=[1,1]"] if path.stem.startswith("concat_singan") else [])]
    config = load_config(command_line(path, tmp_path / "data", folders / "plain", *more, f"run_dir={tmp_path / 'run'}"))
    with pytest.warns(UserWarning, match=r"cropped: image/banner.png|cropped: tile/banner.png"):
        _, _, datamodule, _ = train.prepare(config, dry_run=True)
    image = datamodule.sets()["image"][0]
    assert image.shape == (3, *config.datamodule.image_size)
    assert image[0, :, 2].min() > 0.5 and image[2, :, -3].min() > 0.5


def test_several_images_are_refused_where_one_is_learnt(folders, tmp_path, capsys):
    path = ROOT / "configs/singan.yaml"
    message = refused(path, folders, tmp_path, capsys, folders / "plain", "datamodule.image=null")
    assert "datamodule gives 5" in message and "datamodule.image=NAME" in message
    path = ROOT / "configs/concat_singan.yaml"
    message = refused(path, folders, tmp_path, capsys, folders / "plain", "module.tiles=[2,2]")
    assert "32×40" in message and "module.tiles=[1,5]" in message


@pytest.fixture(scope="module")
def checkpoint(folders, tmp_path_factory):
    """A model that needs no training."""
    run = tmp_path_factory.mktemp("run") / "gpnn"
    assert train.main(command_line(ROOT / "configs/gpnn.yaml", folders / "plain", folders, f"run_dir={run}")) == 0
    return run / "checkpoints/last.ckpt"


@pytest.mark.parametrize("task", ["harmonize", "edit", "inpaint"])
def test_masks_of_another_aspect_are_refused_and_other_sizes_fit(task, checkpoint, folders, tmp_path, capsys):
    for name, size in {"same": (400, 400), "smaller": (100, 100), "wide": (400, 300), "line": (400, 1)}.items():
        Image.new("L", size, 255).save(tmp_path / f"{name}.png")

    def call(mask: str) -> int:
        return evaluate.main([
            str(checkpoint), str(ROOT / f"configs/tasks/{task}.yaml"), f"task.image={folders / 'plain/0.png'}",
            f"task.mask={tmp_path / mask}.png", f"out={tmp_path / 'out' / mask}", "trainer.accelerator=cpu",
        ])  # fmt: skip

    for mask, shown in {"wide": "400×300", "line": "400×1"}.items():
        assert call(mask) == 2 and not (tmp_path / "out" / mask).exists()
        error = capsys.readouterr().err
        assert error.count("error: ") == 1 and "Traceback" not in error
        assert shown in error and "400×400" in error and "aspect ratios" in error
    assert call("same") == call("smaller") == 0
