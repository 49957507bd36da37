import pytest
import torch

from modules.freezed import FreezeD
from modules.tgan import TGAN
from tests.modules import style_source
from tests.modules.style_source import build, differing, fit, source_model

TINY = [*style_source.TINY, "module.freeze_blocks=1"]  # the default at 16 pixels is 0
PARAMETERS = {"freezed": 410_207, "freezed_256": 88_932_805}


@pytest.mark.parametrize(("blocks", "frozen"), [(1, ("from_rgb", "blocks.0")), (2, ("from_rgb", "blocks.0", "blocks.1"))])
def test_frozen_layers_stay_bit_for_bit_and_all_others_move(blocks, frozen):
    source = source_model()
    module = fit(build(FreezeD, freeze_blocks=blocks))
    changed = {key.removeprefix("discriminator.") for key in differing(module, source, ("discriminator",))}
    fixed = {key for key in module.discriminator.state_dict() if key.startswith(frozen)}
    assert changed == module.discriminator.state_dict().keys() - fixed
    assert all(module.discriminator.get_parameter(key).grad is None for key in fixed)
    assert len(differing(module, source, ("generator",))) > 30  # gradients pass through frozen layers


def test_no_frozen_blocks_are_tgan_bit_for_bit():
    assert not differing(fit(build(FreezeD, freeze_blocks=0)), fit(build(TGAN)))


@pytest.mark.parametrize(("side", "blocks"), [(32, 1), (64, 2), (256, 4)])
def test_default_number_of_blocks(side, blocks):
    with torch.device("meta"):
        module = FreezeD(image_size=[side, side], iterations=1)
    assert len(module.frozen()) == blocks + 1
    if side == 256:
        assert sum(p.numel() for p in module.trained_d()) == 16_523_265
