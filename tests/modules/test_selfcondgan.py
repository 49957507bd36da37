"""Self-Conditioned GAN: clusters against brute force, their use in training, exactness."""

import itertools

import pytest
import torch

from core.errors import UserError
from datamodules.synthetic import SyntheticDataModule
from modules.ops.kmeans import contingency, group_means, kmeans, match_labels, mutual_information
from modules.selfcondgan import SelfCondGAN
from tests.modules import test_sngan
from tests.modules.test_sngan import count, fit

CLUSTERS = {"class_path": "modules.conditions.Clusters", "num_clusters": 3, "interval": 2, "max_images": 16, "max_clustered": 6}
TINY = [
    *(word for word in test_sngan.TINY if "n_dis" not in word and "channels" not in word),
    "module.g_channels=[8,8,8]",
    "module.d_channels=[8,8,8]",
    "module.condition.num_clusters=3",
    "module.condition.interval=3",
    "module.condition.max_clustered=4",
    "module.condition.max_images=16",
    "module.class_embedding=4",
    "datamodule.samples_per_epoch=4",
]
PARAMETERS = {"selfcondgan": 877_456, "selfcondgan_cifar": 15_617_194}


def build(**changes) -> SelfCondGAN:
    keys = {"condition": CLUSTERS, "n_dis": 1, "class_embedding": 4, "d_channels": [8, 8, 8], "d_down": 2}
    return test_sngan.build(SelfCondGAN, **(keys | changes))


def test_published_networks():
    """Parameters by hand from the list of layers for CIFAR."""
    with torch.device("meta"):
        module = SelfCondGAN([32, 32], iterations=1)
    conv = [(3, 64, 3), (64, 64, 4), (64, 128, 3), (128, 128, 4), (128, 256, 3), (256, 256, 4), (256, 512, 3)]
    assert count(module.discriminator) == sum(a * b * k * k + b for a, b, k in conv) + 8192 * 100 + 100
    up = [(512, 256), (256, 128), (128, 64)]
    expected = sum(a * b * 16 + b + 2 * b for a, b in up) + 64 * 3 * 9 + 3 + (128 + 256) * 8192 + 8192 + 100 * 256
    assert count(module.generator) == expected


def test_matching_keeps_numbers():
    torch.manual_seed(0)
    old = torch.randint(0, 4, (60,))
    for permutation in itertools.permutations(range(4)):
        assert torch.equal(match_labels(old, torch.tensor(permutation)[old], 4), old)
    new = torch.randint(0, 4, (60,))
    best = max(sum(int((old == torch.tensor(p)[new]).sum()) for _ in (0,)) for p in itertools.permutations(range(4)))
    assert int((match_labels(old, new, 4) == old).sum()) == best
    assert int(contingency(old, new, 4).sum()) == 60
    assert mutual_information(old, torch.tensor([2, 0, 3, 1])[old], 4) == pytest.approx(1)
    assert mutual_information(torch.arange(16) % 4, torch.arange(16) // 4, 4) == pytest.approx(0, abs=1e-9)


def test_means_of_groups_and_empty_ones():
    points = torch.tensor([[0.0, 0], [2, 0], [10, 0], [0, 30]])
    means = group_means(points, torch.tensor([1, 1, 0, 0]), 3)
    assert torch.equal(means, torch.tensor([[5.0, 15], [1, 0], [0, 30]]))
    centers = kmeans(points, 3, torch.Generator().manual_seed(0), 10, starts=means)
    assert sorted(map(tuple, centers.tolist())) == [(0.0, 30.0), (1.0, 0.0), (10.0, 0.0)]


def test_clusters_are_found_at_intervals_and_label_every_image():
    module, calls = build(epochs=3), []
    find = module.image_features
    module.image_features = lambda images: (calls.append((module.iteration, len(images))), find(images))[1]
    fit(module, data={"samples_per_epoch": 8})
    assert sorted({iteration for iteration, _ in calls}) == [0, 2, 4]
    condition = module.condition
    assert int(condition.count) == 8 and set(condition.labels[:8].tolist()) <= {0, 1, 2} and not condition.labels[8:].any()
    assert 0 <= float(condition.agreement) <= 1 + 1e-6
    assert module.trainer.callback_metrics["train/cluster_agreement"] == condition.agreement
    shares = condition.draw(3000).mean(0)
    assert torch.allclose(shares, torch.bincount(condition.labels[:8], minlength=3) / 8, atol=0.04)
    assert int(torch.bincount(condition.labels[:8]).sum()) == 8
    vectors = condition.of_batch({"index": torch.tensor([5, 2])})
    assert vectors.argmax(1).tolist() == condition.labels[[5, 2]].tolist()


def test_both_steps_have_the_fakes_of_the_reals_clusters():
    module, calls = build(), []
    discriminate = module.discriminate
    module.discriminate = lambda images, vectors: (calls.append((images.detach(), vectors)), discriminate(images, vectors))[1]
    fit(module, max_epochs=1)
    for real, fake, again in zip(*(calls[i::3] for i in range(3)), strict=True):
        assert torch.equal(fake[0], again[0]) and torch.equal(real[1], fake[1]) and torch.equal(fake[1], again[1])


def test_the_course_of_ada_is_logged():
    module = fit(build(augment="ada"), max_epochs=1)
    assert int(module.augment.calls) == 2 and "train/ada_p" in module.trainer.callback_metrics


def test_one_cluster_is_no_condition():
    module = fit(build(condition=CLUSTERS | {"num_clusters": 1}))
    ones = torch.ones(4, 1)
    assert not module.condition.labels.any() and torch.equal(module.condition.draw(4), ones)
    images = torch.rand(4, 3, 16, 16)
    logits = module.discriminator.linear(module.discriminator.features(images)).squeeze(1)
    assert torch.equal(module.discriminator(images, ones).logits, logits)  # unconditional networks
    assert len(module.generator.embedding(ones).unique(dim=0)) == 1


def test_sngan_takes_clusters_too():
    module = fit(test_sngan.build(condition=CLUSTERS))
    assert int(module.condition.count) == 8 and module.sample(2, labels=[1]).shape == (2, 3, 16, 16)


def test_errors():
    data = SyntheticDataModule([16, 16], num_images=8)
    data.setup()
    for changes, message in (
        ({"max_images": 4}, "max_images is 4; set it to 8"),
        ({"num_clusters": 9, "max_clustered": 20}, "num_clusters is 9, but there are 8 images"),
    ):
        with pytest.raises(UserError, match=message):
            build(condition=CLUSTERS | changes).check_data(data.sets())
    with pytest.raises(UserError, match="condition is .*; expected a condition of classes"):
        build(condition=None)
    with pytest.raises(UserError, match="n_dis is 2; it has to be 1"):
        build(n_dis=2)
