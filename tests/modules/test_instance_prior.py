"""DataInstancePrior on SNGAN: the extractor, stored priors, laws of samples, and what the networks do with them."""

import copy

import pytest
import torch
from torch import nn

import train
from core.errors import UserError
from datamodules.synthetic import SyntheticDataModule
from modules.base import sampling_mode
from modules.conditions import DataInstancePrior
from modules.ops.mixture import GaussianMixture, beta_quantiles
from modules.ops.noise import image_generators
from modules.ops.pretrained import ARCHITECTURES, DIMENSIONS, Extractor, load_extractor, package_file
from tests.contract import runs
from tests.contract.tiers import ROOT, SYNTHETIC, tiny
from tests.modules.test_sngan import build, changed, count, fit, state

PRIOR = {"class_path": "modules.conditions.DataInstancePrior", "extractor": "colors", "max_images": 16, "embedding": 6}


def prior(**changes) -> dict:
    return PRIOR | changes


def filled(number: int = 5, **changes) -> DataInstancePrior:
    torch.manual_seed(3)
    condition = DataInstancePrior(**{key: value for key, value in prior(**changes).items() if key != "class_path"})
    condition.bank.append(torch.randn(number, condition.dim))
    return condition


def data(**keys):
    module = SyntheticDataModule([16, 16], **({"num_images": 8} | keys))
    module.setup()
    return module


# --- the extractor ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(package_file() is None, reason="the optional package with MobileNetV2 is not installed")
def test_the_package_s_network_classifies_features_as_torchvision_s():
    from torchvision.models import mobilenet_v2

    extractor, sha256 = load_extractor("mobilenet_v2")
    network = mobilenet_v2()
    network.load_state_dict(torch.load(package_file(), weights_only=True))
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    resized = nn.functional.interpolate((images + 1) / 2, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = network.eval()((resized - mean) / std)
        assert torch.allclose(network.classifier(extractor.train()(images)), expected, atol=1e-4)
    assert sha256.startswith("b0353104") and count(extractor) and not any(p.requires_grad for p in extractor.parameters())


def test_files_of_another_network_are_refused(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"features.0.weight": torch.zeros(3)}, file)
    with pytest.raises(UserError, match="it does not hold the weights of vgg16_pool5: features.0.weight is missing"):
        load_extractor("vgg16_pool5", str(file))
    torch.save([1], file)
    with pytest.raises(UserError, match="expected a state dict"):
        load_extractor("resnet50", str(file))
    with pytest.raises(UserError, match="vgg16_fc2 needs a file with its weights"):
        load_extractor("vgg16_fc2")
    with pytest.raises(UserError, match="no such file"):
        load_extractor("resnet50", str(tmp_path / "nothing"))
    module = build(condition=prior(extractor="vgg16_fc2", max_images=20))
    with pytest.raises(UserError, match="module.condition.extractor: vgg16_fc2 needs a file"):
        module.check_data(data().sets())


def test_a_resnet_from_a_file_gives_pooled_features(tmp_path):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    network = resnet50().eval()
    torch.save({key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}, tmp_path / "r.pth")
    extractor, _ = load_extractor("simclr_resnet50", str(tmp_path / "r.pth"))
    extractor.input_size = 32
    network.fc = nn.Identity()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(extractor(images), network((images + 1) / 2), atol=1e-5)


