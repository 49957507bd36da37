import pytest
import torch

from datamodules.folder import ImageFolder
from datamodules.listing import list_images
from modules.gpdm import GPDM
from modules.losses.sliced import patch_directions, sliced_wasserstein
from modules.ops.images import resize

TINY = [
    "datamodule.image_size=[16,20]",
    "module.min_size=8",
    "module.patch=5",
    "module.steps=4",
    "module.projections=8",
    "module.max_images=4",
]
PARAMETERS = {"gpdm": 0, "gpdm_256": 0}


@pytest.fixture(scope="module")
def photographs():
    """Two starter landscapes [2, 3, 18, 24]."""
    folder, files = list_images("datamodules/starter/landscapes")
    return ImageFolder(folder, files[:2], (18, 24)).stack()


def model(images, **settings):
    """A GPDM that holds `images`, as after a fit."""
    small = {"min_size": 12, "patch": 5, "steps": 60, "projections": 32, "lr": 0.03}
    module = GPDM(list(images.shape[-2:]), **small | settings)
    module.store(images)
    return module.eval()


def distance(images, references):
    """With directions of its own."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(99)
    found = sliced_wasserstein(images, references, patch_directions(128, 5)).mean().item()
    torch.random.set_rng_state(generator_state)
    return found


def test_samples_come_far_closer_to_the_patches_than_the_noise_they_begin_as(photographs):
    torch.manual_seed(0)
    module = model(photographs[:1])
    out = module.sample(2)
    noise = 1.5 * torch.randn(2, 3, 18, 24)
    assert out.shape == (2, 3, 18, 24) and out.abs().max() <= 1 and not out.requires_grad
    assert distance(out, photographs[:1]) < 0.2 * distance(noise.clamp(-1, 1), photographs[:1])


def test_the_distance_falls_with_more_steps(photographs):
    def after(steps):
        torch.manual_seed(0)
        return distance(model(photographs[:1], steps=steps).sample(1), photographs[:1])

    few, more, many = after(2), after(15), after(60)
    assert many < more < few


def test_several_images_are_matched_together(photographs):
    """Closer to the joint distribution than to that of either image."""
    torch.manual_seed(0)
    out = model(photographs).sample(2)
    assert distance(out, photographs) < min(distance(out, image.unsqueeze(0)) for image in photographs)


def test_an_output_does_not_depend_on_the_others(photographs):
    """Same start, same directions: alone and beside another image."""
    module, start = model(photographs[:1], steps=3), torch.rand(2, 3, 12, 16)

    def first(starts):
        torch.manual_seed(0)
        return module.optimize_pixels(starts, (18, 24))[0]

    assert torch.allclose(first(start), first(start[:1]), atol=1e-4)


def test_samples_follow_the_seed_and_have_any_size(photographs):
    module = model(photographs, steps=3)

    def draw(seed, **options):
        torch.manual_seed(seed)
        return module.sample(2, **options)

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    for size in ((30, 11), (12, 40), (5, 24)):
        assert draw(0, size=size).shape == (2, 3, *size)


def test_it_works_where_gradients_are_off(photographs):
    module = model(photographs, steps=2)
    with torch.inference_mode():
        assert module.sample(1).shape == (1, 3, 18, 24)
        assert module.inject(photographs).shape == photographs.shape
    with torch.no_grad():
        assert not module.sample(1).requires_grad


def test_injecting_the_training_image_leaves_it_nearly_as_it_is(photographs):
    module = model(photographs[:1], lr=0.01)
    torch.manual_seed(0)
    out = module.inject(photographs[:1], module.num_scales - 1)
    assert (out - photographs[:1]).abs().mean() < 0.02


def test_injection_moves_a_foreign_image_towards_the_patches_and_a_fine_scale_keeps_more(photographs):
    module, foreign = model(photographs[:1]), photographs[1:]
    torch.manual_seed(0)
    outs = [module.inject(foreign, scale) for scale in (0, module.num_scales - 1)]
    for out in outs:
        assert distance(out, photographs[:1]) < 0.5 * distance(foreign, photographs[:1])
    fine, coarse = ((out - foreign).square().mean() for out in reversed(outs))
    assert fine < coarse


def test_retargeting_with_noise(photographs):
    module = model(photographs[:1], steps=3)
    torch.manual_seed(0)
    wide = resize(photographs[:1], (18, 36))
    out = module.inject(wide, noise=0.05)
    assert out.shape == wide.shape and not torch.equal(out, module.inject(wide))


def test_what_does_not_fit_is_refused(photographs):
    with pytest.raises(ValueError, match="min_size is 4, patch 5"):
        model(photographs, min_size=4)
    module = model(photographs, steps=1)
    with pytest.raises(ValueError, match=rf"scale is -1; .* to {module.num_scales - 1}"):
        module.inject(photographs, -1)
    with pytest.raises(ValueError, match="3×30 pixels .* below a patch of 5"):
        module.sample(1, size=(3, 30))
    with pytest.raises(ValueError, match="this GPDM holds no images yet"):
        GPDM([24, 32]).sample(1)


def test_diagnostics_name_the_distance_and_that_of_noise(photographs):
    torch.manual_seed(0)
    numbers = model(photographs, steps=20).diagnostics({})
    assert 0 < numbers["patch_distance"] < numbers["patch_distance_noise"]
