"""What every method promises, for every YAML in configs/, on drawn images at the sizes TINY of the method's test file.

The fits go through `train.prepare`, so a configuration is checked on the way a user takes.
"""

import copy
import importlib.util
import math
from pathlib import Path

import lightning
import pytest
import torch
from omegaconf import OmegaConf

import train
from cli.loader import load_config
from experiment.config_changes import Finished

ROOT = Path(__file__).parent.parent
YAMLS = [path for path in sorted(ROOT.glob("configs/*.yaml")) if path.name != "base.yaml"]
QUIET = ["trainer.accelerator=cpu", "logger.wandb=null", "callbacks.metrics=null", "callbacks.images=null",
         "callbacks.progress=null", "callbacks.checkpoint.save_top_k=-1"]  # fmt: skip

pytestmark = pytest.mark.parametrize("path", YAMLS, ids=[path.stem for path in YAMLS])


def tiny(path: Path) -> list[str]:
    """The method's own small sizes; a YAML whose method has no test file fails here."""
    name = OmegaConf.load(path).module.class_path.split(".")[1]
    spec = importlib.util.spec_from_file_location("method_test", ROOT / f"tests/modules/test_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TINY


def fit(path: Path, run_dir: Path, *words: str, callbacks=()):
    """Trains and returns (trainer, module)."""
    synthetic = "datamodule.class_path=datamodules.synthetic.SyntheticDataModule"
    config = load_config([str(path), synthetic, *tiny(path), *QUIET, f"run_dir={run_dir}", *words])
    trainer, module, datamodule, checkpoint = train.prepare(config, dry_run=False)
    trainer.callbacks.extend(callbacks)
    trainer.fit(module, datamodule, ckpt_path=checkpoint)
    return trainer, module


def files_of(run_dir: Path) -> list[Path]:
    """The checkpoints of all epochs; the last one alone where no optimizer steps (P 6.11)."""
    return sorted(run_dir.glob("checkpoints/epoch_*.ckpt")) or [run_dir / "checkpoints/last.ckpt"]


def checkpoints(run_dir: Path) -> list[dict]:
    return [torch.load(file, weights_only=True) for file in files_of(run_dir)]


def trains(module) -> bool:
    """False for methods that keep the images and learn nothing."""
    return any(True for _ in module.parameters())


def unequal(first, second, key="") -> list[str]:
    """Names of the places where two nested containers of tensors and plain values differ."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [key]
    if isinstance(first, dict):
        same = first.keys() == second.keys()
        return [n for k in first for n in unequal(first[k], second[k], f"{key}.{k}")] if same else [f"{key}: keys"]
    if isinstance(first, list | tuple):
        same = len(first) == len(second)
        pairs = enumerate(zip(first, second, strict=False))
        return [n for i, (a, b) in pairs for n in unequal(a, b, f"{key}[{i}]")] if same else [key]
    return [] if first == second or (first != first and second != second) else [key]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """One complete fit of each YAML: (trainer, module, run_dir), kept for all tests of this file."""
    runs = {}

    def get(path):
        if path not in runs:
            run_dir = tmp_path_factory.mktemp(path.stem)
            runs[path] = (*fit(path, run_dir), run_dir)
        return runs[path]

    return get


def test_it_fits_and_everything_logged_is_finite(path, straight):
    trainer, module, run_dir = straight(path)
    assert trainer.logged_metrics and all(math.isfinite(v) for v in trainer.logged_metrics.values())
    assert all(tensor.isfinite().all() for tensor in module.state_dict().values())
    assert (run_dir / "metrics.csv").read_text().count("\n") >= 2 and (run_dir / "config.yaml").exists()


def test_samples_have_shape_range_and_no_gradient(path, straight):
    _, module, _ = straight(path)
    images = module.eval().sample(3)
    assert images.shape == (3, 3, *module.image_size) and images.dtype == torch.float32
    assert images.abs().max() <= 1 and not images.requires_grad
    assert images.std() > 0


def test_each_stage_moves_its_own_parts_and_no_others(path, straight):
    """Parameters and buffers of all other stages are bit-identical; a part of several stages may move in each of them."""
    _, module, run_dir = straight(path)
    if not hasattr(module, "num_stages"):
        pytest.skip("trains in one stage")
    parts = {id(m): name for name, m in module.named_modules()}
    names = [[parts[id(m)] + "." for m in module.stage_modules(s)] for s in range(module.num_stages)]

    def of(stage, state):
        return {k: v for k, v in state.items() if k.startswith(tuple(names[stage]))}

    saved = checkpoints(run_dir)
    for before, after in zip(saved, saved[1:], strict=False):
        for stage in range(module.num_stages):
            changed = unequal(of(stage, before["state_dict"]), of(stage, after["state_dict"]))
            if stage != after["stage"]:
                changed = [key for key in changed if not key.removeprefix(".").startswith(tuple(names[after["stage"]]))]
            assert bool(changed) == (stage == after["stage"]), (stage, changed)
    assert [c["stage"] for c in saved] == [module.stage_at(epoch) for epoch in range(len(saved))]


def test_resume_after_any_epoch_equals_the_straight_run(path, straight, tmp_path):
    _, module, run_dir = straight(path)
    files = files_of(run_dir)
    end = torch.load(files[-1], weights_only=True)
    assert len(files) > 1 or not trains(module)
    for file in files[:-1]:
        trainer, module = fit(path, tmp_path / file.stem, f"resume={file}")
        assert module.iteration == end["iteration"] and module.images_seen == end["images_seen"]
        assert not unequal(end["state_dict"], dict(module.state_dict()))
        states = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
        assert not unequal([state["state"] for state in end["optimizer_states"]], states)


class RankStates(lightning.Callback):
    """Writes each rank's weights and buffers at the end of the fit."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, module):
        torch.save(copy.deepcopy(module.state_dict()), self.folder / f"{trainer.global_rank}.pt")


def test_two_processes_end_equal(path, straight, tmp_path):
    words = ["trainer.devices=2", "trainer.strategy=ddp_fork", "datamodule.batch_size=1"]
    if not trains(straight(path)[1]):
        with pytest.raises(Exception, match="trainer.devices=1"):
            fit(path, tmp_path / "run", *words)
        return
    fit(path, tmp_path / "run", *words, callbacks=[RankStates(tmp_path)])
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not unequal(dict(first), dict(second))


def test_two_processes_resume_exactly(path, straight, tmp_path):
    words = ["trainer.devices=2", "trainer.strategy=ddp_fork", "datamodule.batch_size=1"]
    if not trains(straight(path)[1]):
        pytest.skip("one process only")
    fit(path, tmp_path / "straight", *words)
    files = files_of(tmp_path / "straight")
    fit(path, tmp_path / "resumed", *words, f"resume={files[len(files) // 2 - 1]}")
    ends = [torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True) for run in ("straight", "resumed")]
    assert not unequal(ends[0]["state_dict"], ends[1]["state_dict"])
    assert not unequal(ends[0]["optimizer_states"], ends[1]["optimizer_states"])


def test_the_file_alone_rebuilds_the_module_and_its_samples(path, straight):
    _, module, run_dir = straight(path)
    rebuilt = type(module).load_from_checkpoint(run_dir / "checkpoints/last.ckpt", map_location="cpu").eval()
    torch.manual_seed(5)
    expected = module.eval().sample(2)
    torch.manual_seed(5)
    assert torch.equal(rebuilt.sample(2), expected)
    assert rebuilt.iteration == module.iteration


def test_a_finished_run_stays_as_it_is(path, straight, tmp_path):
    """Nothing is written; where only its last picture is missing, there is a fit that trains nothing."""
    _, module, run_dir = straight(path)
    with pytest.raises(Finished):
        fit(path, tmp_path / "run", f"resume={run_dir}/checkpoints/last.ckpt")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text('{"status": "running"}')
    _, again = fit(path, tmp_path / "run", f"resume={run_dir}/checkpoints/last.ckpt")
    assert again.iteration == module.iteration and not unequal(dict(module.state_dict()), dict(again.state_dict()))