def test_layers_of_vgg16():
    """The last but one fully connected layer after its ReLU; the last pooling."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        network = vgg16()
    layers = [module for module in ARCHITECTURES["vgg16_fc2"].features(network).modules() if not [*module.children()]]
    expected = [*network.features, network.avgpool, *network.classifier[:5]]
    assert [x for x in layers if not isinstance(x, nn.Flatten)] == expected and isinstance(layers[-1], nn.ReLU)
    assert layers[-2].out_features == DIMENSIONS["vgg16_fc2"] == 4096
    pooled = ARCHITECTURES["vgg16_pool5"].features(network)(torch.zeros(2, 3, 64, 64, device="meta"))
    assert pooled.shape == (2, DIMENSIONS["vgg16_pool5"]) == (2, 512)


def test_wrong_data_are_errors():
    sets = data().sets()
    for changes, message in (
        ({"max_images": 7}, "max_images is 7; set it to 8"),
        ({"law": "gmm", "components": 9}, "components is 9, but there are 8 images"),
    ):
        with pytest.raises(UserError, match=message):
            build(condition=prior(**changes)).check_data(sets)
    with pytest.raises(UserError, match="at least 2 training images, got 1"):
        build(condition=prior()).check_data(data(num_images=1).sets())


# --- the stored priors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["center", "none", "standardize"])
def test_features_of_clean_and_mirrored_images_are_stored_and_found_by_index(scaling):
    module = fit(build(condition=prior(scaling=scaling), augment="diffaugment"), data={"flip": True})
    condition, images = module.condition, data(flip=True).sets()["image"]
    assert not condition._loaded  # neither trained nor called after the features are stored
    raw = Extractor("colors")(images.stack())
    centered = raw - (raw.mean(0) if scaling != "none" else 0)
    if scaling == "standardize":
        rows = centered / raw.std(0, correction=0).clamp(min=1e-3 * float(raw.std()))
    else:
        rows = centered / centered.square().mean(1, keepdim=True).sqrt()
    assert len(condition.bank) == 16 and torch.allclose(condition.bank.rows, rows, atol=1e-4)
    assert torch.equal(condition.of_batch({"index": torch.tensor([3, 11])}), condition.bank.rows[[3, 11]])
    assert torch.allclose(condition.of_images(images.stack()[:2]), rows[:2], atol=1e-4)
    assert not [key for key in module.state_dict() if "network" in key]  # the extractor is in no checkpoint
    condition.sha256.add_(1)
    with pytest.raises(UserError, match="not the file that this model was trained with"):
        condition.of_images(images.stack()[:2])


def test_fakes_of_the_discriminator_have_the_priors_of_its_real_images():
    module, pairs = build(condition=prior()), []
    discriminate, fakes = module.discriminate, module.fakes
    module.discriminate = lambda images, vectors: (pairs.append(("D", vectors)), discriminate(images, vectors))[1]
    module.fakes = lambda number, vectors: (pairs.append(("G", vectors)), fakes(number, vectors))[1]
    fit(module, max_epochs=1)
    assert [name for name, _ in pairs] == ["G", "D", "D"] * 2 + ["G", "D"] + ["G", "D", "D"] * 2 + ["G", "D"]
    for start in (0, 3):
        assert torch.equal(pairs[start][1], pairs[start + 1][1]) and torch.equal(pairs[start][1], pairs[start + 2][1])
    assert torch.equal(pairs[6][1], pairs[7][1]) and not torch.equal(pairs[6][1], pairs[3][1])


def test_without_effect_of_the_prior_training_is_that_without_it():
    """D_emb = 0 and the maps of batch norm = 0: the same losses, weights and samples; nothing else shifts draws."""
    plain = build()
    module = build(condition=prior())
    module.load_state_dict(plain.state_dict(), strict=False)
    effects = [p for name, p in module.named_parameters() if ".gain." in name or ".shift." in name]
    effects.append(module.discriminator.embedding.parametrizations.weight.original)
    for parameter in effects:
        nn.init.zeros_(parameter)
    fixed = {id(parameter) for parameter in effects}
    for each in (plain, module):

        def optimizers(stage, adams=each.stage_optimizers):  # Adam would enlarge rounding errors of gradients of 0
            groups = [[p for group in adam.param_groups for p in group["params"]] for adam in adams(stage)]
            return [torch.optim.SGD([p for p in group if id(p) not in fixed], 0.01) for group in groups]

        each.stage_optimizers = optimizers
        fit(each)
    assert changed(build().state_dict(), plain.state_dict())
    ours = module.state_dict()
    assert all(torch.allclose(value, ours[key], atol=1e-5) for key, value in plain.state_dict().items())


def test_priors_and_z_both_change_images_and_are_diagnosed():
    module = fit(build(condition=prior(), epochs=4))
    values = module.diagnostics(data().sets())
    assert values["prior_match_by_chance"] == 1 / 8 and 0 <= values["prior_match"] <= 1
    assert values["pixel_spread_over_priors"] > 1e-3 and values["pixel_spread_over_z"] > 1e-3
    assert values["logit_projection_rms"] > 0 and not build().diagnostics(data().sets())
    with sampling_mode(module, 0, range(3)):
        latents = module.sample_latents(3)
        assert torch.equal(module.decode(latents), module.decode(latents)) and latents.shape == (3, 14)


@pytest.mark.slow
def test_the_discriminator_learns_which_prior_belongs_to_an_image():
    module = fit(build(condition=prior(), epochs=20, lr_d=2e-3, lr_g=5e-4, n_dis=1), data={"samples_per_epoch": 80})
    assert module.diagnostics(data().sets())["prior_match"] >= 0.75


# --- laws of samples ----------------------------------------------------------------------------------------------------


def codes(condition, embed, number, seed=0):
    with image_generators(seed, range(number)):
        return condition.draw_codes(number, embed)


def test_mixtures_lie_between_two_priors_and_equal_embedded_mixtures(monkeypatch):
    condition, embed = filled(), nn.Linear(192, 6)
    rows = condition.bank.rows
    with image_generators(0, range(200)):
        vectors = condition.draw(200)
    solution = torch.linalg.lstsq(rows.T, vectors.T).solution  # shares of the five priors
    assert torch.allclose(solution.sum(0), torch.ones(200), atol=1e-4)
    assert ((solution.abs() > 1e-4).sum(0) <= 2).all() and solution.min() > -1e-4
    shares = solution.max(0).values
    assert float(shares.min()) < 0.52 and float(shares.max()) > 0.98 and float(shares.mean()) == pytest.approx(0.75, abs=0.03)
    assert torch.allclose(embed(vectors), (solution.T[:, :, None] * embed(rows)).sum(1), atol=1e-4)  # G_emb is linear
    monkeypatch.setattr("modules.conditions.noise.rand", lambda number, device=None: torch.ones(number))
    with image_generators(0, range(20)):
        ends = condition.draw(20)
    monkeypatch.undo()
    memory = filled(law="memory")
    with image_generators(0, range(20)):
        assert torch.equal(ends, memory.draw(20))  # a share of 1 is the first prior itself
    with image_generators(0, range(20)):
        assert (memory.draw(20)[:, None] == rows).all(2).any(1).all()


def test_beta_law():
    values = beta_quantiles(torch.linspace(0.001, 0.999, 999), 0.3)
    assert float(values.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(values.var()) == pytest.approx(1 / (4 * (2 * 0.3 + 1)), rel=0.02)
    assert torch.allclose(beta_quantiles(torch.tensor([0.2]), 1.0), torch.tensor([0.2]))


@pytest.mark.parametrize("full", [True, False])
def test_a_mixture_finds_its_components(full):
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[0.0, 0, 0], [6.0, 0, 0], [0, 6.0, 6]])
    factor = torch.tensor([[1.0, 0, 0], [0.6 * full, 0.5, 0], [0, 0, 0.3]])
    picks = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 6000, replacement=True, generator=generator)
    points = means[picks] + torch.randn(6000, 3, generator=generator) @ factor.T
    mixture = GaussianMixture(3, 3, full)
    mixture.fit(points, torch.Generator().manual_seed(0))
    order = mixture.means.sum(1).argsort()
    assert torch.allclose(mixture.means[order], means[means.sum(1).argsort()], atol=0.1)
    assert torch.allclose(mixture.weights[order].sort().values, torch.tensor([0.2, 0.3, 0.5]), atol=0.03)
    covariances = mixture.factors @ mixture.factors.mT
    assert torch.allclose(covariances, (factor @ factor.T).expand(3, 3, 3), atol=0.08)
    again = GaussianMixture(3, 3, full)
    again.fit(points, torch.Generator().manual_seed(0))
    assert torch.equal(again.factors, mixture.factors)
    drawn = mixture.draw(torch.rand(50_000), torch.randn(50_000, 3))
    expected = (mixture.weights[:, None] * mixture.means).sum(0)
    second = (mixture.weights[:, None, None] * (covariances + mixture.means[:, :, None] * mixture.means[:, None])).sum(0)
    assert drawn.isfinite().all() and (drawn.mean(0) - expected).norm() < 0.02 * expected.norm()
    assert (drawn.T @ drawn / 50_000 - second).norm() < 0.02 * second.norm()
    one = GaussianMixture(1, 3, True)
    likelihood = one.fit(points, generator)
    assert torch.allclose(one.means[0], points.mean(0), atol=1e-4)
    assert torch.allclose(one.factors[0] @ one.factors[0].T, points.T.cov(correction=0), atol=1e-3)
    reference = torch.distributions.MultivariateNormal(one.means[0].double(), scale_tril=one.factors[0].double())
    assert likelihood == pytest.approx(reference.log_prob(points.double()).mean().item(), rel=1e-6)


@pytest.mark.parametrize(("law", "components"), [("gaussian", 7), ("gmm", 2)])
def test_mixtures_follow_the_codes_of_the_average(law, components, tmp_path):
    module = fit(build(condition=prior(law=law, components=components), ema_decay=0.5))
    condition = module.condition
    expected = copy.deepcopy(condition.mixture)
    expected.fit(module.generator_ema.embedding(condition.bank.rows).detach(), torch.Generator().manual_seed(0))
    assert len(expected.weights) == (1 if law == "gaussian" else 2)
    assert not changed(state(expected), condition.mixture.state_dict())
    assert codes(condition, module.generator_ema.embedding, 3).shape == (3, 6)


def test_resume_with_a_mixture_is_exact(tmp_path):
    law = ["module.condition.law=gmm", "module.condition.components=2"]
    runs.fit(ROOT / "configs/disp_sngan.yaml", tmp_path / "straight", *law)
    first, last = (runs.read(file) for file in runs.epoch_files(tmp_path / "straight"))
    assert not torch.equal(*(states["state_dict"]["condition.mixture.means"] for states in (first, last)))
    resume = f"resume={runs.epoch_files(tmp_path / 'straight')[0]}"
    resumed = runs.fit(ROOT / "configs/disp_sngan.yaml", tmp_path / "resumed", *law, resume)
    assert not runs.unequal(last["state_dict"], dict(resumed.module.state_dict()))


# --- semantic diffusion -------------------------------------------------------------------------------------------------


def test_images_give_their_priors_to_new_ones(tmp_path):
    from PIL import Image

    from modules.capabilities import Injects
    from modules.ops.images import to_uint8
    from tasks.conditional import Conditional
    from tasks.edit import Edit

    module = fit(build(condition=prior()))
    assert isinstance(module, Injects) and not isinstance(build(), Injects)
    image = data().sets()["image"][3][None]
    with sampling_mode(module, 0, [0]):
        three = module.inject(image, variants=3)
    with sampling_mode(module, 0, [0]):
        one = module.inject(image, neighbors=1, variants=3)
    assert three.shape == (3, 3, 16, 16) and len(three.unique(dim=0)) == 3
    assert torch.allclose(one, three, atol=1e-4)  # its nearest prior is its own
    large = module.inject(torch.nn.functional.interpolate(image, (24, 40)))
    assert large.shape == (1, 3, 24, 40)
    Image.fromarray(to_uint8(image[0]).permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    task = Conditional(image=str(tmp_path / "image.png"), options={"variants": 3})
    made = dict(task(module))
    assert list(made) == ["00_input", "01_conditional", "02_variant_000", "02_variant_001"]
    Image.new("L", (16, 16), 255).save(tmp_path / "mask.png")  # all of it is a collage
    edited = dict(Edit(image=str(tmp_path / "image.png"), mask=str(tmp_path / "mask.png"), options={"neighbors": 2})(module))
    assert list(edited) == ["00_input", "01_mask", "02_unmasked", "03_edited"]
    assert torch.allclose(edited["02_unmasked"], edited["03_edited"], atol=1e-3)
    with pytest.raises(UserError, match="task.options.variant: SNGAN has no such option.* Did you mean variants"):
        dict(Conditional(image=str(tmp_path / "image.png"), options={"variant": 3})(module))
    with pytest.raises(UserError, match=r"needs inject\(\), which SNGAN does not have"):
        dict(task(build()))


# --- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("disp_sngan", ["module.condition.extractor=vgg16"], "Did you mean vgg16_fc2"),
        ("disp_sngan", ["module.condition.extractor=vgg16_fc2"], "module.condition.extractor: vgg16_fc2 needs a file"),
        (
            "disp_sngan",
            ["module.condition.extractor=resnet50", "module.condition.weights={folder}/other.pt"],
            "it does not hold the weights of resnet50: conv1.weight is missing",
        ),
        ("disp_sngan", ["module.condition.max_images=4"], "module.condition.max_images is 4; set it to 5"),
        ("disp_sngan", ["module.condition.law=gmm"], "module.condition.components is 50, but there are 5 images"),
        ("disp_sngan", ["module.source_checkpoint={folder}/other.pt"], "other.pt: the file holds no generator"),
        ("sngan", ["module.freeze_blocks=3"], "freeze_blocks is 3; there are 2 blocks"),
        ("sngan", ["module.freeze_blocks=1"], "module.freeze_blocks is 1, but module.source_checkpoint is null"),
        ("sngan", ["module.augment=diffaugment", "module.policy=colour"], "unknown operation 'colour'"),
        ("sngan", ["datamodule.labels=folder"], "datamodule.labels: SNGAN has no classes"),
        ("disp_sngan", ["datamodule.labels=folder"], "datamodule.labels: SNGAN has no classes"),
        ("biggan", ["datamodule.num_images=3"], "class 1 has one image, image_001.png; at least two are needed"),
        ("biggan", ["datamodule.labels=null"], "module.condition needs class labels: set datamodule.labels"),
        ("selfcondgan", ["module.condition.num_clusters=9"], "num_clusters is 9, but there are"),
    ],
)
def test_bad_input_is_one_error_and_nothing_is_written(name, keys, message, tmp_path, capsys):
    path = ROOT / f"configs/{name}.yaml"
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    words = [str(path), SYNTHETIC, *tiny(path), *(key.format(folder=tmp_path) for key in keys)]
    assert train.main([*words, "logger.wandb=null", "trainer.accelerator=cpu", f"run_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error and not (tmp_path / "run").exists()
