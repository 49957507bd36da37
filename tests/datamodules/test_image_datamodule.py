"""Batches, sets, labels and errors of the data modules, without a Trainer."""

import hashlib
import inspect
import json
import shutil
import tempfile
import unicodedata
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import PIL
import pytest
import torch
from lightning import LightningDataModule
from omegaconf import OmegaConf
from PIL import Image

from cli.build import build
from core.errors import UserError
from datamodules.image_datamodule import ImageDataModule, choose, split_heldout
from datamodules.synthetic import SyntheticDataModule

LANDSCAPES, SIDE, FACES = (f"datamodules/starter/{name}" for name in ("landscapes", "side", "faces"))


def save(folder: Path, number: int, size: tuple[int, int] = (12, 8), start: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(start, start + number):
        image = Image.effect_noise(size, 60).convert("RGB")
        image.putpixel((0, 0), (i, i, i))
        image.save(folder / f"{i:03d}.png")
    return folder


def ready(root: Path | str, image_size: tuple[int, int] = (8, 12), **keys: object) -> ImageDataModule:
    module = ImageDataModule(str(root), list(image_size), **keys)
    module.setup("fit")
    return module


def with_side(tmp_path: Path, **keys: object) -> ImageDataModule:
    root, side_root = save(tmp_path / "few", 3), save(tmp_path / "side", 7, start=50)
    return ready(root, side_root=str(side_root), **({"batch_size": 4} | keys))


# --- batches ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_batches_hold_the_entries_they_name(tmp_path: Path, num_workers: int, flip: bool) -> None:
    keys = {"source_root": str(save(tmp_path / "source", 5, start=80)), "flip": flip, "side_flip": not flip}
    module = with_side(tmp_path, samples_per_epoch=42, num_workers=num_workers, **keys)
    sets = module.sets()
    expected = {"image": 3 * (1 + flip), "side": 6 * (2 - flip), "side_heldout": 1, "source": 5 * (1 + flip)}
    assert {key: len(images) for key, images in sets.items()} == expected
    batches = list(module.train_dataloader())
    assert len(batches) == 10  # 42 samples make ten batches of four; two are left out
    seen = Counter()
    for batch in batches:
        assert sorted(batch) == ["image", "index", "side", "side_index", "source", "source_index"]
        for key, index_key in (("image", "index"), ("side", "side_index"), ("source", "source_index")):
            assert batch[key].shape == (4, 3, 8, 12) and batch[key].dtype == torch.float32
            assert batch[index_key].shape == (4,) and batch[index_key].dtype == torch.int64
            assert torch.equal(batch[key], sets[key].stack()[batch[index_key]])
            seen.update((key, int(i)) for i in batch[index_key])
    for key in ("image", "side", "source"):
        counts = [seen[key, i] for i in range(len(sets[key]))]
        assert sum(counts) == 40 and max(counts) - min(counts) <= 1


# Of the former classes FewShotDataModule and SideDataModule, at commit 11fea59 with Pillow 13.0.0.
PINNED = {
    "few-shot": ({"batch_size": 2, "samples_per_epoch": 12, "flip": True, "seed": 3}, (36, 48), "351f66a21ef6bf55"),
    "chosen": ({"samples_per_epoch": 3, "image": "003.jpg"}, (36, 48), "d72de0e79008117f"),
    "tiled": ({"samples_per_epoch": 3, "tile": "grid"}, (18, 24), "a94f70cd55962987"),
    "side": ({"batch_size": 3, "samples_per_epoch": 12, "side_root": SIDE, "side_flip": True, "seed": 1}, (36, 48),
             "34793e3c3d696a70"),
}  # fmt: skip


@pytest.mark.parametrize("case", PINNED)
@pytest.mark.skipif(PIL.__version__ != "13.0.0", reason="decoded pixels are pinned for Pillow 13.0.0")
def test_orders_and_pixels_are_pinned(case: str) -> None:
    """Training batches of two epochs, the reference images and the fingerprints, byte for byte."""
    keys, size, expected = PINNED[case]
    module, digest = ready(LANDSCAPES, size, **keys), hashlib.sha256()
    loader = module.train_dataloader()
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for key in sorted(batch):
                digest.update(key.encode() + batch[key].numpy().tobytes())
    for batch in module.val_dataloader():
        for key in sorted(batch):
            digest.update(key.encode() + batch[key].numpy().tobytes())
    digest.update(json.dumps(module.fingerprints(), sort_keys=True).encode())
    assert digest.hexdigest()[:16] == expected


def test_epochs_differ_and_are_repeatable(tmp_path: Path) -> None:
    def epochs(seed: int) -> list[list[int]]:
        loader = with_side(tmp_path, samples_per_epoch=24, seed=seed).train_dataloader()
        orders = []
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            orders.append([int(i) for batch in loader for i in torch.cat([batch["index"], batch["side_index"]])])
        return orders

    first = epochs(0)
    assert first == epochs(0) and first[0] != first[1] and first != epochs(1)


def test_loaders_leave_the_global_generator_alone(tmp_path: Path) -> None:
    module = with_side(tmp_path, samples_per_epoch=8)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        assert loader.generator is not None
        list(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_gives_each_reference_image_once_unmirrored(tmp_path: Path) -> None:
    module = with_side(tmp_path, flip=True, batch_size=2)
    for loader in (module.val_dataloader(), module.test_dataloader()):
        batches = list(loader)
        assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2]]
        images = torch.cat([batch["image"] for batch in batches])
        assert torch.equal(images, module.sets()["image"].stack()[:3])


