"""One image of a folder, and one image made of all."""

import warnings
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from cli.build import build
from datamodules.image_datamodule import ImageDataModule
from datamodules.synthetic import SyntheticDataModule

SIZE = (4, 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, each of one gray value: 10 for a.png, 20 for b.png, …; their left column is black."""
    for position, name in enumerate(["a.png", "b.png", "c.jpg.png", "d.png", "e.png"], start=1):
        image = Image.new("RGB", SIZE[::-1], (10 * position,) * 3)
        image.paste((0, 0, 0), (0, 0, 1, SIZE[0]))
        image.save(tmp_path / name)
    return tmp_path


def ready(root: Path | str, **keys: object) -> ImageDataModule:
    module = ImageDataModule(str(root), list(SIZE), **keys)
    module.setup("fit")
    return module


def grays(images: torch.Tensor) -> list[int]:
    """The brightest gray of each image [N, 3, H, W] as a byte."""
    return [round(float(image.max() + 1) * 127.5) for image in images]


@pytest.mark.parametrize(
    ("image", "gray"), [("b.png", 20), ("b", 20), (1, 20), (0, 10), (4, 50), ("c.jpg", 30), ("c.jpg.png", 30)]
)
def test_an_image_is_chosen_by_name_or_number(folder: Path, image: str | int, gray: int) -> None:
    with warnings.catch_warnings():  # one image was asked for
        warnings.simplefilter("error")
        module = ready(folder, image=image, samples_per_epoch=2)
    (images,) = module.sets().values()
    assert len(images) == 1 and grays(images.stack()) == [gray]
    assert [batch["index"].tolist() for batch in module.train_dataloader()] == [[0], [0]]
    assert grays(next(iter(module.val_dataloader()))["image"]) == [gray]


def test_the_choice_goes_with_a_single_file_and_with_mirroring(folder: Path) -> None:
    assert grays(ready(folder / "d.png", image="d").sets()["image"].stack()) == [40]
    both = ready(folder, image=2, flip=True).sets()["image"].stack()
    assert torch.equal(both[1], both[0].flip(-1)) and not torch.equal(both[0], both[1])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (5, "image: index 5 is out of range; .* contains 5 images"),
        (-1, "image: index -1 is out of range"),
        ("bb.png", "image: bb.png is not in .*Did you mean b.png?"),
        ("sunset", "image: sunset is not in .* It contains a.png, b.png, c.jpg.png, d.png, e.png"),
    ],
)
def test_a_choice_that_is_not_there(folder: Path, image: str | int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(folder, image=image)


def test_a_name_without_ending_has_to_be_unique(folder: Path) -> None:
    Image.new("RGB", (6, 4)).save(folder / "a.jpg")
    with pytest.raises(ValueError, match="image: a fits a.jpg, a.png; add the extension"):
        ready(folder, image="a")
    assert grays(ready(folder, image="a.png").sets()["image"].stack()) == [10]


@pytest.mark.parametrize(
    ("tile", "table"),
    [
        ("row", [[10, 20, 30, 40, 50]]),
        ("column", [[10], [20], [30], [40], [50]]),
        ("grid", [[10, 20, 30], [40, 50, 10]]),  # the cell left over repeats the first image
    ],
)
def test_all_images_become_one(folder: Path, tile: str, table: list[list[int]]) -> None:
    module = ready(folder, tile=tile, batch_size=2, samples_per_epoch=4)
    (image,) = module.sets()["image"].stack()
    singles = {gray: single for gray, single in zip((10, 20, 30, 40, 50), module.sets()["tile"].stack(), strict=True)}
    expected = torch.cat([torch.cat([singles[gray] for gray in row], dim=2) for row in table], dim=1)
    assert torch.equal(image, expected) and image.dtype == torch.float32
    assert module.sets()["image"].image_size == tuple(image.shape[1:]) == (4 * len(table), 6 * len(table[0]))
    for batch in module.train_dataloader():
        assert batch["image"].shape == (2, *image.shape) and batch["index"].tolist() == [0, 0]
    for loader in (module.val_dataloader(), module.test_dataloader()):
        assert grays(torch.cat([batch["image"] for batch in loader])) == [10, 20, 30, 40, 50]


def test_a_tiling_of_one_is_the_image(folder: Path) -> None:
    for tile in ("row", "column", "grid"):
        sets = ready(folder, image=1, tile=tile).sets()
        assert torch.equal(sets["image"].stack(), ready(folder, image=1).sets()["image"].stack())


def test_a_tiling_is_mirrored_as_a_whole_and_its_parts_stay_as_they_are_in_tests(folder: Path) -> None:
    module = ready(folder, tile="row", flip=True)
    images = module.sets()["image"].stack()
    assert len(images) == 2 and torch.equal(images[1], images[0].flip(-1))
    assert grays(torch.cat([batch["image"] for batch in module.val_dataloader()])) == [10, 20, 30, 40, 50]


def test_fingerprints_tell_tilings_apart(folder: Path) -> None:
    prints = [ready(folder, tile=tile).fingerprints() for tile in ("row", "column", "row")]
    assert prints[0] == prints[2] and prints[0]["image"] != prints[1]["image"] and prints[0]["tile"] == prints[1]["tile"]
    Image.new("RGB", (6, 4)).save(folder / "b.png")
    changed = ready(folder, tile="row").fingerprints()
    assert changed["image"] != prints[0]["image"] and changed["tile"] != prints[0]["tile"]


def test_names_tell_what_is_in_a_tiling(folder: Path) -> None:
    assert ready(folder, tile="row").sets()["image"].names == ["row of a.png, b.png, c.jpg.png, d.png, e.png"]


def test_unknown_arrangement() -> None:
    for name in ("image_datamodule.ImageDataModule", "synthetic.SyntheticDataModule"):
        node = {"class_path": f"datamodules.{name}", "root": "a", "image_size": [4, 6], "tile": "spiral"}
        with pytest.raises(ValueError, match="datamodule.tile: .*row.*column.*grid.*'spiral'"):
            build(OmegaConf.create({"datamodule": node}).datamodule)


def test_synthetic_images_can_be_chosen_and_tiled() -> None:
    def sets(**keys: object) -> dict[str, torch.Tensor]:
        module = SyntheticDataModule([8, 10], **keys)
        module.setup()
        reference = torch.cat([batch["image"] for batch in module.val_dataloader()])
        return {key: images.stack() for key, images in module.sets().items()} | {"reference": reference}

    plain = sets()
    assert torch.equal(sets(image=1)["image"], plain["image"][1:2])
    assert torch.equal(sets(image=7)["image"], plain["image"][1:2])  # of three
    assert torch.equal(sets(image="000.jpg")["image"], plain["image"][:1])
    tiled = sets(tile="column")
    assert torch.equal(tiled["image"][0], torch.cat(list(plain["image"]), dim=1))
    assert torch.equal(tiled["tile"], plain["image"]) and torch.equal(tiled["reference"], plain["image"])
    assert torch.equal(tiled["side"], plain["side"]) and "tile" not in plain


@pytest.mark.parametrize("image", [3, "003.jpg", None])
def test_configurations_take_names_numbers_and_nothing(image: str | int | None) -> None:
    node = {"class_path": "datamodules.image_datamodule.ImageDataModule", "root": "datamodules/starter/landscapes",
            "image_size": [9, 16], "image": image, "tile": "grid"}  # fmt: skip
    module = build(OmegaConf.create({"datamodule": node}).datamodule)
    assert module.image == image and type(module.image) is type(image)
    module.setup()
    assert module.sets()["tile"].files == (["003.jpg"] if image else [f"{i:03d}.jpg" for i in range(5)])
    assert tuple(module.sets()["image"].stack().shape) == ((1, 3, 9, 16) if image else (1, 3, 18, 48))
