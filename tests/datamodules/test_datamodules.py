"""Batches, sets and errors of the data modules, without a Trainer."""

import inspect
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning import LightningDataModule
from PIL import Image

from datamodules.fewshot import FewShotDataModule
from datamodules.image_datamodule import ImageDataModule
from datamodules.side import SideDataModule, split_heldout
from datamodules.source import SourceDataModule
from datamodules.synthetic import SyntheticDataModule

LANDSCAPES, SIDE, FACES = (f"datamodules/starter/{name}" for name in ("landscapes", "side", "faces"))


def save(folder: Path, number: int, size: tuple[int, int] = (12, 8), start: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(start, start + number):
        image = Image.effect_noise(size, 60).convert("RGB")
        image.putpixel((0, 0), (i, i, i))
        image.save(folder / f"{i:03d}.png")
    return folder


def side_module(tmp_path: Path, **keys: object) -> SideDataModule:
    root, side_root = save(tmp_path / "few", 3), save(tmp_path / "side", 7, start=50)
    settings = {"root": str(root), "side_root": str(side_root), "image_size": [8, 12], "batch_size": 4} | keys
    module = SideDataModule(**settings)
    module.setup("fit")
    return module


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_side_batches_hold_the_entries_they_name(tmp_path: Path, num_workers: int, flip: bool) -> None:
    module = side_module(tmp_path, samples_per_epoch=42, num_workers=num_workers, flip=flip, side_flip=not flip)
    sets = module.sets()
    assert {key: len(images) for key, images in sets.items()} == {
        "image": 3 * (1 + flip),
        "side": 6 * (2 - flip),
        "side_heldout": 1,
    }
    batches = list(module.train_dataloader())
    assert len(batches) == 10  # 42 samples make ten batches of four; two are left out
    seen = Counter()
    for batch in batches:
        assert sorted(batch) == ["image", "index", "side", "side_index"]
        for key, index_key in (("image", "index"), ("side", "side_index")):
            assert batch[key].shape == (4, 3, 8, 12) and batch[key].dtype == torch.float32
            assert batch[index_key].shape == (4,) and batch[index_key].dtype == torch.int64
            assert torch.equal(batch[key], sets[key].stack()[batch[index_key]])
            seen.update((key, int(i)) for i in batch[index_key])
    for key in ("image", "side"):
        counts = [seen[key, i] for i in range(len(sets[key]))]
        assert sum(counts) == 40 and max(counts) - min(counts) <= 1


def test_epochs_differ_and_come_again(tmp_path: Path) -> None:
    def epochs(seed: int) -> list[list[int]]:
        loader = side_module(tmp_path, samples_per_epoch=24, seed=seed).train_dataloader()
        orders = []
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            orders.append([int(i) for batch in loader for i in torch.cat([batch["index"], batch["side_index"]])])
        return orders

    first = epochs(0)
    assert first == epochs(0) and first[0] != first[1] and first != epochs(1)


def test_loaders_leave_the_global_generator_alone(tmp_path: Path) -> None:
    module = side_module(tmp_path, samples_per_epoch=8)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        assert loader.generator is not None
        list(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_gives_each_reference_image_once_unmirrored(tmp_path: Path) -> None:
    module = side_module(tmp_path, flip=True, batch_size=2)
    for loader in (module.val_dataloader(), module.test_dataloader()):
        batches = list(loader)
        assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2]]
        images = torch.cat([batch["image"] for batch in batches])
        assert torch.equal(images, module.sets()["image"].stack()[:3])


@pytest.mark.parametrize(("samples", "batch_size", "sizes"), [(3, 8, [3]), (8, 8, [8]), (17, 8, [8, 8]), (1, 1, [1])])
def test_batches_have_one_size(tmp_path: Path, samples: int, batch_size: int, sizes: list[int]) -> None:
    module = FewShotDataModule(str(save(tmp_path / "few", 2)), [8, 12], batch_size, samples)
    module.setup()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader = module.train_dataloader()
    assert [len(batch["index"]) for batch in loader] == sizes
    assert ["fewer than batch_size=8" in str(w.message) for w in caught] == [True] * (samples < batch_size)


def test_fewshot_module_on_the_starter_images() -> None:
    module = FewShotDataModule(LANDSCAPES, [72, 96], batch_size=5, samples_per_epoch=5)
    module.setup("fit")
    (batch,) = module.train_dataloader()
    assert sorted(batch["index"].tolist()) == list(range(5)) and batch["image"].shape == (5, 3, 72, 96)
    assert -1 <= batch["image"].min() < -0.5 and 0.5 < batch["image"].max() <= 1
    assert (Path("datamodules/starter/ATTRIBUTION.md")).read_text().count("landscapes") > 0