@pytest.mark.parametrize(("samples", "batch_size", "sizes"), [(3, 8, [3]), (8, 8, [8]), (17, 8, [8, 8]), (1, 1, [1])])
def test_batches_have_one_size(tmp_path: Path, samples: int, batch_size: int, sizes: list[int]) -> None:
    module = ready(save(tmp_path / "few", 2), batch_size=batch_size, samples_per_epoch=samples)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader = module.train_dataloader()
    assert [len(batch["index"]) for batch in loader] == sizes
    assert ["fewer than batch_size=8" in str(w.message) for w in caught] == [True] * (samples < batch_size)


def test_the_starter_images() -> None:
    module = ready(LANDSCAPES, (72, 96), batch_size=5, samples_per_epoch=5)
    (batch,) = module.train_dataloader()
    assert sorted(batch["index"].tolist()) == list(range(5)) and batch["image"].shape == (5, 3, 72, 96)
    assert -1 <= batch["image"].min() < -0.5 and 0.5 < batch["image"].max() <= 1
    assert (Path("datamodules/starter/ATTRIBUTION.md")).read_text().count("landscapes") > 0


def test_the_starter_faces_have_attributes_and_disjoint_held_out_ones() -> None:
    files, pixels = {}, {}
    for name, number in (("faces64", 2000), ("faces64_heldout", 200)):
        path = Path(f"datamodules/starter/{name}.zip")
        with zipfile.ZipFile(path) as archive:
            files[name] = {file for file in archive.namelist() if file.endswith(".webp")}
            pixels[name] = {hashlib.sha256(archive.read(file)).digest() for file in files[name]}
            rows = archive.read("attributes.csv").decode().splitlines()[1:]
        assert path.stat().st_size <= 8 * 2**20 and len(files[name]) == number and len(rows) == number
    assert files["faces64"].isdisjoint(files["faces64_heldout"]) and pixels["faces64"].isdisjoint(pixels["faces64_heldout"])
    assert Path("datamodules/starter/ATTRIBUTION.md").read_text().count("faces64") > 0


# --- sets ---------------------------------------------------------------------------------------------------------------


def test_the_starter_side_set_is_split() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sets = ready(LANDSCAPES, (24, 32), side_root=SIDE, samples_per_epoch=4).sets()
    files = sorted(path.name for path in Path(SIDE).iterdir())
    assert sorted(sets["side"].files + sets["side_heldout"].files) == files
    assert len(sets["side_heldout"]) == round(0.1 * len(files)) == 5


