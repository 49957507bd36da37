"""Retargeting, painting, super-resolution, animation, interpolation, pasting: on a model whose answers are known, and the
identities that tasks promise on methods that are quick to fit."""

import math
import sys
import warnings
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import lightning
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import evaluate
from cli.build import build
from datamodules.fewshot import FewShotDataModule
from modules.base import GenerativeModule
from modules.gpnn import GPNN
from modules.ops.images import resize, to_uint8
from modules.singan import SinGAN
from tasks.harmonize import paste
from tasks.interpolate import between
from tasks.output import write_film
from tasks.paint import palette, quantize
from tasks.superresolve import psnr

TASKS = Path(__file__).parents[2] / "configs" / "tasks"


class Able(GenerativeModule):
    """Injection inverts, reconstruction dims, enlarging repeats pixels, frames count up, latents are two numbers."""

    image_size = (24, 32)

    def sample(self, num_images, size=None):
        return torch.rand(num_images, 3, *(size or self.image_size))

    def inject(self, images, scale=1, alpha=7.0):
        if scale < 1:
            raise ValueError("scale is 0; allowed are 1 to 2")
        return -images * 0.5 + scale + alpha

    def reconstruct(self, images):
        return images * 0.25

    def enlarge(self, images, factor):
        size = [int(side * factor) for side in images.shape[-2:]]
        return torch.nn.functional.interpolate(images, size) + 1e-6 * torch.rand(1)

    def walk(self, num_frames, alpha=0.1, beta=0.9, start_scale=0):
        steps = torch.linspace(-1, 1, num_frames).view(-1, 1, 1, 1).expand(-1, 3, *self.image_size)
        return steps.clone() * alpha * beta + start_scale + 1e-6 * torch.rand(1)

    def latents(self, num_images, size=None):
        return torch.randn(num_images, 2) + size[0]

    def encode(self, images):
        return images[:, :2].mean((2, 3))

    def render(self, latents, size=None):
        return latents.mean(1).view(-1, 1, 1, 1).expand(-1, 3, *size)


class Plain(GenerativeModule):
    image_size = (24, 32)

    def sample(self, num_images, size=None):
        return torch.zeros(num_images, 3, *self.image_size)


def task(name: str, **keys):
    return build(OmegaConf.merge(OmegaConf.load(TASKS / f"{name}.yaml").task, keys))


def saved(path: Path, pixels, mode: str | None = None) -> str:
    Image.fromarray(np.asarray(pixels, dtype=np.uint8), mode).save(path)
    return str(path)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(256, size=(height, width, channels), dtype=np.uint8)


@pytest.fixture
def image(tmp_path):
    return saved(tmp_path / "image.png", noise(48, 64))


# --- retarget ---------------------------------------------------------------------------------------------------------


def test_retarget_injects_the_stretched_image_at_the_methods_coarsest_scale(image):
    images = dict(task("retarget", image=image, size=[24, 80], alpha=2.0)(Able()))
    assert list(images) == ["00_input", "01_stretched", "02_retargeted"]
    assert images["00_input"].shape == (3, 24, 32) and images["01_stretched"].shape == (3, 24, 80)
    torch.testing.assert_close(images["02_retargeted"], -images["01_stretched"] * 0.5 + 3.0)
    finer = dict(task("retarget", image=image, size=[24, 80], scale=2)(Able()))
    torch.testing.assert_close(finer["02_retargeted"], -images["01_stretched"] * 0.5 + 9.0)


@pytest.mark.parametrize("size", [None, [24, 32]])
def test_retarget_reconstructs_where_nothing_is_stretched(image, size):
    images = dict(task("retarget", image=image, size=size)(Able()))
    assert torch.equal(images["02_retargeted"], images["00_input"] * 0.25)


