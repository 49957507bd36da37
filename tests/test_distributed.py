"""Several gloo processes train as one process with the joined batch, on the same images, each with noise of its own."""

import hashlib
import math
from collections import Counter

import lightning
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from cli.build import build
from cli.loader import load_config
from datamodules.folder import ImageFolder
from datamodules.sampler import JoinedSampler
from datamodules.synthetic import SyntheticDataModule
from modules.base import GenerativeModule
from modules.losses.adversarial import wasserstein_d, wasserstein_g
from modules.losses.penalties import gradient_penalty
from tests.contract.tiers import HEADS, SYNTHETIC, TRAINED, by_path, method_tests, tiny

JOINED = 4  # images in a step, over all processes
SAMPLES = 8  # in an epoch


class Toy(GenerativeModule):
    """A GAN round with a penalty by double backward and a part that is frozen until the second epoch (P 3.5)."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 3, 1)).double()
        self.discriminator = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 1, 1)).double()
        self.generator[2].requires_grad_(False)

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


class Drawings(SyntheticDataModule):
    """Sets whose images have the default dtype; batches are float32 and Lightning's to convert."""

    def load_sets(self):
        sets = super().load_sets()
        for images in sets.values():
            images.__class__ = DrawingsOfDefaultType
        return sets


class DrawingsOfDefaultType(ImageFolder):
    def __getitem__(self, index):
        return super().__getitem__(index).to(torch.get_default_dtype())


class Unchanged(nn.Module):
    """In place of batch norm, also of a conditional one."""

    def forward(self, images, *condition):
        return images


RANKS = [2, pytest.param(4, marks=pytest.mark.slow)]


