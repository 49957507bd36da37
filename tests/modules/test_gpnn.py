import pytest
import torch

import modules.gpnn as gpnn
from datamodules.folder import ImageFolder
from datamodules.listing import list_images
from modules.gpnn import GPNN
from modules.ops.images import resize
from modules.ops.nearest import extract
from modules.patches.mosaic import PatchGrid, center_weights
from modules.patches.search import ExactSearch

TINY = [
    "datamodule.image_size=[16,20]",
    "module.min_size=8",
    "module.patch=5",
    "module.iterations=2",
    "module.max_images=4",
]
PARAMETERS = {"gpnn": 0, "gpnn_256": 0}


@pytest.fixture(scope="module")
def photographs():
    """Three starter landscapes [3, 3, 40, 48]."""
    folder, files = list_images("datamodules/starter/landscapes")
    return ImageFolder(folder, files[:3], (40, 48)).stack()


def model(images, **settings):
    """A GPNN that holds `images`, as after a fit."""
    module = GPNN(list(images.shape[-2:]), **{"iterations": 2} | settings)
    module.store(images)
    return module.eval()


def psnr(first, second):
    return float(10 * torch.log10(4 / (first - second).square().mean()))


# --- 6.7, check 1 to 3: the step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 1.0, 0.005])
def test_a_step_with_equal_queries_keys_and_values_returns_the_image(photographs, alpha):
    module = model(photographs[:1], alpha=alpha, iterations_coarsest=3)
    out = module.inject(photographs[:1], scale=module.num_scales - 1)
    assert (out - photographs[:1]).abs().max() < 1e-5


def test_without_noise_the_image_is_reproduced():
    """Above 100 dB with one iteration a scale, above 45 dB with ten; keys stay blurred while queries sharpen."""
    folder, files = list_images("datamodules/starter/landscapes")
    for image in ImageFolder(folder, files[1:3], (56, 56)).stack().split(1):
        for iterations, bound in ((1, 100), (10, 45)):
            module = model(image, iterations=iterations)
            assert psnr(module.sample(1, noise=0.0), image) > bound
        assert torch.equal(module.sample(1, noise=0.0), module.reconstruct(image))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_small_alpha_uses_more_of_the_image_when_it_is_shrunk(photographs, which):
    """One step with a query of 60 %: more distinct keys, and every key closer to a used one."""
    image, grid = photographs[which], PatchGrid([(40, 48)], 7)
    query, keys = resize(image.unsqueeze(0), (24, 29))[0], extract(image.unsqueeze(0), 7)[0]
    used = [ExactSearch([image], grid, alpha=alpha)(query).unique() for alpha in (None, 1.0, 0.05, 0.005)]
    coverage = [torch.cdist(keys, keys[u]).amin(1).mean().item() for u in used]
    distinct = [len(u) for u in used]
    assert distinct[0] <= distinct[1] <= distinct[2] <= distinct[3] and distinct[3] > 1.03 * distinct[0]
    assert coverage[0] >= coverage[1] >= coverage[2] >= coverage[3] and coverage[3] < coverage[0]


def test_alpha_is_in_units_of_images_in_0_1(photographs):
    """Against the formula, with both norms by plain differences."""
    key, query = photographs[0][:, :16, :18], photographs[1][:, :12, :13]
    q, k = (extract(image.unsqueeze(0), 7)[0].double() / 2 + 0.5 for image in (query, key))
    distances = (q.unsqueeze(1) - k).square().mean(2)
    for alpha in (0.5, 0.005):
        scores = distances / (alpha + distances.amin(0))
        found = ExactSearch([key], PatchGrid([(16, 18)], 7), alpha=alpha)(query).flatten()
        assert torch.equal(found, scores.argmin(1))


# --- checks 5 and 6, provenance ---------------------------------------------------------------------------------------


def test_the_output_is_the_weighted_mean_of_verbatim_training_patches(photographs):
    torch.manual_seed(0)
    module = model(photographs)
    out, weights = module.sample(2, size=(30, 60)), center_weights(7)
    total, mass = torch.zeros(2, 3, 30, 60), torch.zeros(30, 60)
    image, top, left = module.grid.locate(module.matches)
    for y in range(24):
        for x in range(54):
            mass[y : y + 7, x : x + 7] += weights
            for n in range(2):
                row, column = int(top[n, y, x]), int(left[n, y, x])
                patch = photographs[image[n, y, x], :, row : row + 7, column : column + 7]
                total[n, :, y : y + 7, x : x + 7] += weights * patch
    torch.testing.assert_close(out, total / mass, atol=1e-5, rtol=0)