def test_retarget_refuses_what_the_method_does_not_take(image):
    with pytest.raises(ValueError, match=r"task.noise: Able.inject\(\) has no such option"):
        list(task("retarget", image=image, noise=0.1)(Able()))
    with pytest.raises(ValueError, match="allowed are 1 to 2"):
        list(task("retarget", image=image, size=[9, 9], scale=0)(Able()))
    with pytest.raises(ValueError, match="task.size"):
        task("retarget", image=image, size=[9])


@pytest.mark.parametrize(("size", "rounds"), [((24, 80), 5), ((24, 38), 1), ((60, 14), 5)])
def test_retarget_step_by_step(image, size, rounds, monkeypatch):
    """80 is 2.5 · 32 and 1.25⁴ < 2.5 < 1.25⁵; each round begins with the result of the one before, which is its half."""
    entered = []
    monkeypatch.setattr(Able, "inject", lambda self, images, scale=1: entered.append(images) or images / 2)
    images = dict(task("retarget", image=image, size=list(size), step=1.25)(Able()))
    sizes = [(24, 32), *(tuple(entering.shape[-2:]) for entering in entered)]
    assert len(entered) == rounds and sizes[-1] == size == tuple(images["02_retargeted"].shape[1:])
    for before, after in pairwise(sizes):
        assert all(a * 0.8 - 1 <= b <= a * 1.25 + 1 for a, b in zip(before, after, strict=True))
    for before, after in pairwise(entered):
        torch.testing.assert_close(after, resize(before / 2, tuple(after.shape[-2:])))
    with pytest.raises(ValueError, match="task.step=1.0: must be above 1"):
        task("retarget", image=image, step=1.0)


# --- paint ------------------------------------------------------------------------------------------------------------

THREE = np.array([[250, 10, 10], [20, 240, 30], [15, 25, 230]], dtype=np.uint8)


def test_paint_injects_the_drawing(image):
    images = dict(task("paint", image=image)(Able()))
    assert list(images) == ["00_input", "02_photograph"]
    torch.testing.assert_close(images["02_photograph"], -images["00_input"] * 0.5 + 8.0)


def test_paint_quantizes_to_the_colours_of_the_reference(tmp_path, image):
    """Columns of three colours: rows of three neighbouring values would give mixtures as centres."""
    reference = saved(tmp_path / "reference.png", np.broadcast_to(THREE[np.arange(32) % 3], (24, 32, 3)))
    images = dict(task("paint", image=image, colors=3, reference=reference, scale=2)(Able()))
    assert list(images) == ["00_input", "01_quantized", "02_photograph"]
    colours = torch.tensor(THREE).float() / 127.5 - 1
    pixels = images["00_input"].reshape(3, -1).T
    expected = torch.stack([min(colours, key=lambda colour: float((pixel - colour).square().sum())) for pixel in pixels])
    torch.testing.assert_close(images["01_quantized"].reshape(3, -1).T, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(images["02_photograph"], -images["01_quantized"] * 0.5 + 9.0)


def test_palette_and_quantisation_leave_an_image_of_few_colours_as_it_is():
    torch.manual_seed(0)
    picture = torch.tensor([[-1.0, 0.2, 0.9], [0.5, -0.5, 0.0]])[torch.randint(2, (1, 6, 9))].movedim(-1, 1)
    torch.testing.assert_close(quantize(picture, palette(picture[0].flatten(1).T, 2)), picture, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"colors": 5}, "task.colors and task.reference belong together"),
        ({"reference": "x.png"}, "task.colors and task.reference belong together"),
        ({"colors": 1, "reference": "x.png"}, "task.colors=1: must be at least 2"),
    ],
)
def test_paint_settings_that_cannot_work(keys, words):
    with pytest.raises(ValueError, match=words):
        task("paint", image="a.png", **keys)


# --- superresolve -----------------------------------------------------------------------------------------------------


