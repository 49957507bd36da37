"""The plan of a training, for every YAML in configs/ at the method's own tiny sizes.

How exact it is: `python -m tests.benchmarks.plan`.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch

import train
from cli.loader import load_config
from core.units import human_bytes, human_time
from datamodules.synthetic import SyntheticDataModule
from experiment.cost import CostEstimate, PeakMemory, StageTimer, estimate_cost, plan, sample_cost
from modules.bank import BankModule
from modules.gpdm import GPDM
from modules.gpnn import GPNN
from modules.singan import SinGAN
from tests.contract.tiers import DISTINCT, by_path, tiny

ROOT = Path(__file__).parent.parent.parent
every_method = by_path(DISTINCT)


def prepared(path, run_dir):
    """Trainer, module and data module as `train.py --dry-run` makes them."""
    synthetic = "datamodule.class_path=datamodules.synthetic.SyntheticDataModule"
    arguments = [str(path), synthetic, *tiny(path), "trainer.accelerator=cpu", "callbacks=null", "logger=null"]
    return train.prepare(load_config([*arguments, f"run_dir={run_dir}"]), dry_run=True)[:3]


@every_method
def test_a_plan_changes_nothing_and_writes_nothing(path, tmp_path, monkeypatch, recwarn):
    trainer, module, datamodule = prepared(path, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    recwarn.clear()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    settings, numbers, workers = vars(datamodule).copy(), torch.get_rng_state(), datamodule.num_workers
    text = plan(module, datamodule, trainer)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert vars(datamodule) == settings and datamodule.num_workers == workers and datamodule.trainer is None
    assert module._trainer is None and not list(tmp_path.iterdir()) and not recwarn.list
    assert "memory" in text and "unknown" not in text


@every_method
def test_a_plan_lists_every_stage_or_scale_with_its_size(path, tmp_path):
    trainer, module, datamodule = prepared(path, tmp_path / "run")
    rows = plan(module, datamodule, trainer).splitlines()
    if isinstance(module, BankModule):
        if isinstance(module, GPNN | GPDM):
            assert rows[: module.num_scales] == [f"scale {n}  {h}×{w}" for n, (h, w) in enumerate(module.sizes)]
            assert "a sample of 3 image(s): about" in "\n".join(rows)
        assert "a sample of " in "\n".join(rows) and "MB" in "\n".join(rows)
        return
    per_epoch = datamodule.samples_per_epoch // (datamodule.batch_size * module.reals_per_iteration)
    for stage in range(module.num_stages):
        number, *label, own, steps, _, _ = rows[stage + 1].split()
        height, width = module.stage_size(stage)
        assert int(number) == stage and " ".join(label) == f"{module.stage_label(stage)} {height}×{width}"
        assert int(own.replace(",", "")) == sum(p.numel() for m in module.stage_modules(stage) for p in m.parameters())
        assert int(steps) == per_epoch * module.stage_epochs(stage)
    total = sum(p.numel() for p in module.parameters())
    assert f"{total:,} parameters; about" in "\n".join(rows) and "not measured" not in "\n".join(rows)


def singan(size, budget=60.0, **settings):
    """Module, data module, trainer and the cost of an estimate."""
    data = SyntheticDataModule([size, size], num_images=1, samples_per_epoch=8)
    data.setup()
    module = SinGAN([size, size], min_size=12, scale_factor=0.5, **settings)
    trainer = lightning.Trainer(accelerator="cpu", logger=False)
    return module, data, trainer, estimate_cost(module, data, trainer, budget)


def test_every_stage_is_measured_and_cost_grows_with_size():
    """In a process of its own: one that has done much before finds room in the memory that it holds already."""
    code = """if True:
        import json, sys
        from tests.experiment.test_cost import singan
        for size in (16, 96):
            module, *_, cost = singan(size, width=32)
            print(json.dumps([module.num_stages, *cost]))
    """
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    small, large = (json.loads(line) for line in output.splitlines() if line.startswith("["))
    for number, seconds, _, measured in (small, large):
        assert measured == len(seconds) == number and min(seconds) > 0
    assert large[1][-1] > 2 * small[1][-1] and large[2] > 2 * small[2] > 0


def test_a_spent_budget_leaves_the_finer_stages_to_parameters_and_pixels():
    module = SinGAN([64, 64], min_size=12, width=8, max_width=16, scales_per_width=2, scale_factor=0.5)
    watch = StageTimer(budget=0.0)
    watch.seconds, watch.growths = [1.0, 2.0], [10.0**9, 2 * 10.0**9]
    cost = watch.cost(module)
    assert cost.measured == 2 and len(cost.seconds) == module.num_stages > 3
    (h, w), (height, width) = module.sizes[1], module.sizes[-1]
    own = [sum(p.numel() for m in module.stage_modules(s) for p in m.parameters()) for s in (1, module.num_stages - 1)]
    pixels = height * width / (h * w)
    assert own[0] < own[1] and cost.seconds[:2] == [1.0, 2.0]
    assert cost.seconds[-1] == pytest.approx(2.0 * pixels * own[1] / own[0])
    weights = sum(t.nbytes for t in module.state_dict().values())
    assert cost.memory == pytest.approx(weights + 2e9 * pixels * (own[1] / own[0]) ** 0.5)


def test_an_estimate_stops_where_the_next_stage_does_not_fit_and_the_plan_says_so(monkeypatch):
    module, data, trainer, cost = singan(16, budget=0.0, width=8, epochs_per_stage=3)
    assert cost.measured == 1 and len(cost.seconds) == module.num_stages > 1
    monkeypatch.setattr("experiment.cost.estimate_cost", lambda *_: CostEstimate([5.0, 10.0], 3e9, 1))
    rows = plan(module, data, trainer).splitlines()
    assert rows[1].endswith("2 min") and rows[2].endswith("4 min")  # 8 x 3 iterations each
    assert "about 6 min of training here and 3.0 GB of memory" in rows[3] and "stages from 1 on" in rows[-1]


@pytest.mark.parametrize("method", [GPNN, GPDM])
def test_a_sample_s_time_is_linear_in_the_setting_it_depends_on(method, monkeypatch):
    """Trials take 3 s and 2 s per unit of the setting, so that one with the whole setting is too long to be tried."""
    now = [0.0]
    name, few = method.cost_setting
    monkeypatch.setattr("experiment.cost.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(method, "sample", lambda self, number: now.__setitem__(0, now[0] + 3 + 2 * self.hparams[name]))
    module = method([24, 32], **{name: 40 * few})
    assert sample_cost(module, torch.zeros(2, 3, 24, 32))[0] == pytest.approx(3 + 2 * 40 * few)


def test_peak_memory_sees_what_is_freed_again():
    memory = PeakMemory(torch.device("cpu"))
    block = torch.ones(50_000_000)  # 200 MB
    del block
    assert 190e6 < memory.growth() < 260e6
    assert PeakMemory(torch.device("cpu")).growth() < 20e6


def test_numbers_in_words():
    assert [human_time(s) for s in (40, 720, 12600)] == ["40 s", "12 min", "3.5 h"]
    assert [human_bytes(b) for b in (12e6, 3.4e9, math.nan)] == ["12 MB", "3.4 GB", "an unknown amount"]
