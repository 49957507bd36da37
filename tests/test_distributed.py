"""Two processes with half of the batch each train as one process with the whole batch."""

import lightning
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from datamodules.synthetic import SyntheticDataModule
from modules.base import GenerativeModule
from modules.fewgan import FewGAN
from modules.losses.adversarial import wasserstein_d, wasserstein_g
from modules.losses.penalties import gradient_penalty


class Toy(GenerativeModule):
    """A GAN round with a penalty by double backward and a part that is frozen until the second epoch (P 3.5)."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 3, 1)).double()
        self.discriminator = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 1, 1)).double()
        self.generator[2].requires_grad_(False)
        self.reduced = []

    def configure_optimizers(self):
        return [torch.optim.Adam(self.generator.parameters(), 0.01), torch.optim.SGD(self.discriminator.parameters(), 0.1)]

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1:
            self.generator[2].requires_grad_(True)
        g_opt, d_opt = self.optimizers()
        reals, fakes = batch["image"].double(), self.generator(batch["side"].double())
        slope = self.discriminator(reals.requires_grad_()).sum()
        (gradient,) = torch.autograd.grad(slope, reals, create_graph=True)
        loss_d = wasserstein_d(self.discriminator(reals), self.discriminator(fakes.detach()))
        self.optimize(d_opt, loss_d + gradient.square().mean())
        self.optimize(g_opt, wasserstein_g(self.discriminator(fakes)), clip_norm=0.5)


class Count(lightning.Callback):
    """Counts the numbers that go through `strategy.reduce` for each step, and keeps every rank's weights."""

    def __init__(self, folder):
        self.folder, self.counts = folder, []

    def on_fit_start(self, trainer, module):
        reduce = trainer.strategy.reduce

        def counted(tensor, *arguments, **keywords):
            self.counts.append(tensor.numel())
            return reduce(tensor, *arguments, **keywords)

        trainer.strategy.reduce = counted

    def on_train_end(self, trainer, module):
        torch.save((dict(module.state_dict()), self.counts), self.folder / f"{trainer.global_rank}.pt")


def fit(make, folder, devices, epochs, **data):
    lightning.seed_everything(0, verbose=False)
    module = make()
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo") if devices > 1 else "auto"
    batches = SyntheticDataModule([16, 20], batch_size=4 // devices, samples_per_epoch=16, num_images=5, **data)
    folder.mkdir()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=[Count(folder)],
    )  # fmt: skip
    trainer.fit(module, batches)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(devices)]


def largest_difference(first, second):
    pairs = [(first[k].double(), second[k].double()) for k in first]
    return max(((a - b).abs().max().item() for a, b in pairs if not torch.equal(a, b)), default=0)  # equal: also inf


def test_a_toy_on_two_processes_equals_the_joined_batch(tmp_path):
    ((joined, _),) = fit(Toy, tmp_path / "one", devices=1, epochs=2)
    (first, counts), (second, _) = fit(Toy, tmp_path / "two", devices=2, epochs=2)
    assert largest_difference(first, second) == 0
    assert largest_difference(first, joined) < 1e-12
    initial = Toy().state_dict()
    assert largest_difference(first, initial) > 0.01


def test_only_gradients_of_the_stepped_parameters_are_reduced(tmp_path):
    (_, counts), _ = fit(Toy, tmp_path / "two", devices=2, epochs=2)
    toy = Toy()
    discriminator = sum(p.numel() for p in toy.discriminator.parameters())
    early = sum(p.numel() for p in toy.generator.parameters() if p.requires_grad)
    late = sum(p.numel() for p in toy.generator.parameters())
    counts = [count for count in counts if count > 1]  # Lightning sends flags of one number
    assert counts == [discriminator, early] * 4 + [discriminator, late] * 4


@pytest.mark.parametrize("epochs", [1, 3])
def test_fewgan_on_two_processes_equals_the_joined_batch(tmp_path, epochs):
    """Scale by scale, without the penalty, whose mixing factors are drawn on each rank; up to float32 rounding."""

    def make():
        sizes = {"min_size": 8, "scale_factor": 0.45, "num_codes": 16, "code_dim": 4, "width": 8, "depth": 2}
        return FewGAN([16, 20], 1, weight_gp=0.0, lr_g=1e-3, betas=(0.0, 0.9), prior_width=8, prior_layers=2, **sizes)

    ((joined, _),) = fit(make, tmp_path / "one", devices=1, epochs=epochs)
    (first, _), (second, _) = fit(make, tmp_path / "two", devices=2, epochs=epochs)
    assert largest_difference(first, second) == 0
    weights = {k: v for k, v in joined.items() if k.startswith("generators")}
    assert largest_difference(weights, first) < 2e-4
    assert largest_difference(weights, make().state_dict()) > 0.01


def test_penalty_is_the_same_for_the_same_draws():
    critic = nn.Conv2d(3, 1, 3)
    reals, fakes = torch.randn(2, 2, 3, 8, 8)
    torch.manual_seed(3)
    first = gradient_penalty(critic, reals, fakes)
    torch.manual_seed(3)
    assert torch.equal(first, gradient_penalty(critic, reals, fakes))