def test_superresolve_takes_the_file_pixel_by_pixel(tmp_path, capsys):
    pixels = noise(24, 32)
    low = saved(tmp_path / "low.png", pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = dict(task("superresolve", image=low, factor=2.5)(Able()))
    assert list(images) == ["00_input", "01_bicubic", "02_superresolved"]
    assert torch.equal(to_uint8(images["00_input"]), torch.tensor(pixels).permute(2, 0, 1))
    assert images["01_bicubic"].shape == images["02_superresolved"].shape == (3, 60, 80)
    assert capsys.readouterr().out == ""


def test_superresolve_prints_the_psnr(tmp_path, capsys):
    low, high = noise(24, 32), noise(48, 64)
    keys = {"image": saved(tmp_path / "low.png", low), "reference": saved(tmp_path / "high.png", high), "factor": 2}
    list(task("superresolve", **keys, consistent=False)(Able()))
    repeated = low.repeat(2, axis=0).repeat(2, axis=1).astype(float)
    error = ((repeated - high) ** 2).mean()
    expected = 20 * math.log10(255) - 10 * math.log10(error)
    assert f"PSNR against {keys['reference']}: {expected:.2f} dB, bicubic " in capsys.readouterr().out


def test_superresolve_keeps_the_small_images_colours(tmp_path):
    """A method that shifts colours and adds detail: the shift goes, the detail stays."""
    y, x = np.mgrid[:24, :32]
    smooth = (128 + 60 * np.stack([np.sin(y / 6), np.cos(x / 7), np.sin((x + y) / 9)], 2)).astype(np.uint8)
    keys = {"image": saved(tmp_path / "low.png", smooth), "factor": 3}
    detail = 0.2 * (torch.arange(72).view(-1, 1) + torch.arange(96)).remainder(2).mul(2).sub(1)

    class Shifting(Able):
        def enlarge(self, images, factor):
            return (resize(images, (72, 96)) + 0.3 + detail).clamp(-1, 1)

    def errors(**options):
        made = dict(task("superresolve", **keys, **options)(Shifting()))
        result = made["02_superresolved"][None]
        texture = ((result - resize(result, (24, 32)).repeat_interleave(3, 2).repeat_interleave(3, 3)) * detail).mean()
        shift = (resize(result, (24, 32)) - made["00_input"][None]).abs().mean()
        return shift.item(), (texture / detail.square().mean()).item()

    shift, texture = errors()
    assert shift < 0.01 and texture > 0.9
    assert errors(consistent=False)[0] > 0.25


def test_superresolve_warns_of_a_model_of_another_size(tmp_path):
    low = saved(tmp_path / "low.png", noise(32, 24))
    with pytest.warns(UserWarning, match=r"is 32×24 pixels .*the model 24×32: train .*datamodule.image_size=\[32,24\]"):
        images = dict(task("superresolve", image=low, factor=1.5)(Able()))
    assert images["02_superresolved"].shape == (3, 48, 36)


def test_superresolve_refusals(tmp_path):
    low, high = saved(tmp_path / "low.png", noise(24, 32)), saved(tmp_path / "high.png", noise(50, 64))
    with pytest.raises(ValueError, match=r"high.png is 50×64 pixels .*factor=2 48×64"):
        list(task("superresolve", image=low, reference=high, factor=2)(Able()))
    for factor in (1, 0.5, math.inf):
        with pytest.raises(ValueError, match="task.factor"):
            task("superresolve", image=low, factor=factor)


def test_psnr():
    image = torch.zeros(1, 3, 4, 4)
    assert psnr(image, image) == math.inf
    assert psnr(-torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4)) == 0


# --- animate, interpolate ---------------------------------------------------------------------------------------------


