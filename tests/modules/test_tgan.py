import copy
from pathlib import Path

import lightning
import pytest
import torch
from PIL import Image

import train
from core.errors import UserError
from datamodules.synthetic import SyntheticDataModule
from modules.bsa import BSA
from modules.cdc import CDC
from modules.dcl import DCL
from modules.ewc import EWC
from modules.freezed import FreezeD
from modules.fsgan import FSGAN
from modules.minegan import MineGAN
from modules.networks.style_checkpoints import to_rosinality
from modules.tgan import TGAN
from tests.modules.style_source import TINY, build, differing, fit, moved, networks, source_model  # noqa: F401

ROOT = Path(__file__).parents[2]
OTHERS = [FreezeD, BSA, MineGAN, EWC, CDC, DCL, FSGAN]
PARAMETERS = {"tgan": 410_207, "tgan_256": 88_932_805, "tgan_ada": 410_207, "tgan_diffaugment": 410_207}


@pytest.mark.parametrize(("source_from", "part"), [("raw", "generator"), ("ema", "generator_ema")])
def test_training_begins_at_the_source_or_its_average(source_from, part):
    module, source = build(TGAN, source_from=source_from), source_model()
    module.load_state_dict(module.convert(networks(source)))
    assert not differing(module, source, ("generator_ema", "discriminator"))
    z = torch.randn(2, 8)
    assert torch.equal(module.generator(z, None).images, getattr(source, part)(z, None).images)


def test_everything_trains():
    module = fit(build(TGAN))
    source = build(TGAN)
    source.load_state_dict(source.convert(networks(source_model())))
    assert {name for name, _ in module.named_parameters()} <= differing(module, source)
    assert module.source_sha256 and module.iteration == 4


def test_a_source_without_discriminator_is_a_warning_and_without_generator_an_error():
    module, source = build(TGAN), networks(source_model())
    with pytest.warns(UserWarning, match="the source has no discriminator, which TGAN then learns from random weights"):
        module.convert({key: value for key, value in source.items() if not key.startswith("discriminator.")})
    with pytest.raises(UserError, match="no generator of StyleGAN2"):
        module.convert({key: value for key, value in source.items() if key.startswith("discriminator.")})


@pytest.mark.parametrize("method", OTHERS)
def test_other_adaptations_refuse_a_source_without_discriminator(method):
    with pytest.raises(UserError, match=f"the source has no discriminator, which {method.__name__} needs"):
        build(method).convert(networks(source_model(), ("generator", "generator_ema")))


@pytest.mark.parametrize("part", ["generator", "generator_ema"])
def test_generator_and_average_stand_in_for_one_another(part):
    module, source = build(TGAN), networks(source_model(), (part, "discriminator"))
    state = module.convert(source)
    for key in networks(module, ("generator",)):
        plain = key.removeprefix("generator.")
        assert torch.equal(state[key], source[f"{part}.{plain}"]) and torch.equal(state[f"generator_ema.{plain}"], state[key])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": [32, 32], "channels": [8, 8, 8, 8]}, r"module.image_size is \[16, 16\], the source's \[32, 32\]"),
        ({"channels": [8, 8, 4]}, r"module.channels is \[8, 8, 8\], the source's \[8, 8, 4\]"),
        ({"mapping_layers": 3}, "module.mapping_layers is 2, the source's 3"),
        ({"z_dim": 6}, "module.z_dim is 8, the source's 6"),
    ],
)
def test_a_source_of_another_size_is_one_error(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        build(TGAN).convert(networks(source_model(**changes)))
    assert "\n" not in str(caught.value)


def test_an_incomplete_source_is_an_error():
    source = networks(source_model())
    del source["generator.convs.2.bias"]
    source["generator.more"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"missing generator.convs.2.bias; unexpected generator.more"):
        build(TGAN).convert(source)


def test_no_source_is_an_error_of_a_new_training_only(tmp_path):
    with pytest.raises(UserError, match="module.source_checkpoint: TGAN adapts a source model; give its checkpoint"):
        fit(build(TGAN, source_checkpoint=None))


def test_the_run_s_own_file_is_enough_to_go_on(tmp_path):
    source = tmp_path / "source.pt"
    torch.save(networks(source_model()), source)
    straight = build(TGAN, source_checkpoint=str(source), iterations=8)
    part = copy.deepcopy(straight)
    fit(straight)
    fit(part, max_epochs=1)
    part.trainer.save_checkpoint(tmp_path / "part.ckpt")
    digest = part.source_sha256
    source.unlink()
    resumed = build(TGAN, source_checkpoint=str(source), iterations=8)
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    data = SyntheticDataModule([16, 16], batch_size=4, samples_per_epoch=16, num_images=4)
    trainer.fit(resumed, data, ckpt_path=tmp_path / "part.ckpt", weights_only=True)
    assert not differing(straight, resumed) and resumed.iteration == 8 and resumed.source_sha256 == digest
    assert TGAN.from_checkpoint(torch.load(tmp_path / "part.ckpt", weights_only=True)).iteration == 4


@pytest.mark.parametrize("method", [TGAN, *OTHERS])
def test_bfloat16_trains_with_weights_of_32_bits(method):
    settings = {"augment": "ada"} if method is TGAN else {"fisher_samples": 4} if method is EWC else {}
    module, start = fit(build(method, **settings), precision="bf16-mixed"), networks(build(method, **settings))
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in module.parameters())
    assert moved(start, networks(module))


