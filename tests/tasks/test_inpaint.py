import pytest
import torch

from tests.tasks.toys import NoisyMethod, outside, task


def test_inpaint(files):
    keys = {"image": files["image"], "mask": files["mask"]}
    images = dict(task("inpaint", **keys, num_images=3, options={"candidates": 2})(NoisyMethod()))
    assert list(images) == ["00_input", "01_mask", "02_fill_000", "02_fill_001", "02_fill_002"]
    hole = images["01_mask"][0] > 0
    assert hole.sum() == 16 and hole[4:8, 4:8].all()
    first, second = images["02_fill_000"], images["02_fill_001"]
    assert torch.equal(first[:, ~hole], images["00_input"][:, ~hole] * 0.5) and not torch.equal(first, second)
    assert first[:, hole].max() > 1  # `candidates` arrived
    other = dict(task("inpaint", image=files["image"], mask=files["mask"], seed=1)(NoisyMethod()))
    assert not torch.equal(other["02_fill_000"], first)
    with pytest.raises(ValueError, match="task.options.top_k: NoisyMethod has no such option .* Methods with top_k: FewGAN."):
        list(task("inpaint", image=files["image"], mask=files["mask"], options={"top_k": 2})(NoisyMethod()))


def test_inpaint_composites_keep_the_input_around_the_hole(files):
    images = dict(task("inpaint", image=files["image"], mask=files["mask"], num_images=2, composite=True)(NoisyMethod()))
    assert list(images)[-2:] == ["03_composite_000", "03_composite_001"]
    hole = images["01_mask"][0] > 0
    for fill, composite in (("02_fill_000", "03_composite_000"), ("02_fill_001", "03_composite_001")):
        assert torch.equal(images[composite][:, hole], images[fill][:, hole])
        assert torch.equal(images[composite][:, outside()], images["00_input"][:, outside()])


def test_inpaint_with_an_empty_mask_gives_the_reconstruction(files):
    with pytest.warns(UserWarning, match="nothing is masked"):
        images = dict(task("inpaint", image=files["image"], mask=files["empty"])(NoisyMethod()))
    assert torch.equal(images["02_fill_000"], images["00_input"] * 0.5)
