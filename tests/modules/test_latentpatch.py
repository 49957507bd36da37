"""LatentPatch with a random autoencoder; the synthesis itself is tested in tests/modules/patches."""

import atexit
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

import evaluate
import train
from cli.loader import load_config
from core.errors import UserError
from core.files import shipped_file
from modules.base import sampling_mode
from modules.latentpatch import PRESETS, LatentPatch
from modules.patches.latent_patches import project_codebook
from modules.tokenizer import load_vqgan
from modules.vqgan import VQGAN

FOLDER = Path(tempfile.mkdtemp(prefix="latentpatch"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def tokenizer_file(name="tokenizer", size=(16, 16), seed=0):
    """A file with a random autoencoder, whose codes are of all kinds, on a grid of half the image's size."""
    file = FOLDER / f"{name}.ckpt"
    if not file.exists():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sizes = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "z_channels": 8}
            module = VQGAN(list(size), **sizes, embed_dim=8, num_codes=24, disc_layers=1, disc_channels=8)
            images = torch.rand(32, 3, *size) * 2 - 1
            latents = module.quant_conv(module.encoder(F.interpolate(images[..., ::4, ::4], size)))
            rows = latents.movedim(1, -1).flatten(0, 2)
            module.quantize.embedding.weight.data.copy_(rows[torch.randperm(len(rows))[:24]])
            checkpoint = {"class_path": "modules.vqgan.VQGAN", "hyper_parameters": dict(module.hparams)}
            torch.save({**checkpoint, "state_dict": module.state_dict(), "iteration": 0, "images_seen": 0}, file)
    return str(file)


TINY = [
    "datamodule.image_size=[16,16]",
    f"module.tokenizer_checkpoint={tokenizer_file()}",
    "module.patch=4",
    "datamodule.num_images=6",
]
PARAMETERS = {"latentpatch": 0, "latentpatch_256": 0}


def build(images=None, **settings) -> LatentPatch:
    settings = {"image_size": [16, 16], "tokenizer_checkpoint": tokenizer_file(), "patch": 4} | settings
    module = LatentPatch(**settings)
    module.start_from_source()
    module.store(torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1 if images is None else images)
    return module.eval()


@pytest.fixture(scope="module")
def module():
    return build()


def drawn(module, number=3, seed=0, **options):
    with sampling_mode(module, seed, range(number)):
        return module.sample(number, **options)


# --- fit and file -----------------------------------------------------------------------------------------------------


def test_the_bank_holds_codes_in_two_bytes_each(module):
    images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert module.bank.rows.shape == (12, 8, 8) and module.bank.rows.dtype == torch.int16
    assert torch.equal(module.bank.rows.long(), module.tokenizer.encode(images))
    assert len(module.bank.rows.unique()) > 4  # else the tests below prove nothing


def checkpoint_of(module):
    checkpoint = {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict(), "epoch": 1, "global_step": 0}
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def test_codes_of_another_autoencoder_are_refused(module):
    checkpoint = checkpoint_of(module)
    rebuilt = LatentPatch.from_checkpoint(checkpoint)
    assert torch.equal(drawn(rebuilt), drawn(module))
    other = load_vqgan(tokenizer_file("other", seed=1))
    checkpoint["state_dict"] |= {f"tokenizer.{key}": value for key, value in other.state_dict().items()}
    with pytest.raises(UserError, match="the codes are of another autoencoder"):
        LatentPatch.from_checkpoint(checkpoint)


def test_shipped_weights_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert LatentPatch([64, 64]).start_from_source()[0] == "weights/vqgan_faces64.pt"
    assert Path(shipped_file("weights/stylegan2_faces32.pt")).is_absolute() and shipped_file("missing.pt") == "missing.pt"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/vqgan_faces64.pt").write_bytes(b"mine")
    with pytest.raises(UserError, match="not a checkpoint"):
        LatentPatch([64, 64]).start_from_source()


def latentpatch_file() -> str:
    """A file with the class, and the type of the codes."""
    checkpoint = {"class_path": "modules.latentpatch.LatentPatch", "codes": torch.zeros(2, dtype=torch.int16)}
    torch.save(checkpoint, FOLDER / "bank.ckpt")
    return str(FOLDER / "bank.ckpt")


MISTAKES = {
    "image size": (["datamodule.image_size=[32,32]"], "module.image_size is [32, 32]; expected [16, 16], the autoencoder's"),
    "other method": ([f"module.tokenizer_checkpoint={latentpatch_file()}"], "holds modules.latentpatch.LatentPatch, expected"),
    "no file": (["module.tokenizer_checkpoint=missing.ckpt"], "module.tokenizer_checkpoint=missing.ckpt: no such file"),
    "neighbors": (["module.neighbors=7"], "module.neighbors is 7, more than the 6 image(s)"),
    "patch": (["module.patch=6", "module.scales=3"], "patch is 6, larger than the coarsest scale of 5×5 codes"),
    "stride": (["module.stride=5"], "stride is 5, larger than patch 4"),
    "preset": (["module.preset=papers"], "module.preset"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_error_and_nothing_is_written(case, tmp_path, capsys):
    settings, message = MISTAKES[case]
    synthetic = "datamodule.class_path=datamodules.synthetic.SyntheticDataModule"
    arguments = ["configs/latentpatch.yaml", synthetic, *TINY, *settings]
    assert train.main([*arguments, "logger.wandb=null", "trainer.accelerator=cpu", f"run_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error and not (tmp_path / "run").exists()


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_settings_come_from_the_call_the_preset_and_the_module():
    module = build(patch=None, neighbors=2)
    assert module.settings()[:4] == (6, 2, 2, 1)
    assert module.settings("paper", patch=4)[:4] == (4, 2, 3, 5)
    assert module.settings("table1")[:4] == (6, 2, 10, 1) and module.settings("random_4x4")[:3] == (4, 4, None)
    strides = [module.settings("paper", patch=patch).stride for patch in (2, 4, 6, 8)]
    assert strides == [1, 2, 2, 3]  # as in the paper's figure 4


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_copy_codes_of_their_place(module, preset):
    options = {"patch": 4} if preset in ("default", "paper", "table1", "reference") else {}
    with sampling_mode(module, 0, range(4)):
        codes = module.sample_codes(4, preset, **options)
    image, row, column = module.provenance().unbind(1)
    pixels = torch.arange(16)
    assert (row == pixels.unsqueeze(1)).all() and (column == pixels).all()
    assert torch.equal(codes, module.bank.rows[image[:, ::2, ::2], pixels[:8].unsqueeze(1), pixels[:8]].long())
    assert module.source_shares().sum() == pytest.approx(1)
    assert module.provenance_picture().shape == (4, 3, 16, 16)


def test_unaligned_sources_are_found_beside_their_place(module):
    with sampling_mode(module, 0, range(4)):
        codes = module.sample_codes(4, rho=2)
    image, row, column = (part[:, ::2, ::2] for part in module.provenance().unbind(1))
    assert torch.equal(codes, module.bank.rows[image, row // 2, column // 2].long())
    assert (row != torch.arange(0, 16, 2).unsqueeze(1)).any() and (row - torch.arange(0, 16, 2).unsqueeze(1)).abs().max() <= 4


def test_memory_is_shared_out_without_changing_an_image(module, monkeypatch):
    straight, images, sizes = drawn(module, 5), torch.rand(5, 3, 16, 16), []
    codes = module.bank_rows(images)
    monkeypatch.setattr("modules.latentpatch.COMPOSE_BATCH_SIZE", 2)
    monkeypatch.setattr("modules.vqgan.MAX_BATCH_PIXELS", 2 * 16**2)
    for network in (module.tokenizer.encoder, module.tokenizer.decoder):
        plain = network.forward
        monkeypatch.setattr(network, "forward", lambda x, plain=plain: sizes.append(len(x)) or plain(x))
    torch.testing.assert_close(drawn(module, 5), straight, atol=1e-5, rtol=0)
    assert torch.equal(module.bank_rows(images), codes) and sizes == [2, 2, 1, 2, 2, 1]


def test_statistics_of_copies_and_mixtures(module):
    with sampling_mode(module, 0, range(4)):
        single = module.provenance_statistics(module.sample_codes(4, patch=8))  # a window is the whole map
        mixed = module.provenance_statistics(module.sample_codes(4, "random_1x1"))
    assert single["sources_per_image"] == single["largest_source_share"] == single["verbatim_median"] == 1
    assert single["verbatim_copies"] == 1 and mixed["sources_per_image"] > 8 and mixed["verbatim_max"] < 0.9
    with pytest.raises(UserError, match="no image has been generated"):
        build().provenance()


# --- attributes -------------------------------------------------------------------------------------------------------


class Table(list):
    attributes = {"male": list("010101"), "hair": ["blond", "blond", "red", "red", "black", "black"]}


def with_attributes():
    module = build(neighbors=1)
    module.check_data({"image": Table(range(12))})
    return module


def test_sources_are_those_that_fulfill_the_conditions():
    module = with_attributes()
    with pytest.warns(UserWarning, match="leaves 4 images, few for 2 neighbors"):
        drawn(module, where="male=0&hair!=black", neighbors=2)
    assert set(module.source_shares().nonzero()[:, 0].tolist()) <= {0, 2, 6, 8}
    rebuilt = LatentPatch.from_checkpoint(checkpoint_of(module))
    assert torch.equal(drawn(rebuilt, where="hair=red"), drawn(module, where="hair=red"))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("mal=0", "where=mal=0: unknown attribute mal. Did you mean male?.*Known: male, hair"),
        ("hair=blonde", "hair is never 'blonde'. Did you mean blond?.*Values: black, blond, red"),
        ("male=0 & hair", "'hair' is not NAME=VALUE"),
        ("", "'' is not NAME"),
        ("hair=red & hair=blond", "none of the 12 images fulfills this"),
        ("hair=red & male=1", "neighbors is 5, more than the 2 images with hair=red & male=1"),
    ],
)
def test_conditions_that_select_nothing_are_refused(where, message):
    with pytest.raises(UserError, match=message):
        drawn(with_attributes(), where=where, neighbors=5)


def test_without_a_table_no_attribute_is_known(module):
    with pytest.raises(UserError, match="unknown attribute male. Known: none, as no attributes.csv"):
        drawn(module, where="male=0")


# --- references, editing, holes ---------------------------------------------------------------------------------------


def test_a_source_as_reference_comes_back_and_less_strength_keeps_less(module):
    codes = module.bank.rows[:3].long()
    image = module.tokenizer.decode(codes)
    module._encode = lambda images: codes[: len(images)]
    try:
        assert torch.equal(module.inject(image, neighbors=1), image)
        assert torch.equal(module.provenance()[:, 0, 0, 0], torch.arange(3))
        errors = []
        for strength in (1.0, 0.5, 0.0):
            with sampling_mode(module, 0, range(3)):
                errors.append(float((module.inject(image, strength=strength) - image).square().mean()))
            with sampling_mode(module, 0, range(3)):
                by_scale = module.inject(image, scale=round(4 * strength))
            assert float((by_scale - image).square().mean()) == errors[-1]
        assert errors[0] <= errors[2]
        with pytest.raises(UserError, match="scale is 5; allowed are 0"):
            module.inject(image, scale=5)
    finally:
        del module._encode


def mask_of(*box):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., box[0] : box[1], box[2] : box[3]] = 1
    return mask


def test_editing_takes_the_codes_of_the_donor_inside_the_mask(module):
    """L13, and by area: a code of which a quarter of the pixels is masked stays."""
    reference, donor = torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    empty, full = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    assert torch.equal(module.edit(reference, empty, donor), module.reconstruct(reference))
    assert torch.equal(module.edit(reference, full, donor), module.reconstruct(donor))
    expected = module._encode(reference).clone()
    expected[:, 2:4, 3:6] = module._encode(donor)[:, 2:4, 3:6]
    assert torch.equal(module.edit(reference, mask_of(4, 9, 6, 13)[..., :16], donor), module.tokenizer.decode(expected))


def test_healing_changes_the_ring_around_the_mask_alone(module, monkeypatch):
    reference, donor = torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    codes = []
    monkeypatch.setattr(module.tokenizer, "decode", lambda values: codes.append(values) or torch.zeros(1, 3, 16, 16))
    for heal in (False, True):
        module.edit(reference, mask_of(4, 8, 6, 12), donor, heal=heal)
    changed = (codes[0] != codes[1])[0]
    ring = torch.zeros(8, 8, dtype=torch.bool)
    ring[1:5, 2:7] = True
    ring[2:4, 3:6] = False
    assert changed.any() and not (changed & ~ring).any()
    assert torch.equal((module._origin.view(8, 8) >= 0), ring)


def test_an_edit_without_donor_renders_the_region_from_sources(module):
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(6)) * 2 - 1
    with sampling_mode(module, 0, range(1)):
        module.edit(image, mask_of(4, 8, 6, 12))
    inside = module.provenance()[0, 0] >= 0
    assert torch.equal(inside, mask_of(4, 8, 6, 12)[0, 0] > 0)
    assert (module.provenance_picture()[0, :, ~inside] == -1).all()


def test_holes_are_filled_and_their_content_does_not_matter(module):
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(7)) * 2 - 1
    mask = mask_of(6, 8, 6, 8)

    def fill(image):
        with sampling_mode(module, 0, range(2)):
            return module.inpaint(image, mask, 2)

    first = fill(image)
    assert torch.equal(fill(torch.where(mask > 0, torch.ones(()), image)), first)
    written = module.provenance()[:, 0] >= 0
    assert torch.equal(written[0], mask_of(4, 10, 4, 10)[0, 0] > 0) and torch.equal(written[0], written[1])
    with sampling_mode(module, 0, range(1)):
        assert torch.equal(module.inpaint(image, torch.zeros_like(mask), 1), module.reconstruct(image))
        assert module.inpaint(image, torch.ones_like(mask), 1).std() > 0


def test_the_projection_loses_no_code(module):
    """The nearest code in the projected code book is the code, so that reconstructions with and without it are equal."""
    book = project_codebook(module.bank.rows, module.tokenizer.codebook, 4)
    codes = module.bank.rows.long()
    snapped = torch.cdist(book[codes].flatten(0, 2), book).argmin(1).view_as(codes)
    assert torch.equal(book[snapped], book[codes])


def test_reference_points_of_a_measurement(module):
    torch.manual_seed(0)
    points = module.baselines(3)
    assert list(points) == ["reconstructions", "random_1x1", "random_4x4"]
    assert all(images.shape == (3, 3, 16, 16) for images in points.values())


# --- the tasks of the command line ------------------------------------------------------------------------------------


def test_the_command_line_from_a_folder_to_edits(tmp_path, capsys):
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        Image.effect_noise((16, 16), 90).convert("RGB").resize((16, 16)).save(folder / f"{i}.png")
    (folder / "attributes.csv").write_text("file,even\n" + "".join(f"{i}.png,{(i + 1) % 2}\n" for i in range(6)))
    Image.new("L", (16, 16), 0).save(tmp_path / "mask.png")
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (4, 4, 10, 10))
    mask.save(tmp_path / "mask.png")
    arguments = ["configs/latentpatch.yaml", f"run_dir={tmp_path / 'run'}", f"datamodule.root={folder}"]
    arguments += [word for word in TINY if "num_images" not in word]
    arguments += ["datamodule.heldout_root=null", "callbacks.metrics=null", "logger.wandb=null", "trainer.accelerator=cpu"]
    assert train.main(arguments) == 0
    file, image = str(tmp_path / "run/checkpoints/last.ckpt"), f"task.image={folder / '0.png'}"

    def run(task, *keys):
        code = evaluate.main([file, f"configs/tasks/{task}.yaml", *keys, f"out={tmp_path / task}"])
        return sorted(entry.name for entry in (tmp_path / task).glob("*.png")) if code == 0 else code

    assert run("generate", "task.num_images=3", "task.options.where=even=1") == [
        *(f"sample_{i:03d}.png" for i in range(3)), *(f"sources_{i:03d}.png" for i in range(3)),
    ]  # fmt: skip
    assert (tmp_path / "generate/sources.npz").exists()
    assert run("conditional", image, "task.options.strength=0.5") == ["00_input.png", "01_conditional.png"]
    masked = [image, f"task.mask={tmp_path / 'mask.png'}"]
    edited = ["00_input.png", "01_mask.png", "02_unmasked.png", "03_edited.png"]
    assert run("edit", *masked, f"task.options.donor={folder / '1.png'}", "task.options.heal=true") == edited
    assert run("inpaint", *masked, "task.num_images=2") == ["00_input.png", "01_mask.png", "02_fill_000.png", "02_fill_001.png"]
    shutil.rmtree(tmp_path / "edit")
    shutil.rmtree(tmp_path / "generate")
    for keys, message in (
        (["edit", *masked, "task.options.donor=nowhere.png"], "task.options.donor=nowhere.png: no such file"),
        (["generate", "task.options.where=odd=1"], "unknown attribute odd"),
        (["generate", "task.options.where=even=1 & even=0"], "none of the 6 images fulfills this"),
        (["generate", "task.options.neighbors=7"], "neighbors is 7, more than the 6 images to choose from"),
        (["generate", "task.options.patch=9"], "patch is 9, larger than the coarsest scale of 8×8 codes"),
        (["generate", "task.options.preset=paper"], "patch is 6, larger than the coarsest scale of 5×5 codes"),
    ):
        capsys.readouterr()
        assert run(*keys) == 2
        error = capsys.readouterr().err.splitlines()
        assert error[-1].startswith("error: ") and message in error[-1] and not (tmp_path / keys[0]).exists()


def test_a_file_with_codes_of_another_autoencoder_is_one_error(module, tmp_path, capsys):
    config = load_config(["configs/latentpatch.yaml", "datamodule.class_path=datamodules.synthetic.SyntheticDataModule", *TINY])
    checkpoint = checkpoint_of(module) | {"config": OmegaConf.to_container(config)}
    other = load_vqgan(tokenizer_file("other", seed=1))
    checkpoint["state_dict"] |= {f"tokenizer.{key}": value for key, value in other.state_dict().items()}
    torch.save(checkpoint, tmp_path / "mixed.ckpt")
    assert evaluate.main([str(tmp_path / "mixed.ckpt"), "configs/tasks/generate.yaml", f"out={tmp_path / 'out'}"]) == 2
    assert "the codes are of another autoencoder" in capsys.readouterr().err and not (tmp_path / "out").exists()
