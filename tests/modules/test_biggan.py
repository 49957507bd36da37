"""BigGAN at small scale: published sizes, what it changes in SNGAN's iteration, truncation, orthogonality."""

import pytest
import torch

from modules.base import sampling_mode
from modules.biggan import BigGAN, cosines, orthogonal_weights
from modules.ops.noise import image_generators
from tests.modules import test_sngan
from tests.modules.test_sngan import LABELS, changed, count, fit, state

TINY = [*test_sngan.TINY, "datamodule.labels=folder"]
TINY_OF = {"disp_biggan": ["module.condition.extractor=colors", "datamodule.labels=null"]}  # needs no weights
JOINED_BATCH = test_sngan.JOINED_BATCH
PARAMETERS = {"biggan": 645_207, "disp_biggan": 960_855, "biggan_cifar": 12_816_135}


def build(**changes) -> BigGAN:
    return test_sngan.build(BigGAN, **changes)


@pytest.mark.parametrize(
    ("classes", "generator", "discriminator"),
    [(10, 4_304_387, 4_207_361), (100, 4_580_867, 4_230_401), (0, 4_276_739, 4_204_801)],
)
def test_networks_for_cifar_have_their_numbers_of_parameters(classes, generator, discriminator):
    with torch.device("meta"):
        module = BigGAN([32, 32], iterations=1, condition=LABELS | {"num_classes": classes} if classes else None)
        assert (count(module.generator), count(module.discriminator)) == (generator, discriminator)
        codes = torch.zeros(2, classes) if classes else None
        assert BigGAN([64, 64], iterations=1).generator(torch.zeros(2, 128)).shape == (2, 3, 64, 64)
        assert module.generator(torch.zeros(2, 128), codes).shape == (2, 3, 32, 32)


def test_reals_and_fakes_are_judged_as_one_batch_with_their_classes():
    module, calls = build(condition=LABELS), []
    original = module.discriminate
    module.discriminate = lambda images, vectors: (calls.append((len(images), vectors.clone())), original(images, vectors))[1]
    module = fit(module, data={"labels": "folder"}, max_epochs=1)
    assert [number for number, _ in calls] == [8, 8, 4] * 2  # two discriminator steps, one of the generator
    assert all((vectors.sum(1) == 1).all() and len(vectors) == number for number, vectors in calls)
    u = [key for key in module.state_dict() if key.startswith("generator.") and key.endswith(".u")]
    assert len(u) == 8  # linear, six convolutions with skips, the last one: all under spectral norm


def test_orthogonality_written_out():
    torch.manual_seed(0)
    weight = torch.randn(4, 2, 3, 3)
    expected = sum(float((weight[i] * weight[j]).sum()) ** 2 for i in range(4) for j in range(4) if i != j)
    assert float(cosines(weight)) == pytest.approx(expected, rel=1e-5)
    assert float(cosines(torch.eye(3))) == 0
    module = build(ortho=0.5, condition=LABELS)
    assert len(orthogonal_weights(module.generator)) == 8
    assert float(module.generator_terms(None)["orthogonality"]) == pytest.approx(
        0.5 * sum(float(cosines(w)) for w in orthogonal_weights(module.generator)), rel=1e-5
    )
    assert build().generator_terms(None) == {}


def test_truncation_bounds_z_and_changes_nothing_else():
    module, seen = build(), []
    forward = module.generator_ema.forward
    module.generator_ema.forward = lambda z, codes: (seen.append(z), forward(z, codes))[1]
    with torch.no_grad(), image_generators(0, range(400)):
        module.sample(400, truncation=0.7)
    z = seen[0]
    assert float(z.abs().max()) <= 0.7 and abs(float(z.mean())) < 0.02
    inside = torch.randn(200_000).clamp(-5, 5)
    inside = inside[inside.abs() < 0.7]
    assert float(z.std()) == pytest.approx(float(inside.std()), rel=0.03)
    with sampling_mode(module, 1, range(3)):
        few = module.sample(3, truncation=0.7)
    with sampling_mode(module, 1, [2]):
        assert torch.allclose(module.sample(1, truncation=0.7), few[2:], atol=1e-5)


def test_standing_statistics_leave_spectral_vectors_alone():
    module = build(standing_batches=2)
    before = state(module.generator_ema)
    module.prepare_sampling()
    moved = changed(before, module.generator_ema.state_dict())
    assert moved and all("running" in key or "num_batches" in key for key in moved)