@pytest.mark.parametrize(("number", "fraction", "heldout"), [(2, 0.1, 1), (2, 0.9, 1), (10, 0.1, 1), (100, 0.25, 25)])
def test_the_split_depends_on_the_names_alone(number: int, fraction: float, heldout: int) -> None:
    files = [f"{i}.png" for i in range(number)]
    train, held = split_heldout(files, fraction)
    assert len(held) == heldout and len(train) == number - heldout
    assert sorted(train + held) == sorted(files) and not set(train) & set(held)
    assert tuple(map(set, split_heldout(files[::-1], fraction))) == (set(train), set(held))
    grown = split_heldout(files + ["new.png"], fraction)[1]
    assert len(set(held) - set(grown)) <= 1


@pytest.mark.parametrize(("gib", "in_memory"), [(1.0, (True, True)), (1500 / 2**30, (True, False)), (0.0, (False, False))])
def test_sets_are_in_memory_as_far_as_the_limit_allows(tmp_path: Path, gib: float, in_memory: tuple[bool, bool]) -> None:
    """The source set takes 2304 bytes with its subfolder, the image set 864; the batches are the same."""
    source = save(tmp_path / "source", 4, start=20)
    save(source / "more", 4, start=29)
    keys = {"source_root": str(source), "batch_size": 3, "samples_per_epoch": 9, "flip": True}
    module = ready(save(tmp_path / "few", 3), max_memory_gib=gib, num_workers=2 * (gib < 1), **keys)
    images, source = (module.sets()[key] for key in ("image", "source"))
    assert len(source) == 16 and source.files[-1] == "more/032.png"
    assert (images.pixels is not None, source.pixels is not None) == in_memory
    whole = torch.stack([source[i] for i in range(16)])
    for batch in module.train_dataloader():
        assert torch.equal(batch["image"], images.stack()[batch["index"]])
        assert torch.equal(batch["source"], whole[batch["source_index"]])


@pytest.mark.parametrize("cls", [ImageDataModule, SyntheticDataModule])
def test_held_out_images_are_a_set_that_training_never_sees(tmp_path: Path, cls: type[ImageDataModule]) -> None:
    roots = {"root": str(save(tmp_path / "few", 3)), "heldout_root": str(save(tmp_path / "heldout", 3, start=90))}
    module = cls(**roots, image_size=[8, 12], batch_size=2, samples_per_epoch=12)
    module.setup("fit")
    heldout = module.sets()["image_heldout"]
    assert len(heldout) == 3 and set(module.fingerprints()) == set(module.sets())
    seen = torch.cat([batch["image"] for batch in module.train_dataloader()])
    assert all((seen - image).abs().amax() > 0.1 for image in heldout.stack())
    assert len(torch.cat([batch["index"] for batch in module.val_dataloader()])) == 3


def test_training_images_among_the_held_out_ones_are_refused(tmp_path: Path) -> None:
    root = save(tmp_path / "few", 3)
    (save(tmp_path / "heldout", 2, start=90) / "again.png").write_bytes((root / "001.png").read_bytes())
    with pytest.raises(UserError, match="heldout_root: .*heldout contains training images: again.png"):
        ready(root, heldout_root=str(tmp_path / "heldout"))
    with pytest.raises(UserError, match="heldout_root: .*nowhere does not exist"):
        ready(root, heldout_root=str(tmp_path / "nowhere"))


def test_a_file_in_two_sets_is_reported(tmp_path: Path) -> None:
    side_root = save(tmp_path / "side", 5, start=50)
    (side_root / "copy.png").write_bytes((save(tmp_path / "few", 3) / "001.png").read_bytes())
    with pytest.warns(UserWarning, match="same file is in the sets image and side.*: .*few/001.png = .*side/copy.png"):
        ready(tmp_path / "few", side_root=str(side_root))


def test_one_image_warns_and_works(tmp_path: Path) -> None:
    root = save(tmp_path / "one", 1)
    for keys in ({"root": root}, {"root": root / "000.png", "side_root": SIDE}):
        with pytest.warns(UserWarning, match="root: one training image only"):
            module = ready(**keys, batch_size=2, samples_per_epoch=4)
        assert [batch["index"].tolist() for batch in module.train_dataloader()] == [[0, 0], [0, 0]]
    with warnings.catch_warnings():  # a file was chosen on purpose
        warnings.simplefilter("error")
        ready(root / "000.png")


