import math

import pytest
import torch

from modules.cdc import CDC
from modules.dcl import DCL
from tests.modules.style_source import TINY, build, differing, fit, networks, source_model  # noqa: F401

PARAMETERS = {"dcl": 546_894, "dcl_256": 118_985_579}


def test_weights_of_0_are_cdc_without_its_term_bit_for_bit():
    first = fit(build(DCL, weight_generator=0.0, weight_discriminator=0.0))
    assert not differing(first, fit(build(CDC, weight_cdc=0.0)), ("generator", "generator_ema", "discriminator", "heads"))


@pytest.mark.parametrize("weights", [(2.0, 0.0), (0.0, 0.5), (2.0, 0.5)])
def test_each_term_alone_changes_the_training(weights):
    first = fit(build(DCL, weight_generator=weights[0], weight_discriminator=weights[1]))
    assert differing(first, fit(build(CDC, weight_cdc=0.0)))


class Images(list):
    def originals(self):
        return self


def test_gradients_go_to_the_generator_only(monkeypatch):
    module = build(DCL)
    module.load_state_dict(module.convert(networks(source_model())))
    module.source_generator.load_state_dict(module.generator.state_dict())
    reals = Images(torch.randn(3, 3, 16, 16))
    for real in reals:
        real.requires_grad_(True)
    monkeypatch.setattr(DCL, "training_sets", {"image": reals})
    monkeypatch.setattr(module, "random_stream", lambda name, **_: torch.Generator().manual_seed(3))
    module.discriminator.requires_grad_(False)
    terms = module.generator_terms()
    assert terms.keys() == {"dcl_generator", "dcl_discriminator"}
    sum(terms.values()).backward()
    assert module.generator.const.grad.any() and all(real.grad is None for real in reals)
    assert all(p.grad is None for part in (module.source_generator, module.discriminator) for p in part.parameters())


def test_images_that_are_all_equal_cannot_be_told_apart(monkeypatch):
    module = build(DCL, weight_generator=1.0, weight_discriminator=1.0)
    image = torch.randn(3, 16, 16)
    monkeypatch.setattr(DCL, "training_sets", {"image": Images([image] * 10)})
    same = image.expand(4, -1, -1, -1)
    loss = module._discriminator_term(same, *module._encoded(same, torch.Generator().manual_seed(0)))
    assert loss.item() == pytest.approx(math.log(11), abs=1e-4)