def test_animate_passes_its_options_and_orders_the_frames():
    frames = dict(task("animate", num_frames=12, alpha=0.5, beta=0.5, start_scale=2)(Able()))
    assert list(frames) == [f"frame_{i:04d}" for i in range(12)] == sorted(frames)
    values = torch.stack([frame.mean() for frame in frames.values()])
    torch.testing.assert_close(values, torch.linspace(-1, 1, 12) * 0.25 + 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("animate", {"num_frames": 1}, "task.num_frames=1"),
        ("animate", {"alpha": 1.5}, "task.alpha=1.5: must lie between 0 and 1"),
        ("animate", {"beta": -0.1}, "task.beta=-0.1"),
        ("animate", {"frames_per_second": 0}, "task.frames_per_second"),
        ("interpolate", {"frames_per_second": 60}, "task.frames_per_second=60.0"),
        ("interpolate", {"num_points": 1}, "task.num_points=1"),
        ("interpolate", {"images": ["a.png"]}, r"task.images=\['a.png'\]: two or more"),
        ("interpolate", {"size": [0, 4]}, "task.size"),
    ],
)
def test_frames_that_cannot_be(name, keys, words):
    with pytest.raises(ValueError, match=words):
        task(name, **keys)


@pytest.mark.parametrize(
    ("name", "needs"),
    [("retarget", "inject"), ("paint", "inject"), ("superresolve", "enlarge"), ("animate", "walk"), ("interpolate", "latents")],
)
def test_missing_capability_names_task_method_and_methods_that_can(image, name, needs):
    keys = {} if name in ("animate", "interpolate") else {"image": image}
    words = rf"task {name} needs {needs}\(\), which Plain does not have; methods that have it: \w+"
    with pytest.raises(ValueError, match=words):
        list(task(name, **keys)(Plain()))


