"""Every published configuration on a GPU (`make test-gpu`); one of each kind at tiny size on the CPU in the default suite, all
others in `make test-all`. Later methods join by their file, see `published`.
"""

import shutil
import socket
import subprocess
import sys

import pytest
import torch

from experiment.checkpoint import read_checkpoint
from modules.base import sampling_mode
from tests.contract.tiers import tiny
from tests.gpu import figures
from tests.gpu.training import (
    PUBLISHED,
    ROOT,
    Case,
    distance,
    fit,
    fit_all_stages,
    toy_rank,
    two_ranks_environment,
    weights,
)
from tests.test_distributed import Toy

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
RESUME_TOLERANCE = 0.1  # of the way that the weights go in the repeated epoch; 0 on the CPU
SAMPLE_TOLERANCE = 8 / 255  # mean absolute difference of the median image, in [-1, 1]; 0 on the CPU


def cases() -> list:
    """All published configurations on the GPU and, at tiny size, on the CPU: there one of each kind in the default suite."""
    on_gpu = [pytest.param(Case(path, "cuda"), id=path.stem, marks=GPU) for path in PUBLISHED]
    on_cpu = [Case(path, "cpu", tuple(tiny(path))) for path in PUBLISHED]
    first = {case.is_bank: case.path for case in reversed(on_cpu)}.values()
    marks = [[] if case.path in first else pytest.mark.slow for case in on_cpu]
    named = zip(on_cpu, marks, strict=True)
    return on_gpu + [pytest.param(case, id=f"tiny_{case.path.stem}_on_cpu", marks=mark) for case, mark in named]


@pytest.fixture(scope="module")
def measured():
    """Figures by configuration and precision; those of a GPU are written at the end."""
    results = {}
    yield results
    if results:
        versions = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        figures.write({**versions, "methods": results})


@pytest.fixture(scope="module", params=cases())
def case(request):
    return request.param


@pytest.fixture(scope="module")
def trained(case, tmp_path_factory):
    """Folder and figures of a training of all stages in 32 bits."""
    run_dir = tmp_path_factory.mktemp(case.path.stem) / "run"
    return run_dir, fit_all_stages(case, run_dir, "32-true")


@pytest.fixture(scope="module")
def interrupted(case, tmp_path_factory):
    """Folder of a training that ended after its first epoch."""
    if case.is_bank:
        pytest.skip("trains nothing that could be resumed")
    run_dir = tmp_path_factory.mktemp(case.path.stem) / "interrupted"
    fit(case, run_dir, "trainer.max_epochs=1", batches=2)
    return run_dir


def check_figures(case, precision, values, measured):
    assert all(value > 0 for key, value in values.items() if key != "peak_memory" or case.device == "cuda")
    if case.device == "cuda":
        measured.setdefault(case.path.stem, {})[precision] = values


def test_iterations_in_32_bits(case, trained, measured):
    run_dir, values = trained
    assert all(tensor.isfinite().all() for tensor in weights(run_dir).values())
    check_figures(case, "32-true", values, measured)


def test_iterations_in_bfloat16(case, tmp_path, measured):
    if case.is_bank:
        pytest.skip("trains nothing")
    values = fit_all_stages(case, tmp_path / "run", "bf16-mixed")
    assert all(tensor.isfinite().all() and tensor.dtype != torch.bfloat16 for tensor in weights(tmp_path / "run").values())
    check_figures(case, "bf16-mixed", values, measured)


def test_a_resume_repeats_the_epoch_of_a_straight_run(case, interrupted, tmp_path):
    fit(case, tmp_path / "straight", "trainer.max_epochs=2", batches=2)
    shutil.copytree(interrupted, tmp_path / "resumed")
    fit(case, tmp_path / "resumed", "resume=auto", "trainer.max_epochs=2", batches=2)
    straight, resumed = weights(tmp_path / "straight"), weights(tmp_path / "resumed")
    way = distance(straight, weights(interrupted))
    assert way > 0 and distance(straight, resumed) <= (RESUME_TOLERANCE * way if case.device == "cuda" else 0)


