import pytest
import torch

from modules.cdc import CDC
from tests.modules.style_source import TINY, build, differing, fit, moved, networks, source_model  # noqa: F401

# The relational term compares the latents of a rank only.
JOINED_BATCH = ["module.mixing=0.0", "module.path_interval=0", "module.weight_cdc=0.0", "module.iterations=2"]
PARAMETERS = {"cdc": 546_894, "cdc_256": 118_985_579}


def ready(method=CDC, **changes):
    module = build(method, **changes)
    module.load_state_dict(module.convert(networks(source_model())))
    return module


@pytest.mark.parametrize(
    ("side", "taps"),
    [
        (32, ["32.conv2", "16.conv1", "16.conv2", "8.conv1"]),
        (64, ["64.conv2", "32.conv1", "32.conv2", "16.conv1"]),
        (256, ["64.conv2", "32.conv1", "32.conv2", "16.conv1"]),
    ],
)
def test_four_taps_and_heads(side, taps):
    with torch.device("meta"):
        module = CDC(image_size=[side, side], iterations=1)
    assert module.taps == taps
    assert [head.weight.shape for head in module.heads] == [(1, 512, 3, 3)] * 4
    if side > 32:
        assert [module.discriminator.tap_shape(tap) for tap in taps] == [(512, 32), (512, 32), (512, 16), (512, 16)]


def test_equal_networks_have_no_loss_and_the_source_no_gradient():
    module = ready()
    source = module.source_generator
    source.load_state_dict(module.generator.state_dict())
    source.requires_grad_(True)
    module._trainer = None
    torch.manual_seed(0)
    a, b = module.features(torch.randn(4, 8), {1, 3})
    assert all(torch.equal(a[layer], b[layer]) for layer in (1, 3))
    assert not any(features.requires_grad for features in a.values()) and all(f.requires_grad for f in b.values())


def watch(module):
    """Fits a module and returns, for each iteration, whether whole images were judged and what moved."""
    import lightning

    rows = []

    class Watch(lightning.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            self.before = {key: value.clone() for key, value in module.state_dict().items()}
            self.whole = module.whole_images

        def on_train_batch_end(self, trainer, module, *_):
            rows.append((self.whole, moved(self.before, module.state_dict())))

    fit(module, [Watch()])
    return rows


def test_one_iteration_of_four_judges_whole_images_and_only_the_others_move_heads():
    module = build(CDC, r1_interval=0, path_interval=0)
    rows = watch(module)
    assert [whole for whole, _ in rows] == [True, False, False, False]
    for whole, names in rows:
        discriminator = {name for name in names if name.startswith("discriminator.")}
        heads = {name for name in names if name.startswith("heads.")}
        assert bool(heads) is not whole
        if not whole:
            assert heads == {"heads.0.weight", "heads.0.bias"}
            assert discriminator and not {
                n for n in discriminator if n.startswith(("discriminator.conv", "discriminator.linear"))
            }
        assert not {name for name in names if name.startswith(("source_generator.", "anchors"))}
    source = source_model().generator_ema.state_dict()
    assert not moved(dict(module.source_generator.state_dict()), source) - {"w_mean"}


def test_latents_near_the_anchors_have_their_spread():
    module = ready(subspace_std=0.1)
    module.anchors.copy_(10 * torch.eye(10, 8))
    module.generator.mapping = lambda z: z
    w = module.latents(4000)
    assert module.whole_images and all(torch.equal(w[:, 0], w[:, i]) for i in range(w.shape[1]))
    distances = torch.cdist(w[:, 0], module.anchors)
    nearest = distances.argmin(1)
    assert len(nearest.unique()) >= 8
    offsets = w[:, 0] - module.anchors[nearest]
    assert float(offsets.std()) == pytest.approx(0.1, abs=0.01)


def test_the_term_does_not_shift_other_random_numbers():
    """With a weight of nearly 0 all other draws are those without the term."""
    first, second = fit(build(CDC, weight_cdc=0.0)), fit(build(CDC, weight_cdc=1e-30))
    assert not differing(first, second)
    assert differing(first, fit(build(CDC, weight_cdc=1000.0)))