def test_the_way_between_latents_is_an_arc():
    points = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    way = between(points, 3, loop=False)
    angles = torch.tensor([0, 30, 60, 90]) * math.pi / 180
    torch.testing.assert_close(way, 2 * torch.stack([angles.cos(), angles.sin()], 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(between(points, 3, loop=True), way[[0, 1, 2, 3, 2, 1]], rtol=0, atol=1e-5)
    same = torch.tensor([[1.0, 1.0], [3.0, 3.0]])
    torch.testing.assert_close(between(same, 2, loop=False), torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))


def test_interpolate_random_images():
    frames = dict(task("interpolate", num_points=3, num_frames=4, size=[5, 6], seed=2)(Able()))
    assert list(frames) == [f"frame_{i:04d}" for i in range(12)]
    torch.manual_seed(2)
    means = (torch.randn(3, 2) + 5).mean(1)
    torch.testing.assert_close(torch.stack([frames[f"frame_{i:04d}"][0, 0, 0] for i in (0, 4, 8)]), means)
    assert len(dict(task("interpolate", num_points=3, num_frames=4, loop=False)(Able()))) == 9


def test_interpolate_between_files(tmp_path):
    files = [saved(tmp_path / f"{i}.png", np.full((48, 64, 3), value)) for i, value in enumerate((0, 255, 51))]
    frames = dict(task("interpolate", images=files, num_frames=5, loop=False)(Able()))
    values = [frames[f"frame_{i:04d}"].mean().item() for i in (0, 5, 10)]
    assert len(frames) == 11 and values == pytest.approx([-1, 1, -0.6], abs=1e-5)


@pytest.fixture
def animation():
    return OmegaConf.create(
        {
            "task": OmegaConf.load(TASKS / "animate.yaml").task | {"num_frames": 4, "alpha": 1.0, "frames_per_second": 5},
            "trainer": {"class_path": "lightning.Trainer", "accelerator": "cpu", "logger": False, "barebones": False},
        }
    )


def test_evaluate_writes_frames_also_as_an_animation(tmp_path, capsys, animation):
    evaluate.do_task(Able(), animation, tmp_path)
    frames = [f"frame_000{i}.png" for i in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["animation.gif", "film.mp4", *frames]
    with Image.open(tmp_path / "animation.gif") as animation:
        assert (animation.n_frames, animation.info["loop"], animation.size) == (4, 0, (32, 24))
        for index in range(4):
            animation.seek(index)
            assert animation.info["duration"] == 200
            with Image.open(tmp_path / f"frame_000{index}.png") as frame:
                difference = np.asarray(animation.convert("RGB"), int) - np.asarray(frame, int)
            assert abs(difference).max() <= 1
    assert "animation.gif, film.mp4, 4 frames" in capsys.readouterr().out


@pytest.mark.parametrize(("size", "rate"), [((24, 32), 12.5), ((25, 33), 10), ((7, 12), 50)])
def test_films_play(tmp_path, size, rate):
    """A ramp of brightness in changing tints, which halved colour resolution and the codec keep nearly as they are."""
    y, x = np.mgrid[: size[0], : size[1]] / np.array(size).reshape(2, 1, 1)
    ramp = 0.1 + 0.4 * (x + y)
    frames = [(255 * np.stack([ramp, ramp * i / 8, ramp * (1 - i / 8)], 2)).astype(np.uint8) for i in range(9)]
    write_film(tmp_path / "film.mp4", frames, rate)
    with av.open(str(tmp_path / "film.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == Fraction(rate) and stream.duration * stream.time_base == Fraction(9) / Fraction(rate)
        shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
    assert len(shown) == 9 and shown[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    for frame, original in zip(shown, frames, strict=True):
        assert abs(frame[: size[0], : size[1]].astype(int) - original).mean() < 6
        assert abs(frame[-1].astype(int) - frame[size[0] - 1]).mean() < 4  # repeated, not black


def test_without_the_film_library_there_is_the_gif_and_a_line(tmp_path, capsys, animation, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    evaluate.do_task(Able(), animation, tmp_path)
    assert (tmp_path / "animation.gif").exists() and not (tmp_path / "film.mp4").exists()
    assert "animation.gif, 4 frames; no film.mp4: ModuleNotFoundError: import of av" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(av, "open", lambda file, *_, **__: Path(file).write_bytes(b"half") and 1 / 0)
    evaluate.do_task(Able(), animation, tmp_path)
    assert not (tmp_path / "film.mp4").exists() and "no film.mp4: ZeroDivisionError" in capsys.readouterr().out


# --- paste ------------------------------------------------------------------------------------------------------------


def pasted_by_hand(picture: np.ndarray, thing: np.ndarray, top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel by pixel, in [0, 255]; and the opacity in [0, 1]."""
    result, cover = picture.astype(float), np.zeros(picture.shape[:2])
    for y, x in np.ndindex(thing.shape[:2]):
        if 0 <= y + top < len(picture) and 0 <= x + left < picture.shape[1]:
            alpha = thing[y, x, 3] / 255
            result[y + top, x + left] = alpha * thing[y, x, :3] + (1 - alpha) * picture[y + top, x + left]
            cover[y + top, x + left] = alpha
    return result, cover


@pytest.mark.parametrize("position", [[0, 0], [5, 9], [-3, -4], [17, 28], None])
def test_paste(tmp_path, position):
    picture, thing = noise(20, 32), noise(7, 9, 4)
    file = saved(tmp_path / "object.png", thing)
    given = torch.tensor(picture).permute(2, 0, 1)[None] / 127.5 - 1
    made, alpha = paste(given, file, position, None)
    expected, cover = pasted_by_hand(picture, thing, *(position or (6, 11)))
    assert np.abs((made[0].permute(1, 2, 0).numpy() + 1) * 127.5 - expected).max() < 1.01
    assert np.abs(alpha[0, 0].numpy() - cover).max() < 0.01
    untouched = torch.tensor(cover == 0)
    assert torch.equal(made[0][:, untouched], given[0][:, untouched])


def disk(size: int) -> np.ndarray:
    """A red disk on nothing."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    thing = np.zeros((size, size, 4), np.uint8)
    thing[y**2 + x**2 < (size / 2) ** 2] = (255, 0, 0, 255)
    return thing


def test_harmonize_pastes_an_object(tmp_path, image):
    thing = saved(tmp_path / "object.png", disk(12))
    keys = {"image": image, "scale": 1}
    images = dict(task("harmonize", **keys, object=thing, position=[10, 20])(Able()))
    assert list(images) == ["00_input", "01_mask", "02_harmonized"]
    pasted, cover = pasted_by_hand(noise(48, 64), disk(12), 10, 20)
    files = {
        "image": saved(tmp_path / "pasted.png", pasted),
        "mask": saved(tmp_path / "mask.png", cover * 255),
    }
    by_hand = dict(task("harmonize", **files, scale=1)(Able()))
    torch.testing.assert_close(images["00_input"], by_hand["00_input"], rtol=0, atol=1e-5)
    assert torch.equal(images["01_mask"], by_hand["01_mask"])
    outside, plain = images["01_mask"] == -1, dict(task("paint", image=image)(Able()))["00_input"]
    m, remade = images["01_mask"] / 2 + 0.5, -images["00_input"] * 0.5 + 1 + 7
    torch.testing.assert_close(images["02_harmonized"], (1 - m) * plain + m * remade)
    assert outside.any() and torch.equal(images["02_harmonized"][outside], plain[outside])
    large = dict(task("harmonize", **keys, object=thing, object_size=[24, 30])(Able()))
    assert (large["01_mask"] > 0).sum() > 2 * (images["01_mask"] > 0).sum()


@pytest.mark.parametrize("own_mask", [False, True])
def test_harmonize_gives_the_object_colours_of_what_is_around(tmp_path, own_mask):
    """A red disk in stripes of three colours: one of them enters instead, the rest enters as it is."""
    picture = np.broadcast_to(THREE[np.arange(32) // 4 % 3][None], (24, 32, 3)).copy()
    colours = torch.tensor(THREE).float() / 127.5 - 1
    white = np.zeros((12, 12, 4), np.uint8)
    white[2:10, 2:10] = (255, 255, 0, 255)  # nearest to the green, at (20, 240, 30)
    if own_mask:
        pasted, cover = pasted_by_hand(picture, white, 6, 10)
        keys = {"image": saved(tmp_path / "a.png", pasted), "mask": saved(tmp_path / "m.png", cover * 255)}
    else:
        keys = {"image": saved(tmp_path / "a.png", picture), "object": saved(tmp_path / "o.png", white), "position": [6, 10]}
    entered = []

    class Watched(Able):
        def inject(self, images, scale=1):
            entered.append(images)
            return images

    images = dict(task("harmonize", **keys, colors=3)(Watched()))
    around = torch.ones(24, 32, dtype=torch.bool)
    around[7:17, 11:21] = False
    assert torch.equal(entered[0][0][:, around], images["00_input"][:, around])
    torch.testing.assert_close(entered[0][0, :, 8:16, 12:20], colours[1].view(3, 1, 1).expand(3, 8, 8), rtol=0, atol=1e-3)
    dict(task("harmonize", **keys)(Watched()))
    assert torch.equal(entered[1][0], images["00_input"])


def test_harmonize_without_colours_around(tmp_path, image):
    keys = {"image": image, "mask": saved(tmp_path / "full.png", np.full((48, 64), 255)), "colors": 4}
    with pytest.raises(ValueError, match="task.colors=4: nothing is around the mask"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(task("harmonize", **keys)(Able()))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"mask": "m.png", "colors": 0}, "task.colors"),
        ({}, "task.mask and task.object: give one"),
        ({"mask": "m.png", "object": "o.png"}, "task.mask and task.object: give one"),
        ({"mask": "m.png", "position": [1, 2]}, "are for task.object"),
        ({"object": "o.png", "position": [1]}, r"task.position=\[1\]"),
        ({"object": "o.png", "object_size": [0, 4]}, "task.object_size"),
    ],
)
def test_harmonize_settings_that_cannot_work(keys, words):
    with pytest.raises(ValueError, match=words):
        task("harmonize", image="a.png", **keys)


def test_objects_that_cannot_be_pasted(tmp_path, image):
    thing, opaque = saved(tmp_path / "object.png", disk(12)), saved(tmp_path / "opaque.png", noise(8, 8))
    empty = saved(tmp_path / "nothing.png", np.zeros((8, 8, 4)))
    for file, position, words in (
        (opaque, None, "has no transparency"),
        (empty, None, "nothing of it is seen"),
        (thing, [48, 0], r"at task.position=\[48,0\] nothing of it is seen in the image of 48×64"),
        (thing, [0, -12], "nothing of it is seen"),
        (thing, [500, -900], "nothing of it is seen"),
    ):
        with pytest.raises(ValueError, match=words):
            list(task("harmonize", image=image, object=file, position=position)(Able()))


# --- identities -------------------------------------------------------------------------------------------------------


def photograph(folder: Path, height: int, width: int, name: str = "001.jpg"):
    """Data module and file of a starter photograph of this size."""
    data = FewShotDataModule("datamodules/starter/landscapes", [height, width], samples_per_epoch=80, image=name)
    data.setup("fit")
    image = data.sets()["image"][0]
    return data, image, saved(folder / "photograph.png", to_uint8(image).permute(1, 2, 0))


def test_gpnn_gives_a_photograph_back(tmp_path):
    """Without noise, at the training size, from the finest scale: above the bounds of the method's own test."""
    _, image, file = photograph(tmp_path, 56, 56)
    for iterations, bound in ((1, 100), (10, 45)):
        module = GPNN([56, 56], noise=0.0, iterations=iterations).eval()
        module.bank[0] = to_uint8(image)
        module.stored.fill_(1)
        made = {
            "generate": task("generate", num_images=1),
            "retarget": task("retarget", image=file),
            "conditional": task("conditional", image=file, scale=module.num_scales - 1),
        }
        for name, instance in made.items():
            pictures = dict(instance(module))
            result = pictures.get("sample_000", next(reversed(pictures.values())))
            assert 10 * torch.log10(4 / (result - image).square().mean()) > bound, name


def test_a_tiling_gives_the_tile_back():
    """Concat-SinGAN knows one image, the row of all; where an image of one tile's aspect is asked for, it is that tile."""
    module = SinGAN([24, 32], tiles=(1, 3), epochs_per_stage=1, min_size=14, scale_factor=0.5, width=8, depth=2).eval()
    torch.manual_seed(0)
    row = torch.rand(1, 3, 24, 96) * 2 - 1
    module.pyramid.reconstruction = lambda number: row
    tiles = torch.cat(row.split(32, 3))
    assert torch.equal(module.reconstruct(tiles[[2, 0]] * 0.9), tiles[[2, 0]])
    assert module.reconstruct(resize(tiles[1:2], (12, 16))).shape == (1, 3, 12, 16)
    assert torch.equal(module.reconstruct(torch.zeros(2, 3, 24, 96)), row.expand(2, -1, -1, -1))


@pytest.mark.slow
def test_singan_gives_a_photograph_back(tmp_path):
    """After 80 iterations a scale, at the training size and from the finest scale, within a third of the contrast."""
    data, image, file = photograph(tmp_path, 24, 32)
    module = SinGAN([24, 32], epochs_per_stage=1, min_size=14, scale_factor=0.5, width=16, depth=2)
    lightning.seed_everything(0, verbose=False)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    lightning.Trainer(accelerator="cpu", max_epochs=-1, num_sanity_val_steps=0, **quiet).fit(module, data)
    finest = module.num_scales - 1
    made = {"retarget": task("retarget", image=file), "conditional": task("conditional", image=file, scale=finest)}
    for name, instance in made.items():
        result = list(instance(module))[-1][1]
        assert (result - image).square().mean().sqrt() < 0.33 * image.std(), name