def test_a_source_in_rosinality_s_layout_begins_the_same_training(tmp_path):
    torch.save(to_rosinality(networks(source_model())), tmp_path / "rosinality.pt")
    first, second = fit(build(TGAN)), fit(build(TGAN, source_checkpoint=str(tmp_path / "rosinality.pt")))
    assert not differing(first, second)


def without_discriminator(path):
    torch.save(networks(source_model(image_size=[32, 32], channels=[48, 48, 32, 24], z_dim=64, w_dim=64), ("generator",)), path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["datamodule.image_size=[48,48]"], "image_size is 48; StyleGAN2 needs a power of two of at least 16"),
        (["datamodule.image_size=[32,64]"], "image_size is [32, 64]; StyleGAN2 makes square images"),
        (
            ["datamodule.image_size=[64,64]"],
            "channels has 4 entries, [48, 48, 32, 24], for images of 32 pixels; image_size=[64, 64] "
            "needs 5, at 4, 8, …, 64 pixels; a source model has to have this size, too",
        ),
        (["datamodule.image_size=[64,64]", "module.channels=[48,48,32,24,12]"], "module.image_size is [64, 64], the source's"),
        (["module.mapping_layers=3"], "module.mapping_layers is 3, the source's 2"),
        (["module.source_checkpoint=nowhere.pt"], "nowhere.pt: no such file"),
        (["module.source_checkpoint=GENERATOR"], "the source has no discriminator, which CDC needs"),
        (["module.source_checkpoint=README.md"], "README.md: refused, it is not a file of tensors"),
        (["module.source_checkpoint=null"], "CDC adapts a source model; give its checkpoint"),
        (["datamodule.root=datamodules/starter/labelled", "datamodule.labels=folder"], "CDC has no classes; set it to null"),
        (["module.relational_samples=2"], "module.relational_samples: expected int >= 3, got 2"),
        (["module.patch_taps=5"], "module.patch_taps: expected int >= 1 and <= 4, got 5"),
        (["datamodule.batch_size=21"], "datamodule.batch_size is 21, more than the 20 training image(s), mirrored ones"),
    ],
)
def test_bad_input_is_one_error_before_anything_is_written(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    without_discriminator(tmp_path / "generator.pt")
    for name in ("a", "b"):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), "white" if name == "a" else "red").save(tmp_path / "labelled" / name / "image.png")
    arguments = [word.replace("GENERATOR", f"{tmp_path}/generator.pt") for word in arguments]
    arguments = [word.replace("datamodules/starter/labelled", f"{tmp_path}/labelled") for word in arguments]
    code = train.main(["configs/cdc.yaml", f"run_dir={tmp_path / 'run'}", "logger.wandb=null", *arguments])
    told = capsys.readouterr().err
    assert code != 0 and message in told and "Traceback" not in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("flip", "fits"), [(False, False), (True, True)])
def test_fewer_images_than_a_batch_are_an_error(flip, fits):
    data = SyntheticDataModule([16, 16], batch_size=4, samples_per_epoch=16, num_images=2, flip=flip)
    if fits:
        assert fit(build(TGAN), data=data).iteration == 4
    else:
        with pytest.raises(UserError, match=r"batch_size is 4, more than the 2 training image.* datamodule.batch_size=2"):
            fit(build(TGAN), data=data)


def test_one_image_in_batches_of_one():
    data = SyntheticDataModule([16, 16], batch_size=1, samples_per_epoch=4, num_images=1)
    module = fit(build(TGAN), data=data)
    assert module.iteration == 4 and all(p.isfinite().all() for p in module.parameters())
