import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import UserError
from modules.gpdm import GPDM
from modules.gpnn import GPNN
from tasks.generate import Generate
from tasks.output import write_images
from tests.tasks.toys import ExactMethod, NoisyMethod, PlainMethod, task


def test_generate():
    module = NoisyMethod()
    images = dict(task("generate", num_images=5, size=[12, 40], options={"temperature": 0.5}, seed=3)(module))
    assert list(images) == [f"sample_{i:03d}" for i in range(5)]
    assert all(
        image.shape == (3, 12, 40) and 0 <= image.min() and 0.4 < image.max() <= 0.5 for image in images.values()
    )
    again = dict(task("generate", num_images=5, size=[12, 40], options={"temperature": 0.5}, seed=3, batch_size=2)(module))
    assert all(torch.equal(images[stem], again[stem]) for stem in images)
    other = dict(task("generate", num_images=1, size=[12, 40], options={"temperature": 0.5}, seed=4)(module))
    assert not torch.equal(other["sample_000"], images["sample_000"])
    assert next(task("generate", num_images=1)(module))[1].shape == (3, 24, 32)


def test_generate_passes_only_what_the_method_takes():
    assert len(list(task("generate", num_images=3)(PlainMethod()))) == 3
    for name in ("temperature", "top_k"):
        message = f"task.options.{name}: PlainMethod has no such option .* Methods with {name}: FewGAN"
        with pytest.raises(UserError, match=message):
            list(task("generate", options={name: 3})(PlainMethod()))
    for options, message in (({"num_images": 0}, "task.num_images"), ({"size": [0, 4]}, "size"), ({"size": [4]}, "size")):
        with pytest.raises(UserError, match=message):
            task("generate", **options)


class CoarseMethod(NoisyMethod):
    """Starts random images at a scale."""

    def sample(self, num_images, size=None, start_scale: int = 0):
        return torch.full((num_images, 3, *(size or self.image_size)), 0.1 * start_scale)


def test_start_scale_reaches_the_methods_that_have_it():
    assert next(task("generate", options={"start_scale": 2})(CoarseMethod()))[1].mean() == pytest.approx(0.2)
    assert next(task("generate")(CoarseMethod()))[1].mean() == 0
    message = r"task.options.start_scale: NoisyMethod .* It has: temperature, top_k. Methods with start_scale: SinGAN.$"
    with pytest.raises(UserError, match=message):
        list(task("generate", options={"start_scale": 1})(NoisyMethod()))


@pytest.fixture(scope="module")
def photographs():
    """Three images [3, 3, 24, 30] of one color channel each, with noise, so that a pixel tells its image."""
    torch.manual_seed(0)
    return torch.eye(3).view(3, 3, 1, 1) * (0.4 + 0.6 * torch.rand(3, 1, 24, 30)) * 2 - 1


def fitted(method, photographs, **settings):
    module = method([24, 30], min_size=10, **settings)
    module.store(photographs)
    return module.eval()


def test_every_sample_comes_with_the_places_its_pixels_were_copied_from(photographs, tmp_path):
    module = fitted(GPNN, photographs, noise=0.1, iterations=2)
    made = dict(Generate(num_images=5, size=[20, 34], batch_size=2)(module))
    names = [f"{kind}_{i:03d}" for kind in ("sample", "sources") for i in range(5)]
    assert list(made) == [*names[:5], "sources", *names[5:]] == sorted(made)
    image, row, column = made["sources"].unbind(1)
    assert made["sources"].shape == (5, 3, 20, 34) and len({int(i.flatten().mode()[0]) for i in image}) > 1
    copied = photographs[image, :, row, column].permute(0, 3, 1, 2)
    samples = torch.stack([made[name] for name in names[:5]])
    errors = (samples.unsqueeze(1) - copied).square().mean((2, 3, 4))  # of each sample by the sources of each
    assert (errors.diagonal() < 0.1).all() and (errors.argmin(1) == torch.arange(5)).all()
    hue = torch.stack([made[name] for name in names[5:]]).argmax(1)  # image 0 is red to yellow, 1 is green, 2 is blue
    assert (hue[image == 2] != 1).float().mean() > 0.95 and all(made[name].shape == (3, 20, 34) for name in names[5:])

    listed = write_images(tmp_path, made)
    assert listed.split(", ") == [f"{name}.{'npz' if name == 'sources' else 'png'}" for name in made]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(listed.split(", "))
    assert np.array_equal(np.load(tmp_path / "sources.npz")["sources"], made["sources"].numpy())
    assert Image.open(tmp_path / "sources_004.png").size == (34, 20)


def test_methods_that_copy_nothing_give_samples_alone(photographs):
    module = fitted(GPDM, photographs, steps=1, projections=2)
    assert [name for name, _ in Generate(num_images=2)(module)] == ["sample_000", "sample_001"]


def test_images_of_given_latents(tmp_path):
    latents = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float64)
    np.save(tmp_path / "latents.npy", latents)
    np.savez(tmp_path / "latents.npz", anything=latents)
    module = ExactMethod()
    expected = module.decode(torch.from_numpy(latents).float(), (24, 32))
    for name in ("latents.npy", "latents.npz"):
        images = dict(task("generate", latents=str(tmp_path / name), batch_size=2)(module))
        assert list(images) == [f"sample_{i:03d}" for i in range(5)]
        assert torch.equal(torch.stack(list(images.values())), expected)


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((2, 2), int), np.full((2, 2), np.nan), np.zeros((0, 2))])
def test_latents_of_another_kind_are_refused(values, tmp_path):
    np.save(tmp_path / "latents.npy", values)
    with pytest.raises(UserError, match="latents.npy: expected one array of finite floats"):
        list(task("generate", latents=str(tmp_path / "latents.npy"))(ExactMethod()))


def test_latents_are_for_methods_that_have_them_and_are_read_safely(tmp_path):
    (tmp_path / "latents.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="expected one array"):
        list(task("generate", latents=str(tmp_path / "latents.npy"))(ExactMethod()))
    np.save(tmp_path / "latents.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(UserError, match="expected one array"):
        list(task("generate", latents=str(tmp_path / "latents.npy"))(ExactMethod()))
    with pytest.raises(UserError, match=r"task.latents: PlainMethod has no decode\(\)"):
        list(task("generate", latents=str(tmp_path / "latents.npy"))(PlainMethod()))