def test_a_changed_file_is_named_on_resume_and_at_an_evaluation(tmp_path: Path) -> None:
    module = with_side(tmp_path)
    state = module.state_dict()
    assert state == {"fingerprints": module.fingerprints()} and sorted(module.fingerprints()) == sorted(module.sets())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.load_state_dict(state)
    assert module.unlike_training == {}
    Image.new("RGB", (12, 8)).save(tmp_path / "few" / "001.png")
    changed = ready(tmp_path / "few", side_root=str(tmp_path / "side"))
    old, new = (prints["image"][:12] for prints in (state["fingerprints"], changed.fingerprints()))
    with pytest.warns(UserWarning, match=f"not the images of the training: .* set image: {old} → {new}"):
        changed.load_state_dict(state)
    assert list(changed.unlike_training) == ["image"]


def test_roots_are_absolute_and_valid_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "few", 3), save(tmp_path / "side", 3, start=50)
    monkeypatch.chdir(tmp_path)
    roots = ready("few", side_root="side").roots()
    assert roots == {"root": str(tmp_path / "few"), "side_root": str(tmp_path / "side")}
    assert Path(ready(LANDSCAPES).roots()["root"], "000.jpg").is_file()  # of the project, not of the working directory
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write("few/000.png", "birds/0.png")
    assert ready("set.zip/birds", image=0).roots() == {"root": str(tmp_path / "set.zip/birds")}


# --- labels -------------------------------------------------------------------------------------------------------------


def test_labels_from_folders(tmp_path: Path) -> None:
    for start, name in enumerate(("cats", "ants", "bees/hives")):
        (tmp_path / name.split("/")[0]).mkdir()
        save(tmp_path / name, 2, start=10 * start)
    module = ready(tmp_path, labels="folder", batch_size=6, samples_per_epoch=12, flip=True)
    assert module.label_names == ["ants", "bees", "cats"]
    classes = ["ants", "ants", "bees", "bees", "cats", "cats"] * 2
    for batch in [*module.train_dataloader(), *module.val_dataloader()]:
        assert batch["label"].dtype == torch.int64 and batch["label"].shape == batch["index"].shape
        assert [module.label_names[label] for label in batch["label"]] == [classes[index] for index in batch["index"]]
    chosen = ready(tmp_path, labels="folder", image="cats/000")
    assert next(iter(chosen.val_dataloader()))["label"].tolist() == [2]
    save(tmp_path, 1)
    with pytest.raises(UserError, match="labels=folder: .* contains images outside of class folders: 000.png"):
        ready(tmp_path, labels="folder")


def test_labels_from_a_column_of_the_starter_faces() -> None:
    module = ready(FACES, (8, 8), labels="attributes.csv:skinColor", batch_size=200, samples_per_epoch=200)
    rows = [line.split(",") for line in Path(FACES, "attributes.csv").read_text().splitlines()]
    column = rows[0].index("skinColor")
    colors = {row[0]: row[column] for row in rows[1:]}
    assert module.label_names == sorted(set(colors.values())) and len(module.label_names) > 2
    (batch,) = module.train_dataloader()
    files = module.sets()["image"].files
    assert all(module.label_names[k] == colors[files[i]] for k, i in zip(batch["label"], batch["index"], strict=True))
    with pytest.warns(UserWarning, match="images have no value in the column glasses"):
        assert "" in ready(FACES, (8, 8), labels="attributes.csv:glasses").label_names


TABLE = "kind,image\nb,000.png\na,001.png\nb,002.png\n"


@pytest.mark.parametrize(
    ("table", "labels", "message"),
    [
        (TABLE, "table.csv:kind", None),
        (TABLE.replace("image", "name").replace("kind,name", "name,kind"), "table.csv:kind", "without a row: 000.png"),
        (TABLE.replace("a,001.png\n", ""), "table.csv:kind", "images without a row: 001.png"),
        (TABLE + "a,003.png\n", "table.csv:kind", "rows without an image: 003.png"),
        (TABLE + "a,002.png\n", "table.csv:kind", "images with several rows: 002.png"),
        (TABLE, "table.csv:kinds", "table.csv has no column 'kinds'. Did you mean kind?"),
        (TABLE, "tables.csv:kind", "labels: cannot read tables.csv beside the images"),
        (TABLE, "{folder}/table.csv:kind", None),
    ],
)
def test_labels_from_a_table(tmp_path: Path, table: str, labels: str, message: str | None) -> None:
    root = save(tmp_path / "few", 3)
    (root / "table.csv").write_text(table)
    if message is None:
        module = ready(root, labels=labels.format(folder=root))
        assert module.label_names == ["a", "b"] and module.sets()["image"].labels.tolist() == [1, 0, 1]
    else:
        with pytest.raises(UserError) as error:
            ready(root, labels=labels)
        assert message in str(error.value)


