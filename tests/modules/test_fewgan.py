import math

import lightning
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from datamodules.image_datamodule import ImageDataModule
from datamodules.synthetic import SyntheticDataModule
from modules.fewgan import FewGAN
from modules.networks.pixelcnn import GatedPixelCNN

TINY = [
    "datamodule.image_size=[16,20]",
    "datamodule.batch_size=2",
    "datamodule.samples_per_epoch=8",
    "module.epochs_per_stage=2",
    "module.min_size=8",
    "module.scale_factor=0.45",
    "module.num_codes=16",
    "module.code_dim=4",
    "module.width=8",
    "module.depth=2",
    "module.prior_width=8",
    "module.prior_layers=2",
    "module.prior_batch_size=2",
    "module.revive_every=2",
]
JOINED_BATCH = ["module.epochs_per_stage=1", "module.prior_dropout=0.0", "module.prior_batch_size={share}"]
PARAMETERS = {"fewgan": 2_806_208, "fewgan_256": 13_871_080}
SIZES = {"min_size": 8, "scale_factor": 0.45, "num_codes": 16, "code_dim": 4, "width": 8, "depth": 2}
PRIOR = {"prior_width": 8, "prior_layers": 2, "prior_batch_size": 2}


def fit(data=None, epochs=1, callbacks=(), **changes):
    lightning.seed_everything(0, verbose=False)
    module = FewGAN(**({"image_size": [16, 20], "epochs_per_stage": epochs} | SIZES | PRIOR | changes))
    data = data or SyntheticDataModule([16, 20], batch_size=2, samples_per_epoch=8)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, data)
    return module.eval()


@pytest.fixture(scope="module")
def trained():
    return fit(epochs=2)


@pytest.fixture(scope="module")
def sets():
    data = SyntheticDataModule([16, 20], batch_size=2, samples_per_epoch=8)
    data.setup()
    return data.sets()


class Watch(lightning.Callback):
    """Calls `function(module)` before the first batch of every epoch, when the stage has been entered."""

    def __init__(self, function):
        self.function = function

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 0:
            self.function(module)


def test_stages_are_the_scales_and_the_prior(trained):
    assert trained.num_scales == 3 and trained.num_stages == 4
    assert trained.stage == trained.prior_stage and trained.stage_name == "prior 8×10"


def test_only_the_stage_in_training_is_trainable_and_in_train_mode():
    seen = {}

    def note(module):
        grad = {n.split(".")[0] + n.split(".")[1] for n, p in module.named_parameters() if p.requires_grad and "prior" not in n}
        seen[module.stage] = grad, module.generators[1].training, module.prior.training, module.prior_best.training

    fit(callbacks=[Watch(note)])
    assert seen[0] == ({"generators0", "discriminators0"}, False, False, False)
    assert seen[1] == ({"generators1", "discriminators1"}, True, False, False)
    assert seen[3] == (set(), False, True, False)


def test_the_cached_chain_equals_the_chain_and_is_deterministic():
    checked = []

    def compare(module):
        if module.stage in (1, 2):
            images = module.trainer.datamodule.sets()["side"]
            for i in range(len(images)):
                image = images[i].unsqueeze(0)
                out = module.reconstruct_at(image, module.stage - 1)
                size = module.sizes[module.stage]
                again = F.interpolate(out, size, mode="bicubic", antialias=True).clamp(-1, 1)
                assert torch.equal(module._inputs["side"][i : i + 1], again if out.shape[-2:] != size else out)
            checked.append(module.stage)

    fit(callbacks=[Watch(compare)])
    assert checked == [1, 2]


def test_a_scale_starts_as_the_one_below_resized(sets):
    """Eq. 5 with a residual of zero: before a scale is trained it adds nothing."""
    torch.manual_seed(0)
    module = FewGAN([16, 20], **SIZES, **PRIOR).eval()
    image = sets["image"].stack()[:1]
    coarse = module.reconstruct_at(image, 0)
    finer = F.interpolate(coarse, module.sizes[1], mode="bicubic", antialias=True).clamp(-1, 1)
    assert torch.equal(module.reconstruct_at(image, 1), finer)


