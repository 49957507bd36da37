import torch

from modules.bsa import BSA
from modules.tgan import TGAN
from tests.modules.style_source import TINY, build, fit, moved, networks, source_model  # noqa: F401

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