def test_attributes_are_read_when_they_are_used(tmp_path: Path) -> None:
    """Rows of further images are allowed, as a folder may be a part of a set."""
    root = save(tmp_path / "photos", 2)
    assert ready(root).sets()["image"].attributes == {}
    (root / "attributes.csv").write_text("file,hat,kind\n001.png,0,b\n000.png,1,a\n007.png,1,\n")
    images = ready(root, flip=True).sets()["image"]
    assert images.attributes == {"hat": ["1", "0"], "kind": ["a", "b"]}
    (root / "other.csv").write_text("file,hat\n001.png,0\n001.png,1\n")
    with pytest.raises(UserError, match="without a row: 000.png; images with several rows: 001.png"):
        _ = ready(root, attributes="other.csv").sets()["image"].attributes
    faces = ready("datamodules/starter/faces64_heldout.zip", (8, 8)).sets()["image"].attributes
    assert {len(values) for values in faces.values()} == {200} and set(faces["male"]) == {"0", "1"}


@pytest.mark.parametrize("name", ["image_datamodule.ImageDataModule", "synthetic.SyntheticDataModule"])
@pytest.mark.parametrize("labels", ["kind", "table.txt:kind", "folders", "table.csv:"])
def test_labels_of_another_form_are_refused(name: str, labels: str) -> None:
    node = {"class_path": f"datamodules.{name}", "root": "a", "image_size": [4, 6], "labels": labels}
    with pytest.raises(UserError, match=f"datamodule.labels: expected folder or FILE.csv:COLUMN or null, got '{labels}'"):
        build(OmegaConf.create({"datamodule": node}).datamodule)


def test_other_labels_are_another_training(tmp_path: Path) -> None:
    root = save(tmp_path / "few", 3)
    prints = []
    for table in (TABLE, TABLE.replace("a,001", "c,001")):
        (root / "table.csv").write_text(table)
        prints.append(ready(root, labels="table.csv:kind").fingerprints())
    assert prints[0]["image"] == prints[1]["image"] and prints[0]["labels"] != prints[1]["labels"]
    with pytest.raises(UserError, match="tile, labels"):
        ready(root, labels="table.csv:kind", tile="row")


# --- the synthetic module -----------------------------------------------------------------------------------------------


def test_the_synthetic_module_stands_in_for_the_other() -> None:
    parameters = inspect.signature(ImageDataModule).parameters
    keys = {name: parameter.default for name, parameter in parameters.items() if parameter.default is not parameter.empty}
    chosen = {"root": "nowhere", "side_root": "nowhere", "image_size": [20, 30], "labels": "folder", "heldout_root": "x"}
    module = SyntheticDataModule(**(keys | chosen | {"samples_per_epoch": 4, "batch_size": 2, "flip": True}))
    module.setup("fit")
    sets = module.sets()
    lengths = {key: len(images) for key, images in sets.items()}
    assert lengths == {"image": 6, "side": 7, "side_heldout": 1, "source": 16, "image_heldout": 3}
    everything = torch.cat([images.originals().stack() for images in sets.values()])
    assert everything.shape == (22, 3, 20, 30) and everything.min() >= -1 and everything.max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in everything}) == 22
    assert everything.std(dim=0).min() > 0.1 and everything.flatten(1).std(dim=1).min() > 0.1
    again = SyntheticDataModule([20, 30], seed=7)
    again.setup()
    assert torch.equal(again.sets()["image"].stack(), sets["image"].originals().stack())
    assert len(set(module.fingerprints().values())) == 6
    batch = next(iter(module.train_dataloader()))
    assert sorted(batch) == ["image", "index", "label", "side", "side_index", "source", "source_index"]
    assert torch.equal(batch["side"], sets["side"].stack()[batch["side_index"]])
    assert torch.equal(batch["label"], batch["index"] % 3 % 2) and module.label_names == ["class_0", "class_1"]
    assert [b["index"].tolist() for b in module.val_dataloader()] == [[0, 1], [2]]