def critic_weights_after_one_epoch(critic_on_side, shift):
    """Weights of the coarsest critic after one epoch on side images that are brightened by `shift`."""
    data = SyntheticDataModule([16, 20], batch_size=2, samples_per_epoch=2)
    data.setup()
    side = data.sets()["side"]
    getitem = type(side).__getitem__
    side.__class__ = type("Shifted", (type(side),), {"__getitem__": lambda s, i: (getitem(s, i) + shift).clamp(-1, 1)})
    final = {}
    watch = Watch(lambda m: final.update({1: m.discriminators[0].state_dict()}) if m.stage == 1 else None)
    fit(data, critic_on_side=critic_on_side, callbacks=[watch], image_size=[16, 20])
    return torch.cat([v.flatten() for v in final[1].values()])


@pytest.mark.parametrize(("critic_on_side", "equal"), [(False, True), (True, False)])
def test_without_critic_on_side_the_critics_step_does_not_depend_on_side_images(critic_on_side, equal):
    first, second = (critic_weights_after_one_epoch(critic_on_side, shift) for shift in (0.0, 0.5))
    assert torch.equal(first, second) == equal


def test_side_images_are_never_reals(monkeypatch):
    import modules.pyramid as pyramid

    data = SyntheticDataModule([16, 20], batch_size=2, samples_per_epoch=8)
    data.setup()
    allowed = data.sets()["image"].stack()
    reals = []
    original = pyramid.gradient_penalty
    monkeypatch.setattr(pyramid, "gradient_penalty", lambda c, r, f: reals.append(r) or original(c, r, f))
    fit(data)
    for batch in reals:
        candidates = pyramid.resize(allowed, tuple(batch.shape[-2:]))
        for image in batch:
            assert (candidates - image).abs().amax((1, 2, 3)).min() < 1e-6
    assert len(reals) == 3 * 4


def test_injection_at_every_scale_keeps_the_size_and_names_the_allowed_scales(trained):
    image = torch.rand(2, 3, 31, 22) * 2 - 1
    for scale in range(trained.num_scales):
        out = trained.inject(image, scale)
        assert out.shape == image.shape and out.abs().max() <= 1 and not out.requires_grad
    with pytest.raises(ValueError, match=r"scale is 3.*0 \(coarsest\) to 2 \(finest\)"):
        trained.inject(image, 3)


