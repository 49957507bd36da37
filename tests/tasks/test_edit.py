import pytest
import torch

from tests.tasks.toys import NoisyMethod, outside, task


class TunableMethod(NoisyMethod):
    def inject(self, images, scale=0, finetune: int = 0):
        return torch.full_like(images, 0.01 * finetune)


@pytest.mark.parametrize(("name", "stem"), [("edit", "02_unmasked"), ("harmonize", "02_harmonized")])
def test_fine_tuning_reaches_the_methods_that_have_it(files, name, stem):
    settings = {"image": files["image"], "mask": files["mask"], "dilation": 0, "blur": 0}
    made = dict(task(name, **settings, options={"finetune": 50})(TunableMethod()))[stem]
    assert (made - 0.5).abs().amin() < 1e-6
    message = "task.options.finetune: NoisyMethod has no such .* It has: none. Methods with finetune: ConSinGAN.$"
    with pytest.raises(ValueError, match=message):
        list(task(name, **settings, options={"finetune": 50})(NoisyMethod()))


@pytest.mark.parametrize(("name", "result"), [("edit", "03_edited"), ("harmonize", "02_harmonized")])
def test_masked_tasks_change_the_masked_region_alone(files, name, result):
    images = dict(task(name, image=files["image"], mask=files["mask"])(NoisyMethod()))
    assert list(images) == sorted(images) and list(images)[:2] == ["00_input", "01_mask"] and list(images)[-1] == result
    given, changed, m = images["00_input"], images[result], images["01_mask"] / 2 + 0.5
    assert torch.equal(changed[:, outside()], given[:, outside()])
    assert m[0, 6, 6] > 0.99 and (changed - given)[:, 6, 6].abs().max() > 0.1
    conditional = dict(task("conditional", image=files["image"])(NoisyMethod()))["01_conditional"]
    torch.testing.assert_close(changed, (1 - m) * given + m * conditional)
    if name == "edit":
        assert torch.equal(images["02_unmasked"], conditional)
        tight = dict(task("harmonize", image=files["image"], mask=files["mask"])(NoisyMethod()))["01_mask"]
        assert (images["01_mask"] > 0).sum() > (tight > 0).sum()


@pytest.mark.parametrize(("name", "result"), [("edit", "03_edited"), ("harmonize", "02_harmonized")])
def test_an_empty_mask_returns_the_image_exactly(files, name, result):
    with pytest.warns(UserWarning, match="nothing is masked"):
        images = dict(task(name, image=files["image"], mask=files["empty"])(NoisyMethod()))
    assert torch.equal(images[result], images["00_input"])


@pytest.mark.parametrize("name", ["edit", "harmonize"])
def test_scale_out_of_range_is_the_methods_error(files, name):
    with pytest.raises(ValueError, match="scales 0 to 2"):
        list(task(name, image=files["image"], mask=files["mask"], scale=7)(NoisyMethod()))


class Editor(NoisyMethod):
    def edit(self, image, mask, donor: torch.Tensor | None = None):
        return torch.where(mask > 0, image if donor is None else donor, 0.25)


def test_a_method_that_edits_gets_the_mask_and_a_donor_from_its_file(files):
    settings = {"image": files["image"], "mask": files["mask"], "dilation": 0, "blur": 0}
    made = dict(task("edit", **settings)(Editor()))
    mask = made["01_mask"] > 0
    assert torch.equal(made["02_unmasked"], torch.where(mask, made["00_input"], 0.25))
    made = dict(task("edit", **settings, options={"donor": files["image"]})(Editor()))
    assert torch.equal(made["03_edited"], made["00_input"])  # the donor is the image
    with pytest.raises(FileNotFoundError, match="task.options.donor=none.png: no such file"):
        list(task("edit", **settings, options={"donor": "none.png"})(Editor()))
