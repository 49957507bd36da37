import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from tests.tasks.toys import NoisyMethod, task


class CoarseMethod(NoisyMethod):
    """Takes an image from its scale 1 on, as SinGAN does."""

    def inject(self, images, scale=1):
        if scale < 1:
            raise ValueError(f"scale is {scale}; allowed are 1 to 2")
        return torch.full_like(images, 0.3 * scale)


@pytest.mark.parametrize(("name", "stem"), [("conditional", "01_conditional"), ("edit", "02_unmasked")])
def test_images_enter_at_the_methods_coarsest_scale(files, name, stem):
    masks = {} if name == "conditional" else {"mask": files["mask"]}
    for keys, value in (({}, 0.3), ({"scale": 2}, 0.6)):
        made = dict(task(name, image=files["image"], **masks, **keys)(CoarseMethod()))
        assert made[stem].mean().item() == pytest.approx(value)
    with pytest.raises(ValueError, match="allowed are 1 to 2"):
        list(task(name, image=files["image"], **masks, scale=0)(CoarseMethod()))


def test_conditional(files):
    images = dict(task("conditional", image=files["image"], scale=1)(NoisyMethod()))
    assert list(images) == ["00_input", "01_conditional"]
    pixels = pil_to_tensor(Image.open(files["image"])).float()
    means = pixels.view(3, 24, 2, 32, 2).mean((2, 4)) / 127.5 - 1  # halved without the cubic filter's overshoot
    assert (images["00_input"] - means).abs().mean() < 0.2
    noise = images["01_conditional"] - 1 + images["00_input"] * 0.5
    assert 0 <= noise.min() + 1e-6 and noise.max() <= 0.1 + 1e-6 and noise.std() > 0.01
    again = dict(task("conditional", image=files["image"], scale=1)(NoisyMethod()))
    assert torch.equal(again["01_conditional"], images["01_conditional"])
    wide = dict(task("conditional", image=files["image"], size=[10, 50])(NoisyMethod()))
    assert wide["00_input"].shape == wide["01_conditional"].shape == (3, 10, 50)
    with pytest.raises(ValueError, match="scales 0 to 2"):
        list(task("conditional", image=files["image"], scale=3)(NoisyMethod()))
