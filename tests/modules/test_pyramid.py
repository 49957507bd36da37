"""What stages have in common, on a module whose stage s is one layer: image = tanh(weight_s * a picture + bias)."""

import copy
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from datamodules.synthetic import SyntheticDataModule
from modules.pyramid import PyramidModule

PICTURE = torch.linspace(-1, 1, 80).view(1, 1, 8, 10).expand(-1, 3, -1, -1)


class Layers(PyramidModule):
    """Two stages that learn nothing by themselves: a test sets the weights. Each has a batch norm that sees noise."""

    sizes = [(4, 5), (8, 10)]
    collapse_advice = "module.salt=less"

    def __init__(self, epochs_per_stage=2):
        super().__init__((8, 10), self.sizes, epochs_per_stage)
        self.scales = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.BatchNorm2d(3)) for _ in range(2))
        self.ready = True
        self.seen = []

    @property
    def samples_ready(self):
        return self.ready

    def stage_modules(self, stage):
        return [self.scales[stage]]

    def stage_optimizers(self, stage):
        return [torch.optim.SGD(self.scales[stage].parameters(), 0.0)]

    def training_step(self, batch, batch_idx):
        noise = torch.randn(2, 3, 8, 10)
        self.seen.append(noise)
        self.optimize(self.current_optimizers()[0], self.scales[self.stage](noise).square().mean())

    def sample(self, num_images, size=None):
        pictures = PICTURE.expand(num_images, -1, -1, -1) + 0.1 * torch.randn(num_images, 1, 1, 1)
        return torch.tanh(self.scales[self.stage][0](pictures))

    def reconstruct(self, images):
        return torch.zeros_like(images)


class SetWeights(lightning.Callback):
    """Sets a stage's convolution after the last batch of an epoch, before anything is checked."""

    def __init__(self, epoch, value):
        self.epoch, self.value = epoch, value

    def on_train_batch_end(self, trainer, module, *rest):
        if trainer.is_last_batch and trainer.current_epoch == self.epoch:
            nn.init.constant_(module.scales[module.stage][0].weight, self.value)
            nn.init.zeros_(module.scales[module.stage][0].bias)


def fit(module, *callbacks, root=None, **options):
    lightning.seed_everything(0, verbose=False)
    settings = {"accelerator": "cpu", "max_epochs": -1, "logger": False, "enable_checkpointing": root is not None,
                "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    saver = [ModelCheckpoint(root, "{epoch}", save_top_k=-1, save_last=True, save_on_train_epoch_end=True,
                             save_on_exception=True)] if root else []  # fmt: skip
    data = SyntheticDataModule([8, 10], samples_per_epoch=2, num_images=2)
    lightning.Trainer(**(settings | options), callbacks=[*callbacks, *saver]).fit(module, data)
    return module


def warned(module, *callbacks):
    """The messages about constant images in a fit."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, *callbacks)
    return [str(warning.message) for warning in caught if "nearly constant" in str(warning.message)]


@pytest.mark.parametrize(("epoch", "stage"), [(1, 0), (3, 1)])
def test_a_stage_that_ends_in_one_color_is_reported_once_with_the_advice(epoch, stage):
    (message,) = warned(Layers(), SetWeights(1, 1.0), SetWeights(3, 1.0), SetWeights(epoch, 0.01))
    assert message.startswith(f"scale {stage} {Layers.sizes[stage][0]}×") and "contrast 0.006" in message
    assert message.endswith("Possible remedies: module.salt=less")


def test_stages_with_contrast_are_not_reported_and_those_in_between_are_not_looked_at():
    assert warned(Layers(), SetWeights(0, 0.0), SetWeights(1, 1.0), SetWeights(2, 0.0), SetWeights(3, 1.0)) == []


def test_while_samples_mean_nothing_reconstructions_are_judged():
    module = Layers()
    module.ready = False
    assert len(warned(module, SetWeights(1, 1.0), SetWeights(3, 1.0))) == 2


def test_the_look_at_a_stage_changes_no_random_number_and_no_mode():
    looked = fit(Layers(epochs_per_stage=1), SetWeights(0, 1.0))
    blind = Layers(epochs_per_stage=1)
    blind._warn_if_constant = lambda: None
    fit(blind, SetWeights(0, 1.0))
    assert len(looked.seen) == 4 and all(torch.equal(a, b) for a, b in zip(looked.seen, blind.seen, strict=True))
    looked.stage, looked.scales[0].training = 1, True
    torch.manual_seed(4)
    modes, drawn = [part.training for part in looked.modules()], torch.get_rng_state()
    looked._warn_if_constant()
    assert [part.training for part in looked.modules()] == modes and torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_stop_the_training_before_they_are_saved(tmp_path, value):
    with pytest.raises(FloatingPointError, match=r"scale 1 8×10: .* after epoch 2\. .*learning rates.*module.salt=less"):
        fit(Layers(), SetWeights(2, value), root=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt"]
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["epoch"] == 1 and all(tensor.isfinite().all() for tensor in last["state_dict"].values())


def test_running_statistics_become_the_mean_of_all_ranks_and_weights_agree(tmp_path):
    """Against a batch norm fed by hand with each rank's batches."""

    class Write(lightning.Callback):
        def on_train_end(self, trainer, module):
            state = {"state": module.state_dict(), "seen": module.seen[:1]}
            torch.save(state, tmp_path / f"{trainer.global_rank}.pt")

    fit(Layers(epochs_per_stage=1), Write(), devices=2, strategy="ddp_fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert not torch.equal(ranks[0]["seen"][0], ranks[1]["seen"][0])
    assert all(torch.equal(tensor, ranks[1]["state"][name]) for name, tensor in ranks[0]["state"].items())
    lightning.seed_everything(0, verbose=False)
    by_hand = []
    for rank in ranks:
        stage = copy.deepcopy(Layers().scales[0])
        stage.load_state_dict({name[9:]: t for name, t in ranks[0]["state"].items() if name.startswith("scales.0.")})
        stage[1].reset_running_stats()
        stage(rank["seen"][0])
        by_hand.append(stage[1].running_var)
    assert torch.allclose(ranks[0]["state"]["scales.0.1.running_var"], (by_hand[0] + by_hand[1]) / 2, atol=1e-6)
