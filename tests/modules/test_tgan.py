import copy

import pytest
import torch

from core.errors import UserError
from modules.networks.style_checkpoints import to_rosinality
from modules.tgan import TGAN
from tests.modules.style_source import TINY, build, differing, fit, networks, source_model  # noqa: F401

PARAMETERS = {"tgan": 410_207, "tgan_256": 88_932_805, "tgan_ada": 410_207, "tgan_diffaugment": 410_207}


def test_training_begins_at_the_average_of_the_source():
    module, source = build(TGAN), source_model()
    module.load_state_dict(module.convert(networks(source)))
    assert not differing(module, source, ("generator_ema", "discriminator"))
    z = torch.randn(2, 8)
    assert torch.equal(module.generator(z, None).images, source.generator_ema(z, None).images)


def test_everything_trains_and_the_average_moves_less():
    module = fit(build(TGAN))
    source = build(TGAN)
    source.load_state_dict(source.convert(networks(source_model())))
    assert {name for name, _ in module.named_parameters()} <= differing(module, source) | {"miner"}
    assert module.source_sha256 and module.iteration == 4


def test_a_source_without_discriminator_is_a_warning_and_without_generator_an_error():
    module, source = build(TGAN), networks(source_model())
    with pytest.warns(UserWarning, match="the source has no discriminator, which TGAN then learns from random weights"):
        module.convert({key: value for key, value in source.items() if not key.startswith("discriminator.")})
    with pytest.raises(UserError, match="no generator of StyleGAN2"):
        module.convert({key: value for key, value in source.items() if key.startswith("discriminator.")})


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
    with pytest.raises(UserError, match=r"missing generator.convs.2.bias; left over generator.more"):
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
    import lightning

    from datamodules.synthetic import SyntheticDataModule

    resumed = build(TGAN, source_checkpoint=str(source), iterations=8)
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    data = SyntheticDataModule([16, 16], batch_size=4, samples_per_epoch=16)
    trainer.fit(resumed, data, ckpt_path=tmp_path / "part.ckpt", weights_only=True)
    assert not differing(straight, resumed) and resumed.iteration == 8 and resumed.source_sha256 == digest
    assert TGAN.from_checkpoint(torch.load(tmp_path / "part.ckpt", weights_only=True)).iteration == 4


def test_a_source_in_rosinality_s_layout_begins_the_same_training(tmp_path):
    torch.save(to_rosinality(networks(source_model())), tmp_path / "rosinality.pt")
    first, second = fit(build(TGAN)), fit(build(TGAN, source_checkpoint=str(tmp_path / "rosinality.pt")))
    assert not differing(first, second)
