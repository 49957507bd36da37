import pytest
import torch
import torch.nn.functional as F

from core.errors import UserError
from metrics.realism import Realism, load_realism, realism_file, train_realism, unrealistic


def drawings(number: int, colored: bool, seed: int) -> torch.Tensor:
    """Bytes [N, 3, 16, 16]: smooth colored pictures, or black lines on white."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, (16, 16), mode="bilinear")
    lines = ((smooth[:, :1] * 20).round() % 2).expand(-1, 3, -1, -1)
    return ((smooth if colored else lines) * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def classifier():
    return train_realism(drawings(120, True, 0), drawings(120, False, 1), steps=120)


def test_tells_new_images_of_the_domains_apart(classifier):
    assert classifier(drawings(40, False, 2)).mean() > 0.9 and classifier(drawings(40, True, 3)).mean() < 0.1
    assert classifier.facts["accuracy"] >= 0.95 and classifier.facts["probabilities"]["target"] > 0.9


def test_images_of_neither_domain_are_not_realistic(classifier):
    """A classifier that has seen the two domains only gave a light blank image 0.9 and more."""
    others = unrealistic(drawings(40, True, 4), drawings(40, False, 5), torch.Generator().manual_seed(9))
    for name, images in others.items():
        assert classifier(images).mean() < 0.2, name
    assert classifier(torch.full((1, 3, 16, 16), 240, dtype=torch.uint8)) < 0.2


def test_equal_seeds_give_equal_bits_and_leave_the_random_state(classifier):
    torch.manual_seed(5)
    again, after = train_realism(drawings(120, True, 0), drawings(120, False, 1), steps=120), torch.rand(1)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), classifier.parameters(), strict=True))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_the_few_training_images_are_not_enough():
    with pytest.raises(UserError, match="10 target images are too few .* where only the few training images exist"):
        train_realism(drawings(80, True, 0), drawings(10, False, 1))


def test_domains_that_are_the_same_are_refused():
    with pytest.raises(UserError, match="does not tell the two domains apart"):
        train_realism(drawings(60, False, 0), drawings(60, False, 1), steps=5)


def test_a_file_gives_the_same_classifier_and_another_file_is_refused(classifier, tmp_path):
    path = tmp_path / "realism.pt"
    torch.save(realism_file(classifier, {"target_fingerprint": "abc"}), path)
    loaded = load_realism(str(path))
    images = drawings(5, False, 6)
    assert torch.equal(loaded(images), classifier(images)) and loaded.facts["target_fingerprint"] == "abc"
    assert len(loaded.sha256) == 64
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="holds no realism classifier"):
        load_realism(str(path))


def test_the_metric_is_the_mean_in_any_order(classifier):
    images = torch.cat([drawings(7, False, 6), drawings(5, True, 7)])
    metric = Realism(images[:1], classifier)
    for first, part in ((4, images[4:]), (12, images[:0]), (0, images[:4])):
        metric.update(part, first)
    assert metric.compute()["realism"].item() == pytest.approx(classifier(images).double().mean().item(), abs=1e-5)
    low, high = metric.intervals({}, 12)["realism"]
    assert low < metric.compute()["realism"] < high