def test_starter_side_set_is_split() -> None:
    module = SideDataModule(LANDSCAPES, SIDE, [24, 32], samples_per_epoch=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.setup("fit")
    sets = module.sets()
    files = sorted(path.name for path in Path(SIDE).iterdir())
    assert sorted(sets["side"].files + sets["side_heldout"].files) == files
    assert len(sets["side_heldout"]) == round(0.1 * len(files)) == 5


@pytest.mark.parametrize(("number", "fraction", "heldout"), [(2, 0.1, 1), (2, 0.9, 1), (10, 0.1, 1), (100, 0.25, 25)])
def test_split_depends_on_the_names_alone(number: int, fraction: float, heldout: int) -> None:
    files = [f"{i}.png" for i in range(number)]
    train, held = split_heldout(files, fraction)
    assert len(held) == heldout and len(train) == number - heldout
    assert sorted(train + held) == sorted(files) and not set(train) & set(held)
    assert tuple(map(set, split_heldout(files[::-1], fraction))) == (set(train), set(held))
    grown = split_heldout(files + ["new.png"], fraction)[1]
    assert len(set(held) - set(grown)) <= 1


@pytest.mark.parametrize("gib", [1.0, 1e-6])
def test_source_module_searches_subfolders_and_keeps_the_memory_rule(tmp_path: Path, gib: float) -> None:
    root = save(tmp_path / "source", 4)
    save(root / "more", 4, start=9)
    module = SourceDataModule(str(root), [8, 12], 3, 9, flip=True, max_memory_gib=gib, num_workers=2 * (gib < 1))
    module.setup("fit")
    images = module.sets()["image"]
    assert module.sets()["source"] is images and len(images) == 16 and images.files[-1] == "more/012.png"
    assert (images.pixels is None) == (8 * 3 * 8 * 12 > gib * 2**30)
    whole = torch.stack([images[i] for i in range(16)])
    for batch in module.train_dataloader():
        assert torch.equal(batch["image"], whole[batch["index"]])


def test_synthetic_module_stands_in_for_every_other() -> None:
    keys = {
        name: parameter.default
        for cls in (FewShotDataModule, SideDataModule, SourceDataModule)
        for name, parameter in inspect.signature(cls).parameters.items()
    }
    required = {"root": "nowhere", "side_root": "nowhere", "image_size": [20, 30]}
    module = SyntheticDataModule(**(keys | required | {"samples_per_epoch": 4, "batch_size": 2, "flip": True}))
    module.setup("fit")
    sets = module.sets()
    lengths = {key: len(images) for key, images in sets.items()}
    assert lengths == {"image": 6, "side": 7, "side_heldout": 1, "source": 16}
    everything = torch.cat([images.originals().stack() for images in sets.values()])
    assert everything.shape == (19, 3, 20, 30) and everything.min() >= -1 and everything.max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in everything}) == 19
    assert everything.std(dim=0).min() > 0.1 and everything.flatten(1).std(dim=1).min() > 0.1
    again = SyntheticDataModule([20, 30], seed=7)
    again.setup()
    assert torch.equal(again.sets()["image"].stack(), sets["image"].originals().stack())
    assert len(set(module.fingerprints().values())) == 4
    batch = next(iter(module.train_dataloader()))
    assert torch.equal(batch["side"], sets["side"].stack()[batch["side_index"]])
    assert [b["index"].tolist() for b in module.val_dataloader()] == [[0, 1], [2]]


@pytest.mark.parametrize("cls", [FewShotDataModule, SideDataModule, SourceDataModule, SyntheticDataModule])
def test_constructors_are_schemas(cls: type[ImageDataModule]) -> None:
    """`cli.build` reads them: all parameters annotated, none open-ended. Nothing is saved twice or written."""
    parameters = inspect.signature(cls).parameters
    for parameter in parameters.values():
        assert parameter.annotation is not parameter.empty
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    roots = {key: LANDSCAPES for key in ("root", "side_root") if key in parameters}
    assert not cls(image_size=[8, 8], **roots).hparams
    assert cls.prepare_data is LightningDataModule.prepare_data