@pytest.mark.parametrize("cls", [ImageDataModule, SyntheticDataModule])
def test_constructors_are_schemas(cls: type[ImageDataModule]) -> None:
    """`cli` reads them: all parameters annotated, none open-ended. Nothing is saved twice or written."""
    parameters = inspect.signature(cls).parameters
    for parameter in parameters.values():
        assert parameter.annotation is not parameter.empty
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    assert not cls(root=LANDSCAPES, image_size=[8, 8]).hparams
    assert cls.prepare_data is LightningDataModule.prepare_data


# --- errors -------------------------------------------------------------------------------------------------------------


def test_an_image_size_from_an_untrusted_checkpoint_is_limited() -> None:
    with pytest.raises(UserError, match="has more than 67 million pixels, the limit"):
        ImageDataModule(LANDSCAPES, [8193, 8193])


def test_sets_before_setup() -> None:
    with pytest.raises(RuntimeError, match="setup"):
        ImageDataModule(LANDSCAPES, [8, 8]).sets()


def test_missing_side_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="side_root: .*sidee does not exist. Did you mean .*side?"):
        ready(LANDSCAPES, side_root=f"{SIDE}e")
    with pytest.raises(UserError, match="side_root: .* contains one image; at least two"):
        ready(LANDSCAPES, side_root=str(save(tmp_path / "one", 1)))


def test_a_broken_image_stops_setup(tmp_path: Path) -> None:
    root = save(tmp_path / "few", 2)
    (root / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a jpeg")
    for gib in (1.0, 0.0):
        with pytest.raises(UserError, match="cannot read the image .*bad.jpg"):
            ready(root, max_memory_gib=gib)


def test_a_temporary_folder_too_deep_for_sockets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers would fail to hand over their batches, and the training would wait for them for ever."""
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/{'t' * 90}")
    ready(save(tmp_path / "few", 2))
    with pytest.raises(UserError, match="num_workers: .* set TMPDIR to a path of at most 75 characters"):
        ready(tmp_path / "few", num_workers=2)


# --- the choice of an image ---------------------------------------------------------------------------------------------

DIGITS = ["001.jpg", "002.jpg", "003.jpg", "010.jpg", "7.jpg"]


@pytest.mark.parametrize(
    ("image", "name"),
    [("001", "001.jpg"), ("010", "010.jpg"), (1, "002.jpg"), ("1", "002.jpg"), (0, "001.jpg"), (7, "7.jpg"), ("7", "7.jpg")],
)
def test_a_name_of_digits_precedes_an_index(image: str | int, name: str) -> None:
    assert DIGITS[choose(DIGITS, image, Path("photos"))] == name


@pytest.mark.parametrize("image", ["004", "00", "5", 5, -1, "-1"])
def test_a_text_with_a_leading_zero_is_no_index(image: str | int) -> None:
    with pytest.raises(UserError, match=f"image: (index )?{image}"):
        choose(DIGITS, image, Path("photos"))


def test_composed_and_decomposed_names_are_equal(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    folder = save(tmp_path / decomposed, 1)
    shutil.move(folder / "000.png", folder / f"{decomposed}.png")
    composed = unicodedata.normalize("NFC", "café")
    assert composed != decomposed
    module = ready(tmp_path / composed, image=composed)
    assert module.sets()["image"].files == [f"{decomposed}.png"]
    assert ready(tmp_path / composed / f"{composed}.png").sets()["image"].folder == folder


def test_an_image_that_is_not_in_a_single_file(tmp_path: Path) -> None:
    file = save(tmp_path / "one", 1) / "000.png"
    with pytest.raises(UserError, match="image: 003.jpg is not the name of .*000.png: set datamodule.image=null"):
        ready(file, image="003.jpg")
