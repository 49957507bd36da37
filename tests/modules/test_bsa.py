import lightning
import pytest
import torch

from core.errors import UserError
from datamodules.synthetic import SyntheticDataModule
from modules.bsa import BSA, set_distance
from modules.tgan import TGAN
from tests.modules import style_source
from tests.modules.style_source import build, fit, moved, networks, source_model

TINY = [*style_source.TINY, "module.iterations=8"]  # two epochs on two processes, too
JOINED_BATCH = ["module.mixing=0.0", "module.path_interval=0", "module.iterations=2"]
PARAMETERS = {"bsa": 411_231, "bsa_256": 88_954_309}


def test_number_of_trained_parameters():
    with torch.device("meta"):
        module = BSA(image_size=[256, 256], iterations=1)
    assert sum(parameter.numel() for parameter in module.trained_g()) == 10_752


def test_only_scales_and_shifts_of_the_generator_move_and_neutral_ones_restore_the_source():
    source = source_model()
    start = build(BSA)
    start.load_state_dict(start.convert(networks(source)))
    z = torch.randn(2, 8)
    images = source.generator_ema(z, None).images
    assert torch.equal(start.generator(z, None).images, images)
    module = fit(build(BSA))
    changed = moved(dict(start.generator.state_dict()), dict(module.generator.state_dict())) - {"w_mean"}
    extra = {key for key in module.generator.state_dict() if ".after_conv." in key}
    assert changed == extra and len(extra) == 2 * module.generator.num_convs
    assert all(p.grad is None for name, p in module.generator.named_parameters() if name not in extra)
    for conv in module.generator.convs:
        conv.after_conv.scale.data.fill_(1)
        conv.after_conv.shift.data.zero_()
    assert torch.equal(module.generator(z, None).images, images)


def test_the_discriminator_trains_as_in_tgan():
    assert len(build(BSA).trained_d()) == len(build(TGAN).trained_d())


SUPERVISED = {"mode": "supervised", "num_latents": 5, "noise": False, "perceptual": "rand_cnn", "lr": 0.02}


def test_supervised_only_scales_shifts_and_latents_move_and_reconstructions_come_nearer():
    data = SyntheticDataModule([16, 16], batch_size=5, samples_per_epoch=150, num_images=5)
    before, module = build(BSA, **SUPERVISED), build(BSA, **SUPERVISED, epochs=2, iterations=None)
    before.load_state_dict(before.convert(networks(source_model())))
    errors = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            errors.append(float(trainer.callback_metrics["train/reconstruction"]))

    fit(module, [Watch()], data)
    names = moved(dict(before.state_dict()), dict(module.state_dict()))
    names = {name for name in names if not name.startswith("generator_ema.") and "w_mean" not in name}
    assert names == {n for n in module.state_dict() if n.startswith("generator.") and ".after_conv." in n} | {
        "latents_of_images.weight"
    }
    assert sum(errors[-10:]) < 0.9 * sum(errors[:10]) and module.source_sha256


def test_supervised_needs_a_latent_for_each_image_and_no_discriminator():
    module = build(BSA, **SUPERVISED)
    module.convert(networks(source_model(), ("generator_ema",)))
    data = SyntheticDataModule([16, 16], num_images=4)
    data.setup()
    with pytest.raises(UserError, match="module.num_latents is 5, but there are 4 training images"):
        module.check_data(data.sets())


@pytest.mark.parametrize(("deviation", "expected"), [(0.0, 212), (0.5, 245), (1.0, 397)])
def test_the_distance_to_normal_latents_is_smallest_at_0(deviation, expected):
    generator = torch.Generator().manual_seed(0)
    values = [
        float(set_distance(deviation * torch.randn(25, 128, generator=generator), torch.randn(250, 128, generator=generator)))
        for _ in range(20)
    ]
    assert sum(values) / 20 == pytest.approx(expected, rel=0.02)