@pytest.mark.parametrize("size", [[8], [8, 0], [8, -1], [8, 8.0], ["8", "8"], [8, True], 8, "88", None, [8, 8, 8]])
def test_image_size_must_be_two_positive_whole_numbers(size: object) -> None:
    with pytest.raises(ValueError, match=r"image_size must be \[height, width\], two positive whole numbers, but is"):
        FewShotDataModule(LANDSCAPES, size)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number, at least 1, but is 0"),
        ({"samples_per_epoch": 0}, "samples_per_epoch must be"),
        ({"samples_per_epoch": 1.5}, "samples_per_epoch must be"),
        ({"num_workers": -1}, "num_workers must be a whole number, at least 0"),
        ({"heldout_fraction": 0.0}, "heldout_fraction must lie above 0 and below 1"),
        ({"heldout_fraction": 1.0}, "heldout_fraction must lie"),
    ],
)
def test_settings_out_of_range(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SideDataModule(LANDSCAPES, SIDE, [8, 8], **keys)


def test_sets_before_setup() -> None:
    with pytest.raises(RuntimeError, match="setup"):
        FewShotDataModule(LANDSCAPES, [8, 8]).sets()


def test_missing_side_root(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="side_root: .*sidee does not exist. Did you mean .*side?"):
        SideDataModule(LANDSCAPES, f"{SIDE}e", [8, 8]).setup()
    with pytest.raises(ValueError, match="side_root: .* holds one image; at least two"):
        SideDataModule(LANDSCAPES, str(save(tmp_path / "one", 1)), [8, 8]).setup()


def test_broken_image_stops_setup(tmp_path: Path) -> None:
    root = save(tmp_path / "few", 2)
    (root / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a jpeg")
    with pytest.raises(ValueError, match="cannot read the image .*bad.jpg"):
        FewShotDataModule(str(root), [8, 8]).setup()


def test_one_image_warns_and_works(tmp_path: Path) -> None:
    root = save(tmp_path / "one", 1)
    modules = [FewShotDataModule(str(root), [8, 8], 2, 4), SideDataModule(str(root / "000.png"), SIDE, [8, 8], 2, 4)]
    for module in modules:
        with pytest.warns(UserWarning, match="one (training )?image only"):
            module.setup()
        assert [batch["index"].tolist() for batch in module.train_dataloader()] == [[0, 0], [0, 0]]
    with warnings.catch_warnings():  # a file was chosen on purpose
        warnings.simplefilter("error")
        FewShotDataModule(str(root / "000.png"), [8, 8]).setup()


def test_a_file_in_both_sets_is_reported(tmp_path: Path) -> None:
    side_root = save(tmp_path / "side", 5, start=50)
    (side_root / "copy.png").write_bytes((save(tmp_path / "few", 3) / "001.png").read_bytes())
    module = SideDataModule(str(tmp_path / "few"), str(side_root), [8, 8])
    with pytest.warns(UserWarning, match="same file is in the sets image and side.*: .*few/001.png = .*side/copy.png"):
        module.setup()


@pytest.mark.parametrize("kind", [FewShotDataModule, SideDataModule, SyntheticDataModule])
def test_held_out_images_are_a_set_that_training_never_sees(tmp_path: Path, kind: type[ImageDataModule]) -> None:
    settings = {"root": str(save(tmp_path / "few", 3)), "image_size": [8, 12], "batch_size": 2, "samples_per_epoch": 12}
    if kind is SideDataModule:
        settings["side_root"] = str(save(tmp_path / "side", 7, start=50))
    module = kind(**settings, heldout_root=str(save(tmp_path / "heldout", 3, start=90)))
    module.setup("fit")
    heldout = module.sets()["image_heldout"]
    assert len(heldout) == 3 and set(module.fingerprints()) == set(module.sets())
    seen = torch.cat([batch["image"] for batch in module.train_dataloader()])
    assert all((seen - image).abs().amax() > 0.1 for image in heldout.stack())
    assert len(torch.cat([batch["index"] for batch in module.val_dataloader()])) == 3


def test_training_images_among_the_held_out_ones_are_refused(tmp_path: Path) -> None:
    root = save(tmp_path / "few", 3)
    (save(tmp_path / "heldout", 2, start=90) / "again.png").write_bytes((root / "001.png").read_bytes())
    module = FewShotDataModule(str(root), [8, 12], heldout_root=str(tmp_path / "heldout"))
    with pytest.raises(ValueError, match="heldout_root: .*heldout holds training images: again.png"):
        module.setup("fit")
    with pytest.raises(FileNotFoundError, match="heldout_root"):
        FewShotDataModule(str(root), [8, 12], heldout_root=str(tmp_path / "nowhere")).setup("fit")


def test_changed_files_are_noticed_on_resume(tmp_path: Path) -> None:
    module = side_module(tmp_path)
    state = module.state_dict()
    assert state == {"fingerprints": module.fingerprints()} and sorted(module.fingerprints()) == sorted(module.sets())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.load_state_dict(state)
    Image.new("RGB", (12, 8)).save(tmp_path / "few" / "001.png")
    changed = SideDataModule(str(tmp_path / "few"), str(tmp_path / "side"), [8, 12])
    changed.setup()
    with pytest.warns(UserWarning, match=r"image set\(s\) image$"):
        changed.load_state_dict(state)