def test_provenance_repaints_the_output(photographs):
    torch.manual_seed(0)
    module = model(photographs, min_size=20, iterations=5)
    out = module.sample(2)
    image, row, column = module.provenance().unbind(1)
    painted = photographs[image, :, row, column].permute(0, 3, 1, 2)
    assert module.provenance().shape == (2, 3, 40, 48) and module.provenance().dtype == torch.int64
    assert psnr(painted, out) > 25
    assert psnr(painted.roll(1, 3), out) < psnr(painted, out) - 3
    shares = module.source_shares()
    assert shares.sum() == pytest.approx(1) and (shares > 0.01).sum() >= 2
    picture = module.provenance_picture()
    assert picture.shape == out.shape and picture.abs().max() <= 1 and picture.std() > 0.1


def test_provenance_before_any_image_says_so(photographs):
    with pytest.raises(ValueError, match="no image has been generated yet"):
        _ = model(photographs).provenance()


@pytest.mark.parametrize("size", [(40, 72), (25, 48), (13, 90), (7, 7)])
def test_retargeting_gives_exactly_the_asked_size(photographs, size):
    module = model(photographs[:1], alpha=0.005, iterations_coarsest=10)
    out = module.inject(resize(photographs[:1], size))
    assert out.shape == (1, 3, *size) and out.isfinite().all() and out.abs().max() <= 1
    assert module.provenance().shape == (1, 3, *size)
    announced = [tuple(max(7, round(s * o / f)) for s, o, f in zip(size, own, (40, 48), strict=True)) for own in module.sizes]
    assert [module.size_at(scale, size) for scale in range(module.num_scales)] == announced


def test_retargeting_to_the_own_size_is_editing_with_the_image_itself(photographs):
    module = model(photographs[:1])
    retargeted = module.inject(resize(photographs[:1], (40, 48)), alpha=0.01, iterations_coarsest=4)
    again = model(photographs[:1], alpha=0.01, iterations_coarsest=4).inject(photographs[:1])
    assert torch.equal(retargeted, again)


# --- check 7: holes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def levels(monkeypatch):
    """Every (matches, grid, values) that is painted, in order."""
    painted, original = [], gpnn.paint
    monkeypatch.setattr(gpnn, "paint", lambda m, v, g, w: painted.append((m, g, v)) or original(m, v, g, w))
    return painted


def hole(*box, size=(40, 48)):
    mask = torch.zeros(1, 1, *size)
    mask[..., box[0] : box[1], box[2] : box[3]] = 1
    return mask


@pytest.mark.parametrize("backend", ["exact", "patchmatch"])
def test_no_patch_that_touches_the_hole_is_copied_at_any_scale(photographs, backend, levels):
    module, mask = model(photographs, backend=backend, min_size=20), hole(12, 26, 20, 32)
    torch.manual_seed(0)
    filled = module.inpaint(photographs[1:2], mask, num_images=2)
    assert filled.shape == (2, 3, 40, 48) and len(levels) > 4
    for matches, grid, _ in levels:
        image, top, left = grid.locate(matches)
        height, width = grid.sizes[0].tolist()
        at_scale = torch.nn.functional.adaptive_max_pool2d(mask, (height, width))[0, 0]
        for row, column in zip(top[image == 0].tolist(), left[image == 0].tolist(), strict=True):
            assert at_scale[row : row + 7, column : column + 7].sum() == 0
    # The photograph itself among the training images has the same hole: it is source 0, the two others follow.
    assert len(module.grid.sizes) == 3


def test_fills_differ_inside_keep_the_rest_and_do_not_depend_on_what_was_in_the_hole(photographs):
    module, mask = model(photographs[:1], min_size=20, iterations=4), hole(14, 26, 20, 32)

    def fill(image, seed, **options):
        torch.manual_seed(seed)
        return module.inpaint(image, mask, 1, **options)

    first, second = fill(photographs[:1], 0), fill(photographs[:1], 1)
    inside = mask.expand_as(first) > 0
    assert not torch.equal(first[inside], second[inside])
    assert (first - photographs[:1])[~inside].square().mean().sqrt() < 0.1
    painted = torch.where(mask > 0, torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1), photographs[:1])
    assert torch.allclose(fill(painted, 0), first, atol=1e-6)
    assert not torch.allclose(fill(painted, 0, guided=True), first, atol=1e-2)


def test_an_empty_mask_is_editing(photographs):
    module = model(photographs[:1])
    filled = module.inpaint(photographs[:1], torch.zeros(1, 1, 40, 48), num_images=2)
    assert torch.equal(filled[:1], module.inject(photographs[:1])) and torch.equal(filled[0], filled[1])


def test_a_foreign_image_with_a_hole_adds_its_own_patches_to_those_of_the_training_images(photographs):
    module = model(photographs[:2])
    foreign = resize(photographs[2:], (36, 60))
    torch.manual_seed(0)
    assert module.inpaint(foreign, hole(10, 20, 30, 44, size=(36, 60)), 1).shape == (1, 3, 36, 60)
    assert module.grid.sizes.tolist() == [[36, 60], [40, 48], [40, 48]]
    assert module.source_shares()[0] > 0.7


