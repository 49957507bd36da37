import warnings

import numpy as np
import pytest
import torch

from tasks.harmonize import paste
from tests.tasks.test_conditional import CoarseMethod
from tests.tasks.toys import THREE, ExactMethod, noise, saved, task


def test_an_object_enters_at_the_methods_coarsest_scale(files):
    with_default, with_scale = (
        dict(task("harmonize", image=files["image"], mask=files["mask"], **keys)(CoarseMethod()))["02_harmonized"]
        for keys in ({}, {"scale": 1})
    )
    assert torch.equal(with_default, with_scale) and with_default[:, 5, 5].mean().item() == pytest.approx(0.3, abs=0.01)


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
    images = dict(task("harmonize", **keys, object=thing, position=[10, 20])(ExactMethod()))
    assert list(images) == ["00_input", "01_mask", "02_harmonized"]
    pasted, cover = pasted_by_hand(noise(48, 64), disk(12), 10, 20)
    files = {
        "image": saved(tmp_path / "pasted.png", pasted),
        "mask": saved(tmp_path / "mask.png", cover * 255),
    }
    by_hand = dict(task("harmonize", **files, scale=1)(ExactMethod()))
    torch.testing.assert_close(images["00_input"], by_hand["00_input"], rtol=0, atol=1e-5)
    assert torch.equal(images["01_mask"], by_hand["01_mask"])
    outside, plain = images["01_mask"] == -1, dict(task("paint", image=image)(ExactMethod()))["00_input"]
    m, remade = images["01_mask"] / 2 + 0.5, -images["00_input"] * 0.5 + 1 + 7
    torch.testing.assert_close(images["02_harmonized"], (1 - m) * plain + m * remade)
    assert outside.any() and torch.equal(images["02_harmonized"][outside], plain[outside])
    large = dict(task("harmonize", **keys, object=thing, object_size=[24, 30])(ExactMethod()))
    assert (large["01_mask"] > 0).sum() > 2 * (images["01_mask"] > 0).sum()


@pytest.mark.parametrize("own_mask", [False, True])
def test_harmonize_gives_the_object_colors_of_what_is_around(tmp_path, own_mask):
    """A red disk in stripes of three colors: one of them enters instead, the rest enters as it is."""
    picture = np.broadcast_to(THREE[np.arange(32) // 4 % 3][None], (24, 32, 3)).copy()
    colors = torch.tensor(THREE).float() / 127.5 - 1
    white = np.zeros((12, 12, 4), np.uint8)
    white[2:10, 2:10] = (255, 255, 0, 255)  # nearest to the green, at (20, 240, 30)
    if own_mask:
        pasted, cover = pasted_by_hand(picture, white, 6, 10)
        keys = {"image": saved(tmp_path / "a.png", pasted), "mask": saved(tmp_path / "m.png", cover * 255)}
    else:
        keys = {"image": saved(tmp_path / "a.png", picture), "object": saved(tmp_path / "o.png", white), "position": [6, 10]}
    entered = []

    class Watched(ExactMethod):
        def inject(self, images, scale=1):
            entered.append(images)
            return images

    images = dict(task("harmonize", **keys, colors=3)(Watched()))
    around = torch.ones(24, 32, dtype=torch.bool)
    around[7:17, 11:21] = False
    assert torch.equal(entered[0][0][:, around], images["00_input"][:, around])
    torch.testing.assert_close(entered[0][0, :, 8:16, 12:20], colors[1].view(3, 1, 1).expand(3, 8, 8), rtol=0, atol=1e-3)
    dict(task("harmonize", **keys)(Watched()))
    assert torch.equal(entered[1][0], images["00_input"])


def test_harmonize_without_colors_around(tmp_path, image):
    keys = {"image": image, "mask": saved(tmp_path / "full.png", np.full((48, 64), 255)), "colors": 4}
    with pytest.raises(ValueError, match="task.colors=4: no pixel lies outside the mask"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(task("harmonize", **keys)(ExactMethod()))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mask": "m.png", "colors": 0}, "task.colors"),
        ({}, "task.mask and task.object: set one"),
        ({"mask": "m.png", "object": "o.png"}, "task.mask and task.object: set one"),
        ({"mask": "m.png", "position": [1, 2]}, "are for task.object"),
        ({"object": "o.png", "position": [1]}, "task.position"),
        ({"object": "o.png", "object_size": [0, 4]}, "task.object_size"),
    ],
)
def test_harmonize_settings_that_cannot_work(keys, message):
    with pytest.raises(ValueError, match=message):
        task("harmonize", image="a.png", **keys)


def test_objects_that_cannot_be_pasted(tmp_path, image):
    thing, opaque = saved(tmp_path / "object.png", disk(12)), saved(tmp_path / "opaque.png", noise(8, 8))
    empty = saved(tmp_path / "nothing.png", np.zeros((8, 8, 4)))
    for file, position, message in (
        (opaque, None, "has no transparency"),
        (empty, None, "lies outside the image"),
        (thing, [48, 0], r"at task.position=\[48,0\] it lies outside the image of 48×64"),
        (thing, [0, -12], "lies outside the image"),
        (thing, [500, -900], "lies outside the image"),
    ):
        with pytest.raises(ValueError, match=message):
            list(task("harmonize", image=image, object=file, position=position)(ExactMethod()))
