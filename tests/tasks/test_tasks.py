"""The five tasks on a model whose answers are known, built from the YAML files that users give."""

import inspect
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from cli.build import build, check
from modules.base import GenerativeModule

TASKS = Path(__file__).parents[2] / "configs" / "tasks"


class Able(GenerativeModule):
    """Samples are noise, injection inverts the image and adds noise, fills keep the image beside the hole, dimmed."""

    image_size = (24, 32)
    trained = True

    @property
    def samples_ready(self):
        return self.trained

    def sample(self, num_images, size=None, temperature=1.0, top_k=None):
        assert not self.training
        return torch.rand(num_images, 3, *(size or self.image_size)) * temperature

    def inject(self, images, scale=0):
        if not 0 <= scale <= 2:
            raise ValueError(f"scale is {scale}; this model has the scales 0 to 2")
        return -images * 0.5 + 0.1 * torch.rand_like(images) + scale

    def fill(self, image, mask, num_images, candidates=1):
        return torch.where(mask > 0, torch.rand(num_images, *image.shape[1:]) * candidates, image * 0.5)


class Sampler(GenerativeModule):
    """A method with nothing but `sample`, of one size."""

    image_size = (24, 32)

    def sample(self, num_images):
        return torch.zeros(num_images, 3, *self.image_size)


def task(name: str, **keys):
    """The task as evaluate.py builds it: its YAML, then the keys of the command line."""
    return build(OmegaConf.merge(OmegaConf.load(TASKS / f"{name}.yaml").task, keys))