def test_a_hole_that_leaves_no_patch_is_refused(photographs):
    module = model(photographs[:1])
    with pytest.raises(ValueError, match="no patch of 7 pixels lies outside of the hole"):
        module.inpaint(photographs[:1], hole(1, 39, 1, 47), 1)
    assert module.inpaint(photographs[1:2], torch.ones(1, 1, 40, 48), 1).std() > 0  # nothing known: all training patches


# --- check 8: several images ------------------------------------------------------------------------------------------


def test_copies_of_one_image_change_nothing(photographs):
    torch.manual_seed(0)
    guess = photographs[:1] + 0.3 * torch.randn(1, 3, 40, 48)
    sets = photographs[:1], photographs[:1].repeat(3, 1, 1, 1)
    single, copies = (model(images).inject(guess.clamp(-1, 1)) for images in sets)
    assert psnr(single, copies) > 40


@pytest.mark.parametrize("alpha", [None, 0.005])
@pytest.mark.parametrize("which", [0, 1])
def test_a_guess_that_is_one_of_two_images_takes_its_patches(photographs, which, alpha):
    module = model(photographs[:2], alpha=alpha)
    out = module.inject(photographs[which : which + 1])
    assert module.source_shares()[which] >= 0.99 and psnr(out, photographs[which : which + 1]) > 40


# --- the rest of the contract -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["exact", "patchmatch"])
def test_samples_follow_the_seed_have_any_size_and_use_several_images(photographs, backend):
    module = model(photographs, backend=backend, min_size=20)

    def draw(seed, **options):
        torch.manual_seed(seed)
        return module.sample(2, **options)

    first = draw(0)
    assert torch.equal(draw(0), first) and not torch.equal(draw(1), first)
    assert first.shape == (2, 3, 40, 48) and first.abs().max() <= 1
    assert draw(0, size=(20, 77)).shape == (2, 3, 20, 77)
    assert (module.source_shares() > 0.01).sum() >= 2


def test_more_noise_departs_further_from_the_training_image(photographs):
    module = model(photographs[:1], min_size=20)
    torch.manual_seed(0)
    little, much = (psnr(module.sample(4, noise=noise), photographs[:1].expand(4, -1, -1, -1)) for noise in (0.05, 1.0))
    assert little > much + 3


def test_patchmatch_comes_close_to_the_exact_search(photographs):
    out = [model(photographs[:1], backend=b).inject(photographs[:1]) for b in ("exact", "patchmatch")]
    assert psnr(out[1], photographs[:1]) > 40 and psnr(*out) > 40


def test_injection_at_a_finer_scale_keeps_more_of_the_image(photographs):
    module = model(photographs[:1])
    errors = [psnr(module.inject(photographs[1:2], scale), photographs[1:2]) for scale in range(module.num_scales)]
    assert errors[-1] > errors[0] + 1


def test_what_does_not_fit_is_refused(photographs):
    for settings, message in (
        ({"alpha": 0.005, "backend": "patchmatch"}, "alpha=0.005 needs .* backend=exact"),
        ({"min_size": 6}, "min_size is 6, patch 7"),
    ):
        with pytest.raises(ValueError, match=message):
            GPNN([40, 48], **settings)
    module = model(photographs, backend="patchmatch")
    with pytest.raises(ValueError, match="alpha=0.01 needs"):
        module.inject(photographs, alpha=0.01)
    with pytest.raises(ValueError, match=rf"scale is 9; .* 0 \(coarsest\) to {module.num_scales - 1}"):
        module.inject(photographs, 9)
    with pytest.raises(ValueError, match="6×90 pixels .* below a patch of 7"):
        module.inject(torch.zeros(1, 3, 6, 90))
    with pytest.raises(ValueError, match="90×1 pixels .* below a patch of 7"):
        module.sample(1, size=(90, 1))
    empty = GPNN([40, 48])
    assert not empty.samples_ready
    with pytest.raises(ValueError, match="this GPNN holds no images yet"):
        empty.sample(1)


def test_diagnostics_against_direct_computation(photographs):
    torch.manual_seed(0)
    module = model(photographs)
    numbers = module.diagnostics({})
    errors = (module.reconstruct(photographs) - photographs).square().mean((1, 2, 3)).sqrt()
    assert numbers["reconstruction_rmse"] == pytest.approx(errors.mean().item(), rel=1e-4)
    assert numbers["reconstruction_rmse_worst_image"] == pytest.approx(errors.max().item(), rel=1e-4)
    assert [numbers[f"reconstruction_rmse_image{i}"] for i in range(len(errors))] == pytest.approx(errors.tolist(), rel=1e-4)
    assert sum(numbers[f"patch_share_{i}"] for i in range(3)) == pytest.approx(1)
    assert 0 < numbers["distinct_patches"] <= 1
