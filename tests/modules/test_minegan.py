import copy

import lightning
import pytest
import torch

from core.errors import UserError
from modules.base import sampling_mode
from modules.minegan import MineGAN
from tests.modules.style_source import TINY, build, fit, moved, networks, source_model  # noqa: F401

JOINED_BATCH = ["module.mixing=0.0", "module.path_interval=0"]
KILL_CHAIN = ["module.iterations=16"]
PARAMETERS = {"minegan": 418_527, "minegan_256": 89_458_117}


class States(lightning.Callback):
    """Stage and weights after each iteration."""

    def __init__(self):
        self.rows = []

    def on_train_batch_start(self, trainer, module, *_):
        if not self.rows:
            self.rows.append((0, copy.deepcopy(dict(module.state_dict()))))

    def on_train_batch_end(self, trainer, module, *_):
        self.rows.append((module.stage, copy.deepcopy(dict(module.state_dict()))))


def test_first_miner_and_discriminator_train_then_all_parts():
    states = States()
    module = fit(build(MineGAN, iterations=5, miner_iterations=2), [states])
    assert [stage for stage, _ in states.rows] == [0, 0, 0, 1, 1, 1] and module.iteration == 5
    for (_, before), (stage, after) in zip(states.rows, states.rows[1:], strict=False):
        parts = {key.split(".")[0] for key in moved(before, after) if not key.endswith("w_mean")}  # which follows the miner
        expected = {"miner", "discriminator"} | ({"generator"} if stage else set())
        assert parts - {"path_mean", "generator_ema"} == expected
        assert stage or "generator_ema" not in parts
    assert "generator_ema.const" in moved(states.rows[0][1], states.rows[-1][1])


@pytest.mark.parametrize(
    ("iterations", "miner", "stages"), [(5000, 1000, [1000, 4000]), (20, 200, [10, 10]), (2, 1000, [1, 1]), (7, 3, [3, 4])]
)
def test_stages(iterations, miner, stages):
    assert build(MineGAN, iterations=iterations, miner_iterations=miner)._stage_iterations == stages
    with pytest.raises(UserError, match="module.iterations is 1; MineGAN needs"):
        build(MineGAN, iterations=1)


def test_residual_miner_begins_at_the_source_and_samples_pass_through_it():
    module, source = build(MineGAN, miner_init="residual"), source_model().eval()
    module.load_state_dict(module.convert(networks(source)))
    for model in (module, source):
        model.eval()
    with sampling_mode(module, 1, range(2)):
        mine = module.sample(2)
    with sampling_mode(source, 1, range(2)):
        assert torch.equal(mine, source.sample(2))
    module.miner.layers[2].bias.data += 3
    with sampling_mode(module, 1, range(2)):
        assert not torch.equal(mine, module.sample(2))


def test_gradients_of_the_miner_do_not_add_up():
    norms = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            norms.append(float(module.miner.layers[0].weight.grad.norm()))

    module = build(MineGAN, iterations=24, miner_iterations=12, lr=1e-9, path_interval=0)
    fit(module, [Watch()])
    assert sum(norms[12:]) < 3 * sum(norms[:12])


def test_path_lengths_count_in_the_second_stage_alone():
    module = build(MineGAN)
    for stage, names in ((0, ["discriminator", "r1", "generator"]), (1, ["discriminator", "r1", "generator", "path"])):
        module.stage = stage
        assert [phase.name for phase in module.phases()] == names


def test_the_second_stage_goes_on_with_the_optimizers_moments():
    module = fit(build(MineGAN, iterations=6, miner_iterations=3, r1_interval=0))
    first, second = (module.trainer.optimizers[i] for i in (1, 3))
    weight = module.discriminator.conv.weight
    assert (first.state[weight]["step"], second.state[weight]["step"]) == (3, 6)
