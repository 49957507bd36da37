import lightning
import pytest
import torch
from torch import nn

from datamodules.synthetic import SyntheticDataModule
from modules.base import GenerativeModule, sampling_mode


class Constant(GenerativeModule):
    """Learns one color."""

    def __init__(self):
        super().__init__()
        self.save_hyperparameters()
        self.color = nn.Parameter(torch.zeros(3))
        self.anchor = nn.BatchNorm2d(3)

    def configure_optimizers(self):
        return [torch.optim.SGD([self.color], 0.5)]

    def frozen(self):
        return [self.anchor]

    def training_step(self, batch, batch_idx):
        self.optimize(self.optimizers(), (self.anchor(batch["image"]).mean((0, 2, 3)) - self.color).square().sum())


class TwoOptimizers(Constant):
    def configure_optimizers(self):
        return [torch.optim.SGD([self.color], 0.5), torch.optim.SGD(self.anchor.parameters(), 0.1)]


def fit(module, epochs=1, checkpoint=None, **settings):
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(module, SyntheticDataModule([8, 8], batch_size=2, samples_per_epoch=6), ckpt_path=checkpoint)
    return trainer


def test_iterations_and_images_are_counted_and_frozen_parts_stay_in_eval():
    module = Constant()
    module.eval()  # Lightning would train it in eval mode
    trainer = fit(module, epochs=2)
    assert module.iteration == 6 and module.images_seen == 12 and trainer.global_step == 6
    assert module.training and not module.anchor.training
    assert (module.anchor.running_mean == 0).all() and module.anchor.num_batches_tracked == 0
    assert (module.color != 0).any()


def test_clipping_bounds_the_step():
    module = Constant()
    trainer = fit(module)
    before = module.color.detach().clone()
    module.optimize(module.optimizers(), 1e6 * module.color.sum(), clip_norm=1e-3)
    assert (module.color - before).norm().item() == pytest.approx(0.5 * 1e-3, rel=1e-3) and trainer.world_size == 1


def test_a_checkpoint_of_another_class_or_another_number_of_optimizers_is_refused(tmp_path):
    fit(Constant()).save_checkpoint(tmp_path / "constant.ckpt")
    with pytest.raises(ValueError, match="written by .*Constant, not by .*TwoOptimizers"):
        fit(TwoOptimizers(), epochs=2, checkpoint=tmp_path / "constant.ckpt")
    checkpoint = torch.load(tmp_path / "constant.ckpt", weights_only=True)
    checkpoint["optimizer_states"] *= 2
    torch.save(checkpoint, tmp_path / "more.ckpt")
    with pytest.raises(ValueError, match="holds 2 optimizers, Constant as configured has 1"):
        fit(Constant(), epochs=2, checkpoint=tmp_path / "more.ckpt")


def test_sampling_mode_restores_modes_gradients_and_random_state_even_after_an_error():
    module = nn.Sequential(nn.Dropout(), nn.Dropout())
    module[1].eval()
    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), sampling_mode(module, 3):
        assert not module[0].training and not torch.is_grad_enabled()
        assert torch.equal(torch.rand(4), torch.rand(4, generator=torch.Generator().manual_seed(3)))
        raise RuntimeError("stop")
    assert module.training and module[0].training and not module[1].training and torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeds_differ_by_epoch_and_rank_and_the_common_one_does_not(monkeypatch):
    module = Constant()
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    seeds = set()
    for epoch in range(3):
        monkeypatch.setattr(Constant, "current_epoch", epoch)
        common = set()
        for rank in range(3):
            monkeypatch.setattr(Constant, "global_rank", rank)
            seeds.add(module.epoch_seed())
            common.add(module.epoch_seed(shared=True))
        assert len(common) == 1
        seeds |= common
    assert len(seeds) == 12


def test_a_method_without_sample_says_so():
    with pytest.raises(NotImplementedError, match="Constant does not define sample"):
        Constant().sample(1)
