"""What every method with training promises: frozen and moved parts, exact resume, equal processes."""

import pytest
import torch

from tests.contract.runs import TWO_PROCESSES, RankStates, epoch_files, fit, read, straight, unequal
from tests.contract.tiers import HEADS, TRAINED, by_path


@by_path(TRAINED)
def test_each_stage_changes_its_own_parts_only(path):
    """Parameters and buffers of all other stages are bit-identical; a part of several stages may change in each of them."""
    _, module, run_dir = straight(path)
    names_of = {id(part): name for name, part in module.named_modules()}
    parts = [tuple(names_of[id(m)] + "." for m in module.stage_modules(s)) for s in range(module.num_stages)]

    def state_of(stage, state):
        return {key: value for key, value in state.items() if key.startswith(parts[stage])}

    saved = [read(file) for file in epoch_files(run_dir)]
    for before, after in zip(saved, saved[1:], strict=False):
        for stage in range(module.num_stages):
            changed = unequal(state_of(stage, before["state_dict"]), state_of(stage, after["state_dict"]))
            if stage != after["stage"]:
                changed = [key for key in changed if not key.removeprefix(".").startswith(parts[after["stage"]])]
            assert bool(changed) == (stage == after["stage"]), (stage, changed)
    assert [checkpoint["stage"] for checkpoint in saved] == [module.stage_at(epoch) for epoch in range(len(saved))]


def assert_same_training(expected, trainer, module):
    """Counters, weights and optimizers of a fit are those of a checkpoint, bit for bit."""
    assert module.iteration == expected["iteration"] and module.images_seen == expected["images_seen"]
    assert not unequal(expected["state_dict"], dict(module.state_dict()))
    states = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
    assert not unequal([state["state"] for state in expected["optimizer_states"]], states)


@by_path(TRAINED)
def test_resume_equals_the_straight_run(path, tmp_path):
    files = epoch_files(straight(path).run_dir)
    trainer, module, _ = fit(path, tmp_path / "run", f"resume={files[len(files) // 2 - 1]}")
    assert_same_training(read(files[-1]), trainer, module)


@by_path(HEADS)
def test_resume_after_any_epoch_equals_the_straight_run(path, tmp_path):
    """One epoch each: it ends as that of the straight run did, so the next one begins alike."""
    files = epoch_files(straight(path).run_dir)
    assert len(files) > 1
    for epochs, (file, following) in enumerate(zip(files, files[1:], strict=False), start=2):
        trainer, module, _ = fit(path, tmp_path / file.stem, f"resume={file}", f"trainer.max_epochs={epochs}")
        assert_same_training(read(following), trainer, module)


@by_path(TRAINED)
def test_two_processes_end_equal_and_resume_exactly(path, tmp_path):
    fit(path, tmp_path / "straight", *TWO_PROCESSES, callbacks=[RankStates(tmp_path)])
    assert not unequal(*(dict(read(tmp_path / f"{rank}.pt")) for rank in (0, 1)))
    if path in HEADS:
        files = epoch_files(tmp_path / "straight")
        middle = len(files) // 2
        fit(path, tmp_path / "resumed", *TWO_PROCESSES, f"resume={files[middle - 1]}", f"trainer.max_epochs={middle + 1}")
        ends = [read(files[middle]), read(tmp_path / "resumed/checkpoints/last.ckpt")]
        assert not unequal(*(end["state_dict"] for end in ends))
        assert not unequal(*(end["optimizer_states"] for end in ends))


def test_the_comparison_sees_a_single_bit():
    state = {"a": [torch.zeros(2), {"b": 1.0}]}
    assert not unequal(state, {"a": [torch.zeros(2), {"b": 1.0}]})
    assert unequal(state, {"a": [torch.tensor([0.0, 1e-45]), {"b": 1.0}]}) == [".a[0]"]
    assert unequal(state, {"a": [torch.zeros(2), {"c": 1.0}]}) == [".a[1]: keys"]
    assert not unequal(float("nan"), float("nan"))
    with pytest.raises(AttributeError):
        unequal({}, None)
