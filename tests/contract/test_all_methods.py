"""What every method promises that is trained or stored here at all: see `tests.contract.tiers`."""

import math
from fnmatch import fnmatch

import pytest
import torch

from callbacks.monitors import names_in_code
from cli.build import build
from cli.loader import load_config
from experiment.resume import Finished
from modules.base import sampling_mode
from modules.ops.noise import rand
from tests.contract.runs import fit, read, straight, unequal
from tests.contract.tiers import DISTINCT, YAMLS, by_path, method_tests


@by_path(YAMLS)
def test_configuration_is_valid_and_describes_a_network_of_known_size(path):
    """At its own sizes, without memory; where a paper states the number of parameters, PARAMETERS cites it. A training of
    iterations is long enough to be measured."""
    config = load_config([str(path)])
    with torch.device("meta"):
        module = build(config.module)  # checked against the schema on loading
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert {path.stem: parameters}.items() <= method_tests(path).PARAMETERS.items()
    if isinstance(iterations := module.hparams.get("iterations"), int):
        images = iterations * module.reals_per_iteration * config.datamodule.batch_size
        measured = (config.callbacks.metrics or {}).get("every_n_epochs", 1)
        assert measured <= round(images / config.datamodule.samples_per_epoch)


@by_path(DISTINCT)
def test_fit_ends_with_finite_logs_and_weights(path):
    trainer, module, run_dir = straight(path)
    assert trainer.logged_metrics and all(math.isfinite(v) for v in trainer.logged_metrics.values())
    assert all(tensor.isfinite().all() for tensor in module.state_dict().values())
    names = [*names_in_code(type(module)), "stage"]  # what can be monitored
    logged = [key.removeprefix("train/") for key in trainer.logged_metrics if key.startswith("train/")]
    assert logged and all(any(fnmatch(key, name) for name in names) for key in logged)
    assert (run_dir / "metrics.csv").read_text().count("\n") >= 2 and (run_dir / "config.yaml").exists()


@by_path(DISTINCT)
def test_samples_have_shape_range_and_no_gradient(path):
    module = straight(path).module.eval()
    images = drawn(module, range(3))
    assert images.shape == (3, 3, *module.image_size) and images.dtype == torch.float32
    assert images.abs().max() <= 1 and not images.requires_grad and images.std() > 0


def drawn(module, indices):
    """Samples, or what an autoencoder gives back of noise."""
    with sampling_mode(module, 3, images=indices):
        if module.no_samples:
            return module.reconstruct(rand(len(indices), 3, *module.image_size) * 2 - 1)
        return module.sample(len(indices))


@by_path(DISTINCT)
def test_image_i_depends_on_seed_and_index_alone(path):
    """Not on the number of images or their batches, but for rounding of convolutions."""
    module = straight(path).module
    together = drawn(module, range(8))
    assert together.unique(dim=0).shape == together.shape
    assert torch.allclose(drawn(module, range(4)), together[:4], atol=1e-4)
    split = torch.cat([drawn(module, range(start, end)) for start, end in ((0, 1), (1, 3), (3, 8))])
    assert torch.allclose(split, together, atol=1e-4)
    assert torch.allclose(drawn(module, [6, 2]), together[[6, 2]], atol=1e-4)
    assert torch.equal(drawn(module, range(8)), together)


@by_path(DISTINCT)
def test_the_file_alone_rebuilds_the_module_and_its_samples(path):
    _, module, run_dir = straight(path)
    for rebuilt in (
        type(module).load_from_checkpoint(run_dir / "checkpoints/last.ckpt", map_location="cpu").eval(),
        type(module).from_checkpoint(read(run_dir / "checkpoints/last.ckpt")),
    ):
        assert torch.equal(drawn(rebuilt, range(2)), drawn(module, range(2)))
        assert rebuilt.iteration == module.iteration and not rebuilt.training


@by_path(DISTINCT)
def test_a_finished_run_stays_as_it_is(path, tmp_path):
    """Nothing is written; where only its last picture is missing, there is a fit that trains nothing."""
    _, module, run_dir = straight(path)
    with pytest.raises(Finished):
        fit(path, tmp_path / "run", f"resume={run_dir}/checkpoints/last.ckpt")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text('{"status": "running"}')
    again = fit(path, tmp_path / "run", f"resume={run_dir}/checkpoints/last.ckpt").module
    assert again.iteration == module.iteration and not unequal(dict(module.state_dict()), dict(again.state_dict()))