def test_a_checkpoint_goes_from_the_device_to_the_cpu_and_back(case, interrupted, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(interrupted, run_dir)
    rebuilt = case.module_class.from_checkpoint(read_checkpoint(run_dir / "checkpoints/last.ckpt"))
    assert distance(rebuilt.state_dict(), weights(interrupted)) == 0
    for epochs, device, batches in ((2, "cpu", 1), (3, case.device, 2)):  # one batch may take ten seconds on a CPU
        before = weights(run_dir)
        fit(case._replace(device=device), run_dir, "resume=auto", f"trainer.max_epochs={epochs}", batches=batches)
        checkpoint = read_checkpoint(run_dir / "checkpoints/last.ckpt")
        assert checkpoint["iteration"] == 2 * epochs - 1 and distance(checkpoint["state_dict"], before) > 0
        states = [s for optimizer in checkpoint["optimizer_states"] for s in optimizer["state"].values()]
        assert states and all(value.isfinite().all() for s in states for value in s.values() if torch.is_tensor(value))


def test_samples_of_the_device_are_those_of_the_cpu(case, trained, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    checkpoint = read_checkpoint(trained[0] / "checkpoints/last.ckpt")
    if case.is_bank and case.module_class.cost_setting:  # fewer steps, which take minutes on a CPU
        name, small = case.module_class.cost_setting
        checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], name: small}
    images = []
    for device in ("cpu", case.device):
        module = case.module_class.from_checkpoint(checkpoint).to(device)
        drawn = torch.rand(3, 3, *module.image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with sampling_mode(module, 0, range(3)):
            outputs = module.reconstruct(drawn.to(device)) if module.no_samples else module.sample(3)
        images.append(outputs.float().cpu())
    difference = float((images[0] - images[1]).abs().mean((1, 2, 3)).median())
    assert images[0].std() > 0 and difference <= (SAMPLE_TOLERANCE if case.device == "cuda" else 0)


def on_two_ranks(kind, files, device, *arguments):
    """Weights of two gloo processes that share the device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.training", kind, file, device, *arguments], cwd=ROOT, text=True,
            env=two_ranks_environment(rank, port), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank, file in enumerate(files)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [torch.load(file, weights_only=True) for file in files]


@pytest.mark.slow
def test_two_processes_on_one_device_end_equal(case, tmp_path):
    if case.is_bank:
        pytest.skip("trains in one process only")
    files = [tmp_path / "0.pt", tmp_path / "1.pt"]
    first, second = on_two_ranks("published", files, case.device, case.path, tmp_path / "run", *case.sizes)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_two_processes_on_one_device_equal_one_with_the_joined_batch(device, tmp_path):
    toy_rank(tmp_path / "joined.pt", device, "1")
    joined = torch.load(tmp_path / "joined.pt", weights_only=True)
    first, second = on_two_ranks("toy", [tmp_path / "0.pt", tmp_path / "1.pt"], device, "2")
    assert distance(first, second) == 0 and distance(first, joined) < 1e-9
    assert distance(joined, Toy().state_dict()) > 0.01


# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_page_of_figures_is_up_to_date():
    assert (figures.DOCS / "gpu.md").read_text() == figures.page(figures.read())


def test_figures_are_written_shown_and_replaced(tmp_path):
    assert "not measured" in figures.page({})
    first = {"images_per_second": 12.345, "peak_memory": 2.5e9}
    device = {"device": "a GPU", "torch": "2.0"}
    figures.write({**device, "methods": {"singan_250": {"32-true": first}}}, tmp_path)
    figures.write({**device, "methods": {"gpnn_256": {"32-true": {"samples_per_second": 3.0}}}}, tmp_path)
    page = (tmp_path / "gpu.md").read_text()
    assert page == figures.page(figures.read(tmp_path)) and "a GPU, torch 2.0" in page
    assert "| singan_250 | 32-true | 12.3 | 2.50 GB | – |" in page
    assert "| gpnn_256 | 32-true | – | not measured | 3 |" in page
    figures.write({**device, "device": "another", "methods": {"gpnn_256": {"32-true": first}}}, tmp_path)
    assert "singan_250" not in (tmp_path / "gpu.md").read_text()