def test_finer_injection_keeps_more_of_the_image(trained, sets):
    images = sets["side"].stack()
    errors = [(trained.inject(images, scale) - images).square().mean().item() for scale in (0, 2)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("size", [None, (16, 40), (33, 20)])
def test_samples_have_any_size(trained, size):
    images = trained.sample(2, size)
    assert images.shape == (2, 3, *(size or (16, 20))) and images.isfinite().all() and images.abs().max() <= 1


def test_samples_follow_the_global_seed_and_differ_otherwise(trained):
    def draw(seed):
        torch.manual_seed(seed)
        return trained.sample(2)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_fill_changes_only_codes_near_the_hole_and_gives_several_modes(trained):
    """Outside the hole widened by the encoder, pixels beyond the decoder chain's reach are bit-identical."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 16, 80) * 2 - 1
    mask = torch.zeros(1, 1, 16, 80)
    mask[..., :6] = 1
    first, second = trained.inpaint(image, mask, num_images=2)
    assert not torch.equal(first[..., :6], second[..., :6])
    assert torch.equal(first[..., 60:], second[..., 60:])
    # another batch size, so equal up to rounding
    assert torch.allclose(first[..., 60:], trained.reconstruct(image)[0, ..., 60:], atol=1e-5)


def test_fill_of_an_empty_mask_is_the_plain_reconstruction(trained):
    image = torch.rand(1, 3, 16, 20) * 2 - 1
    filled = trained.inpaint(image, torch.zeros(1, 1, 16, 20), num_images=2)
    assert torch.allclose(filled[:1], trained.reconstruct(image), atol=1e-5) and torch.equal(filled[0], filled[1])


def test_fill_keeps_the_likeliest_candidate(trained):
    image, mask = torch.rand(1, 3, 16, 20) * 2 - 1, torch.ones(1, 1, 16, 20)
    draws = {}
    sample = trained.prior_best.sample
    trained.prior_best.sample = lambda *a, **k: draws.setdefault("codes", sample(*a, **k))
    try:
        best = trained.inpaint(image, mask, num_images=1, candidates=4)
    finally:
        del trained.prior_best.sample
    likeliest = draws["codes"][trained.prior_best.log_prob(draws["codes"]).argmax()]
    assert torch.allclose(best[0], trained.decode(likeliest.unsqueeze(0), (16, 20))[0], atol=1e-5)


def test_samples_are_ready_after_the_first_epoch_of_the_prior():
    ready = {}
    fit(callbacks=[Watch(lambda m: ready.update({m.stage: m.samples_ready}))], epochs=[1, 1, 1, 2])
    assert ready == {0: False, 1: False, 2: False, 3: True}


def test_the_best_prior_is_kept_and_training_stops_when_held_out_bits_stop_falling():
    """With a learning rate that destroys it, the first epoch's prior stays and the run ends after `prior_patience` epochs."""
    epochs = []
    module = fit(
        callbacks=[Watch(lambda m: epochs.append(m.stage))], epochs=[1, 1, 1, 30], prior_lr=3.0, prior_patience=2
    )
    assert 2 <= epochs.count(3) < 30
    assert module.prior_stale_epochs == 2 and module.prior_best_bits.isfinite()
    different = any(
        not torch.equal(a, b) for a, b in zip(module.prior.parameters(), module.prior_best.parameters(), strict=True)
    )
    assert different


def test_diagnostics_against_direct_computation(trained, sets):
    numbers = trained.diagnostics(sets)
    images = sets["image"].stack()
    rmse = (trained.inject(images) - images).square().mean((1, 2, 3)).sqrt()
    assert numbers["reconstruction_rmse_scale2"] == pytest.approx(rmse.mean().item(), rel=0.02)  # there: not clamped
    codes = trained.vq.codes(F.interpolate(images, (8, 10), mode="bicubic", antialias=True).clamp(-1, 1))
    assert numbers["codes_used"] == len(codes.unique()) / 16
    assert numbers["uniform_bits_per_code"] == 4.0
    heldout = sets["side_heldout"].stack()
    held = trained.vq.codes(F.interpolate(heldout, (8, 10), mode="bicubic", antialias=True).clamp(-1, 1))
    nll = F.cross_entropy(trained.prior_best(held), held).item() / math.log(2)
    assert numbers["prior_bits_per_code"] == pytest.approx(nll, rel=1e-4)


def test_the_prior_overfits_one_grid_to_nothing():
    torch.manual_seed(0)
    prior, codes = GatedPixelCNN(16, width=16, num_layers=2, dropout=0.0), torch.randint(16, (1, 6, 7))
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(prior(codes), codes).backward()
        optimizer.step()
    assert prior.eval().bits_per_code(codes) < 0.05


def test_few_shot_data_without_side_images_is_refused(tmp_path):
    Image.new("RGB", (20, 16), (40, 80, 120)).save(tmp_path / "one.png")
    data = ImageDataModule(str(tmp_path), [16, 20])
    data.setup()
    with pytest.raises(ValueError, match="side_root"):
        FewGAN([16, 20], **SIZES, **PRIOR).check_data(data.sets())


def test_one_training_image_is_enough():
    module = fit(SyntheticDataModule([16, 20], batch_size=1, samples_per_epoch=4, num_images=1))
    assert module.sample(1).isfinite().all()


def test_epochs_per_stage_may_be_a_list_of_the_right_length():
    module = FewGAN([16, 20], epochs_per_stage=[4, 3, 2, 1], **SIZES, **PRIOR)
    assert [module.stage_at(e) for e in range(12)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    module = FewGAN([16, 20], epochs_per_stage=[4, 1, 2], **SIZES, **PRIOR)  # first, between, last
    assert [module.stage_at(e) for e in range(8)] == [0, 0, 0, 0, 1, 2, 3, 3]
    with pytest.raises(ValueError, match=r"\[4, 3\]; expected 4 number"):
        FewGAN([16, 20], epochs_per_stage=[4, 3], **SIZES, **PRIOR)


def test_a_size_without_room_for_the_networks_is_refused(trained):
    with pytest.raises(ValueError, match="too small"):
        trained.sample(1, (1, 1))


def test_codes_are_not_revived_in_the_last_epoch_of_scale_0(monkeypatch):
    """A re-seeded code would go into the prior without having been trained."""
    from modules.networks.vqvae import VectorQuantizer

    epochs, current = [], []
    monkeypatch.setattr(VectorQuantizer, "revive", lambda *_: epochs.append(current[-1]))
    fit(epochs=[3, 1, 1, 1], revive_every=2, callbacks=[Watch(lambda m: current.append(m.current_epoch))])
    assert epochs == [0, 0, 1, 1]