class JoinedDraws(TorchFunctionMode):
    """Random numbers of a step as one process with the joined batch draws them, of which each rank gets its samples' part.

    The k-th sample of rank r of W is sample k * W + r of the joined batch; a draw holds one or more such batches in a row.
    """

    def __init__(self, key, batch_size, ranks, rank):
        super().__init__()
        self.key, self.batch_size, self.ranks, self.rank, self.calls = key, batch_size, ranks, rank, 0

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is torch.Tensor.float:
            return arguments[0].double()  # losses go up to 32 bits, not down to them
        single = function is torch.randint and () in arguments  # of a stream that all ranks share
        if function not in (torch.rand, torch.randn, torch.rand_like, torch.randn_like, torch.randint) or single:
            return function(*arguments, **(keywords or {}))
        if function in (torch.rand_like, torch.randn_like):
            function, shape = torch.rand if function is torch.rand_like else torch.randn, arguments[0].shape
        elif function is torch.randint:
            function, shape = (lambda *size, generator: torch.randint(arguments[0], size, generator=generator)), arguments[1]
        else:
            shape = arguments[0] if isinstance(arguments[0], tuple) else arguments
        self.calls += 1
        digest = hashlib.sha256(f"{self.key} {self.calls}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        whole = function(shape[0] // self.batch_size, self.ranks * self.batch_size, *shape[1:], generator=generator)
        return whole[:, self.rank :: self.ranks].reshape(shape)


class SeenDraws(TorchFunctionMode):
    """Keeps a digest of everything that is drawn but single numbers. Indices are few and may be equal by chance: these begin
    with "i"."""

    def __init__(self, digests):
        super().__init__()
        self.digests = digests

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        drawn = function(*arguments, **(keywords or {}))
        if function in (torch.rand, torch.randn, torch.randn_like, torch.randint) and drawn.numel() > 1:
            kind = "f" if drawn.is_floating_point() else "i"
            self.digests.append(kind + hashlib.sha256(drawn.numpy().tobytes()).hexdigest())
        return drawn


class Witness(lightning.Callback):
    """Writes down for each rank its weights, draws and images, how many gradients each optimizer stepped with, and how many
    numbers the processes reduced: by `strategy.reduce`, and by the reducer of DistributedDataParallel ("buckets"), which has
    nothing to do here."""

    def __init__(self, folder, exact):
        self.folder, self.exact = folder, exact
        self.counts, self.buckets, self.stepped, self.draws, self.indices = [], [], [], [], []

    def on_fit_start(self, trainer, module):
        reduce, step, optimize = trainer.strategy.reduce, module.training_step, module.optimize

        def counted_reduce(tensor, *arguments, **keywords):
            self.counts.append(tensor.numel())
            return reduce(tensor, *arguments, **keywords)

        def counted_optimize(optimizer, *arguments, **keywords):
            optimize(optimizer, *arguments, **keywords)
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            self.stepped.append(sum(p.grad.numel() for p in parameters if p.grad is not None))

        def watched_step(batch, batch_idx):
            self.indices.append(batch["index"].tolist())
            key, ranks = (trainer.current_epoch, batch_idx), (trainer.world_size, trainer.global_rank)
            with JoinedDraws(key, len(batch["index"]), *ranks) if self.exact else SeenDraws(self.draws):
                step(batch, batch_idx)

        trainer.strategy.reduce, module.training_step, module.optimize = counted_reduce, watched_step, counted_optimize

    def on_train_start(self, trainer, module):
        def counted_bucket(group, bucket):
            self.buckets.append(bucket.buffer().numel())
            return allreduce_hook(group, bucket)

        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(None, counted_bucket)

    def on_train_end(self, trainer, module):
        state = {"weights": dict(module.state_dict()), "optimizers": [o.state_dict() for o in trainer.optimizers]}
        lists = {name: getattr(self, name) for name in ("counts", "buckets", "stepped", "draws", "indices")}
        torch.save({**state, **lists}, self.folder / f"{trainer.global_rank}.pt")


def fit(module, folder, ranks=1, epochs=-1, exact=False, **data):
    """Trains on drawn images; the records of all ranks. `exact`: in 64 bits and with the draws of the joined batch."""
    folder.mkdir()
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo") if ranks > 1 else "auto"
    keys = {"image_size": [16, 20], "batch_size": JOINED // ranks, "samples_per_epoch": SAMPLES, "num_images": 5, **data}
    trainer = lightning.Trainer(
        accelerator="cpu", devices=ranks, strategy=strategy, max_epochs=epochs, logger=False,
        precision="64-true" if exact else "32-true", limit_val_batches=0, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Witness(folder, exact)],
    )  # fmt: skip
    torch.set_default_dtype(torch.float64 if exact else torch.float32)  # also outside of steps
    try:
        trainer.fit(module, Drawings(**keys))
    finally:
        torch.set_default_dtype(torch.float32)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def make(path, ranks, exact):
    """Module and data of a configuration at the sizes TINY; `exact`: with the settings JOINED_BATCH of its tests, which may
    be the reason why there are none, and without what an image has from the others of its batch."""
    settings = getattr(method_tests(path), "JOINED_BATCH", [])
    if isinstance(settings, str):
        pytest.skip(settings)
    settings = [setting.format(share=JOINED // ranks) for setting in settings] if exact else []
    config = load_config([str(path), SYNTHETIC, *tiny(path), *settings])
    lightning.seed_everything(0, verbose=False)
    module = build(config.module)
    for part in list(module.modules()) if exact else ():
        if hasattr(part, "deviation_group"):  # of images whose standard deviation the discriminator sees
            part.deviation_group = 1
        for name, layer in part.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                setattr(part, name, Unchanged())
    data = {key: value for key, value in OmegaConf.to_container(config.datamodule).items() if key != "class_path"}
    return module, data | {"batch_size": JOINED // ranks, "samples_per_epoch": SAMPLES}


def largest_difference(first, second):
    """Of two state dictionaries; 0 only for equal ones, infinities included."""
    assert first.keys() == second.keys()
    pairs = [(first[k].double(), second[k].double()) for k in first]
    return max((float((a - b).abs().max()) for a, b in pairs if not torch.equal(a, b)), default=0)


def tensors(optimizer_states):
    """Flat dictionary of everything that the optimizers remember."""
    return {
        f"{number}.{index}.{name}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizer_states)
        for index, values in optimizer["state"].items()
        for name, value in values.items()
    }


def assert_ranks_equal(records):
    for other in records[1:]:
        assert largest_difference(records[0]["weights"], other["weights"]) == 0
        assert largest_difference(tensors(records[0]["optimizers"]), tensors(other["optimizers"])) == 0


def test_a_toy_on_two_processes_equals_the_joined_batch(tmp_path):
    lightning.seed_everything(0, verbose=False)
    initial = {k: v.clone() for k, v in Toy().state_dict().items()}
    runs = []
    for ranks in (1, 2):
        lightning.seed_everything(0, verbose=False)
        runs.append(fit(Toy(), tmp_path / str(ranks), ranks, epochs=2))
    (joined,), two = runs
    assert_ranks_equal(two)
    assert largest_difference(two[0]["weights"], joined["weights"]) < 1e-12
    assert largest_difference(two[0]["weights"], initial) > 0.01
    toy = Toy()
    discriminator = sum(p.numel() for p in toy.discriminator.parameters())
    early = sum(p.numel() for p in toy.generator.parameters() if p.requires_grad)
    late = sum(p.numel() for p in toy.generator.parameters())
    counts = [count for count in two[0]["counts"] if count > 1]  # Lightning sends flags of one number
    assert counts == [discriminator, early] * 2 + [discriminator, late] * 2 and not two[0]["buckets"]


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """Records of one process with the joined batch, by configuration."""
    records = {}

    def get(path):
        if path not in records:
            module, data = make(path, 1, True)
            records[path] = fit(module, tmp_path_factory.mktemp(path.stem) / "one", exact=True, **data)[0]
        return records[path]

    return get


@pytest.mark.parametrize("ranks", RANKS)
# CDC's discriminator stops early in most iterations; BigGAN judges reals and fakes in one batch, here with their priors.
@by_path([*HEADS, *(path for path in TRAINED if path.stem in ("cdc", "disp_biggan"))])
def test_processes_equal_one_with_the_joined_batch(tmp_path, joined, path, ranks):
    """All stages, penalties and noise included, without batch statistics. The gradients of each step are reduced once, and
    those that no step uses never."""
    module, data = make(path, ranks, True)
    initial = {key: value.clone() for key, value in module.state_dict().items()}
    records, one = fit(module, tmp_path / "run", ranks, exact=True, **data), joined(path)
    assert_ranks_equal(records)
    assert largest_difference(records[0]["weights"], one["weights"]) < 1e-9
    assert largest_difference(tensors(records[0]["optimizers"]), tensors(one["optimizers"])) < 1e-9
    assert largest_difference(records[0]["weights"], initial) > 1e-3
    counts = iter(records[0]["counts"])
    assert all(stepped in counts for stepped in records[0]["stepped"]), "in this order; methods may reduce more"
    assert records[0]["stepped"] == one["stepped"] and not records[0]["buckets"]
    optimizers = [optimizer for stage in range(module.num_stages) for optimizer in module.stage_optimizers(stage)]
    largest = max(sum(p.numel() for group in o.param_groups for p in group["params"]) for o in optimizers)
    assert max(one["stepped"]) == largest or path not in HEADS  # CDC steps with the last layers or with a head


@pytest.mark.parametrize("ranks", RANKS)
@by_path(HEADS)
def test_ranks_stay_equal_and_draw_noise_of_their_own(tmp_path, path, ranks):
    """As shipped, with batch statistics. Style mixing draws on some ranks only."""
    module, data = make(path, ranks, False)
    records = fit(module, tmp_path / "run", ranks, **data)
    assert_ranks_equal(records)
    draws = [record["draws"] for record in records]
    assert min(map(len, draws)) >= 8 // ranks  # at least one in each iteration
    assert len({tuple(drawn) for drawn in draws}) == ranks
    numbers = [digest for drawn in draws for digest in drawn if digest.startswith("f")]
    assert len(set(numbers)) == len(numbers)


def spread(rows, size):
    counts = Counter(rows)
    assert set(counts) <= set(range(size))
    return max(counts.values()) - (min(counts.values()) if len(counts) == size else 0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 37])
def test_no_image_is_drawn_more_than_once_more_than_another(size, ranks):
    """Over all ranks, in every epoch, after any number of steps and whatever a loader leaves out at the end."""
    for samples, batch_size in [(4000, 4), (10, 1), (23, 2), (7, 3)]:
        share = -(-samples // ranks)
        for epoch in range(3):
            parts = []
            for rank in range(ranks):
                sampler = JoinedSampler({"image": size}, share * ranks, 1, ranks, rank)
                sampler.set_epoch(epoch)
                parts.append([index for (index,) in sampler])
            assert {len(part) for part in parts} == {share}
            steps = share // batch_size
            for seen in {1, steps // 2, steps} - {0}:
                assert spread([i for part in parts for i in part[: seen * batch_size]], size) <= 1


@pytest.mark.parametrize(("size", "ranks"), [(1, 2), (1, 4), (3, 2), (3, 4), (10, 2), (10, 4)])
def test_processes_see_each_image_equally_often(tmp_path, size, ranks):
    data = {"num_images": size, "samples_per_epoch": 13, "batch_size": 1}
    records = fit(Toy(), tmp_path / "run", ranks, epochs=2, **data)
    steps = math.ceil(13 / ranks)
    for epoch in range(2):
        rows = [i for record in records for batch in record["indices"][epoch * steps : (epoch + 1) * steps] for i in batch]
        assert len(rows) == steps * ranks and spread(rows, size) <= 1


def test_penalty_is_the_same_for_the_same_draws():
    critic = nn.Conv2d(3, 1, 3)
    reals, fakes = torch.randn(2, 2, 3, 8, 8)
    torch.manual_seed(3)
    first = gradient_penalty(critic, reals, fakes)
    torch.manual_seed(3)
    assert torch.equal(first, gradient_penalty(critic, reals, fakes))