@pytest.fixture
def files(tmp_path):
    """A noise image of 64×48 pixels, a mask with a square hole, and an empty mask."""
    torch.manual_seed(0)
    pixels = torch.randint(256, (48, 64, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "image.png")
    mask = Image.new("L", (64, 48))
    mask.save(tmp_path / "empty.png")
    mask.paste(255, (8, 8, 16, 16))
    mask.save(tmp_path / "mask.png")
    return {name: str(tmp_path / f"{name}.png") for name in ("image", "mask", "empty")}


def outside() -> torch.Tensor:
    """Pixels of the working size that lie 9 pixels or more from the hole of `files`."""
    far = torch.ones(24, 32, dtype=torch.bool)
    far[:17, :17] = False
    return far


def test_yaml_files_hold_every_key_with_its_default():
    files = sorted(TASKS.glob("*.yaml"))
    assert {file.stem for file in files} >= {"generate", "conditional", "edit", "harmonize", "inpaint"}
    for file in files:
        node = OmegaConf.load(file).task
        needed = {name: "x" for name in node if OmegaConf.is_missing(node, name)}
        class_ = check(OmegaConf.merge(node, needed), "task")[0]
        parameters = inspect.signature(class_).parameters
        for name, parameter in parameters.items():
            missing = OmegaConf.is_missing(node, name)
            assert missing if parameter.default is parameter.empty else node[name] == parameter.default, (
                file.name,
                name,
            )
        assert set(node) == {"class_path", *parameters}


def test_generate():
    module = Able()
    images = dict(task("generate", num_images=5, size=[12, 40], temperature=0.5, seed=3)(module))
    assert list(images) == [f"sample_{i:03d}" for i in range(5)]
    assert all(
        image.shape == (3, 12, 40) and 0 <= image.min() and 0.4 < image.max() <= 0.5 for image in images.values()
    )
    again = dict(task("generate", num_images=5, size=[12, 40], temperature=0.5, seed=3, batch_size=2)(module))
    assert all(torch.equal(images[stem], again[stem]) for stem in images)
    other = dict(task("generate", num_images=1, size=[12, 40], temperature=0.5, seed=4)(module))
    assert not torch.equal(other["sample_000"], images["sample_000"])
    assert next(task("generate", num_images=1)(module))[1].shape == (3, 24, 32)


def test_generate_passes_only_what_the_method_takes():
    assert len(list(task("generate", num_images=3)(Sampler()))) == 3
    for options in ({"temperature": 0.5}, {"top_k": 3}, {"size": [10, 10]}):
        with pytest.raises(ValueError, match=rf"task.{next(iter(options))}: Sampler.sample\(\) has no such option"):
            list(task("generate", **options)(Sampler()))
    for options, words in (({"num_images": 0}, "task.num_images"), ({"size": [0, 4]}, "size"), ({"size": [4]}, "size")):
        with pytest.raises(ValueError, match=words):
            task("generate", **options)


class Coarse(Able):
    """Takes an image from its scale 1 on, as SinGAN does; starts random images at a scale."""

    def sample(self, num_images, size=None, start_scale=0):
        return torch.full((num_images, 3, *(size or self.image_size)), 0.1 * start_scale)

    def inject(self, images, scale=1):
        if scale < 1:
            raise ValueError(f"scale is {scale}; allowed are 1 to 2")
        return torch.full_like(images, 0.3 * scale)


def test_start_scale_reaches_the_methods_that_have_it():
    assert next(task("generate", start_scale=2)(Coarse()))[1].mean() == pytest.approx(0.2)
    assert next(task("generate")(Coarse()))[1].mean() == 0
    words = r"task.start_scale: Able.sample\(\) has no such option; leave it out of generate; methods that have it: SinGAN$"
    with pytest.raises(ValueError, match=words):
        list(task("generate", start_scale=1)(Able()))


class Tunable(Able):
    def inject(self, images, scale=0, finetune=0):
        return torch.full_like(images, 0.01 * finetune)


@pytest.mark.parametrize(("name", "stem"), [("edit", "02_unmasked"), ("harmonize", "02_harmonized")])
def test_fine_tuning_reaches_the_methods_that_have_it(files, name, stem):
    words = {"image": files["image"], "mask": files["mask"], "dilation": 0, "blur": 0}
    made = dict(task(name, **words, finetune=50)(Tunable()))[stem]
    assert (made - 0.5).abs().amin() < 1e-6
    with pytest.raises(ValueError, match="task.finetune: Able.inject.*methods that have it: ConSinGAN$"):
        list(task(name, **words, finetune=50)(Able()))


@pytest.mark.parametrize(("name", "stem"), [("conditional", "01_conditional"), ("edit", "02_unmasked")])
def test_images_enter_at_the_methods_coarsest_scale(files, name, stem):
    masks = {} if name == "conditional" else {"mask": files["mask"]}
    for keys, value in (({}, 0.3), ({"scale": 2}, 0.6)):
        made = dict(task(name, image=files["image"], **masks, **keys)(Coarse()))
        assert made[stem].mean().item() == pytest.approx(value)
    with pytest.raises(ValueError, match="allowed are 1 to 2"):
        list(task(name, image=files["image"], **masks, scale=0)(Coarse()))


def test_an_object_enters_at_the_methods_coarsest_scale(files):
    with_default, with_scale = (
        dict(task("harmonize", image=files["image"], mask=files["mask"], **keys)(Coarse()))["02_harmonized"]
        for keys in ({}, {"scale": 1})
    )
    assert torch.equal(with_default, with_scale) and with_default[:, 5, 5].mean().item() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("name", ["conditional", "edit", "harmonize", "inpaint"])
def test_missing_capability_names_task_method_and_methods_that_can(files, name):
    masks = {} if name == "conditional" else {"mask": files["mask"]}
    with pytest.raises(ValueError, match=rf"task {name} needs .*Sampler does not have; methods that have it: .*FewGAN"):
        list(task(name, image=files["image"], **masks)(Sampler()))


def test_method_without_sample_cannot_generate():
    with pytest.raises(ValueError, match="task generate needs sample"):
        list(task("generate")(GenerativeModule()))


@pytest.mark.parametrize("name", ["generate", "inpaint"])
def test_untrained_prior_is_refused(files, name):
    module = Able()
    module.trained, module.stage_name = False, "scale 1"
    keys = {} if name == "generate" else {"image": files["image"], "mask": files["mask"]}
    with pytest.raises(
        ValueError, match=f"task {name}: this Able cannot draw images yet, its training ended in scale 1"
    ):
        list(task(name, **keys)(module))


def test_conditional(files):
    images = dict(task("conditional", image=files["image"], scale=1)(Able()))
    assert list(images) == ["00_input", "01_conditional"]
    pixels = pil_to_tensor(Image.open(files["image"])).float()
    means = pixels.view(3, 24, 2, 32, 2).mean((2, 4)) / 127.5 - 1  # halved without the cubic filter's overshoot
    assert (images["00_input"] - means).abs().mean() < 0.2
    noise = images["01_conditional"] - 1 + images["00_input"] * 0.5
    assert 0 <= noise.min() + 1e-6 and noise.max() <= 0.1 + 1e-6 and noise.std() > 0.01
    again = dict(task("conditional", image=files["image"], scale=1)(Able()))
    assert torch.equal(again["01_conditional"], images["01_conditional"])
    wide = dict(task("conditional", image=files["image"], size=[10, 50])(Able()))
    assert wide["00_input"].shape == wide["01_conditional"].shape == (3, 10, 50)
    with pytest.raises(ValueError, match="scales 0 to 2"):
        list(task("conditional", image=files["image"], scale=3)(Able()))


@pytest.mark.parametrize(("name", "result"), [("edit", "03_edited"), ("harmonize", "02_harmonized")])
def test_masked_tasks_change_the_masked_region_alone(files, name, result):
    images = dict(task(name, image=files["image"], mask=files["mask"])(Able()))
    assert list(images) == sorted(images) and list(images)[:2] == ["00_input", "01_mask"] and list(images)[-1] == result
    given, changed, m = images["00_input"], images[result], images["01_mask"] / 2 + 0.5
    assert torch.equal(changed[:, outside()], given[:, outside()])
    assert m[0, 6, 6] > 0.99 and (changed - given)[:, 6, 6].abs().max() > 0.1
    conditional = dict(task("conditional", image=files["image"])(Able()))["01_conditional"]
    torch.testing.assert_close(changed, (1 - m) * given + m * conditional)
    if name == "edit":
        assert torch.equal(images["02_unmasked"], conditional)
        tight = dict(task("harmonize", image=files["image"], mask=files["mask"])(Able()))["01_mask"]
        assert (images["01_mask"] > 0).sum() > (tight > 0).sum()


@pytest.mark.parametrize(("name", "result"), [("edit", "03_edited"), ("harmonize", "02_harmonized")])
def test_an_empty_mask_returns_the_image_exactly(files, name, result):
    with pytest.warns(UserWarning, match="nothing is masked"):
        images = dict(task(name, image=files["image"], mask=files["empty"])(Able()))
    assert torch.equal(images[result], images["00_input"])


@pytest.mark.parametrize("name", ["edit", "harmonize"])
def test_scale_out_of_range_is_the_methods_error(files, name):
    with pytest.raises(ValueError, match="scales 0 to 2"):
        list(task(name, image=files["image"], mask=files["mask"], scale=7)(Able()))


def test_inpaint(files):
    images = dict(task("inpaint", image=files["image"], mask=files["mask"], num_images=3, candidates=2)(Able()))
    assert list(images) == ["00_input", "01_mask", "02_fill_000", "02_fill_001", "02_fill_002"]
    hole = images["01_mask"][0] > 0
    assert hole.sum() == 16 and hole[4:8, 4:8].all()
    first, second = images["02_fill_000"], images["02_fill_001"]
    assert torch.equal(first[:, ~hole], images["00_input"][:, ~hole] * 0.5) and not torch.equal(first, second)
    assert first[:, hole].max() > 1  # `candidates` arrived
    other = dict(task("inpaint", image=files["image"], mask=files["mask"], seed=1)(Able()))
    assert not torch.equal(other["02_fill_000"], first)
    with pytest.raises(ValueError, match=r"task.top_k: Able.fill\(\)"):
        list(task("inpaint", image=files["image"], mask=files["mask"], top_k=2)(Able()))


def test_inpaint_composites_keep_the_input_around_the_hole(files):
    images = dict(task("inpaint", image=files["image"], mask=files["mask"], num_images=2, composite=True)(Able()))
    assert list(images)[-2:] == ["03_composite_000", "03_composite_001"]
    hole = images["01_mask"][0] > 0
    for fill, composite in (("02_fill_000", "03_composite_000"), ("02_fill_001", "03_composite_001")):
        assert torch.equal(images[composite][:, hole], images[fill][:, hole])
        assert torch.equal(images[composite][:, outside()], images["00_input"][:, outside()])


def test_inpaint_with_an_empty_mask_gives_the_reconstruction(files):
    with pytest.warns(UserWarning, match="nothing is masked"):
        images = dict(task("inpaint", image=files["image"], mask=files["empty"])(Able()))
    assert torch.equal(images["02_fill_000"], images["00_input"] * 0.5)


def test_tasks_restore_the_models_mode_and_the_random_state(files):
    module = Able()
    module.train()
    state = torch.random.get_rng_state()
    for name in ("generate", "conditional", "edit", "harmonize", "inpaint"):
        keys = {} if name == "generate" else {"image": files["image"]}
        masks = {"mask": files["mask"]} if name in ("edit", "harmonize", "inpaint") else {}
        assert all(image.dtype == torch.float32 for _, image in task(name, **keys, **masks)(module))
    assert module.training and torch.equal(torch.random.get_rng_state(), state)
