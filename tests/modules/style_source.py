"""A source model of 16 × 16 pixels for the tests of adaptations, and short fits."""

import functools
import tempfile
from pathlib import Path

import lightning
import torch

from datamodules.synthetic import SyntheticDataModule
from modules.networks.style_checkpoints import NETWORKS
from modules.stylegan2 import StyleGAN2

SIZES = {"z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channels": [8, 8, 8]}


def source_model(**changes) -> StyleGAN2:
    """Networks with random weights and biases, the average unlike the generator."""
    settings = {"image_size": [16, 16], "epochs": 1, **SIZES, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = StyleGAN2(**settings)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
        model.update_w_mean()
    return model


def networks(model: torch.nn.Module, parts=NETWORKS) -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.state_dict().items() if key.split(".")[0] in parts}


@functools.cache
def source_file() -> str:
    """Path of the source's weights, the same in every process."""
    path = Path(tempfile.mkdtemp(prefix="style_source")) / "source.pt"
    torch.save(networks(source_model()), path)
    return str(path)


TINY = [
    "datamodule.num_images=5",
    "datamodule.image_size=[16,16]",
    "datamodule.batch_size=2",
    "datamodule.samples_per_epoch=4",
    "module.iterations=4",
    f"module.source_checkpoint={source_file()}",
    *(f"module.{key}={value}".replace(" ", "") for key, value in SIZES.items()),
]


def build(method, **changes):
    """An adaptation of the source of four iterations, with path lengths and noise."""
    torch.manual_seed(0)
    settings = {"image_size": [16, 16], "iterations": 4, "source_checkpoint": source_file(), "source_from": "ema", **SIZES}
    return method(**(settings | changes))


def fit(module, callbacks=(), data=None, **trainer):
    """Four iterations in an epoch, on four drawn images."""
    lightning.seed_everything(0, verbose=False)
    settings = {"accelerator": "cpu", "max_epochs": -1, "logger": False, "enable_checkpointing": False,
                "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    runner = lightning.Trainer(**(settings | trainer), callbacks=list(callbacks))
    runner.fit(module, data or SyntheticDataModule([16, 16], batch_size=4, samples_per_epoch=16, num_images=4))
    return module


def moved(before: dict, after: dict) -> set[str]:
    """Names of the tensors that differ."""
    return {key for key in before if not torch.equal(before[key], after[key])}


def differing(first, second, parts=NETWORKS) -> set[str]:
    """Names of the networks' tensors in which two models differ."""
    return moved(networks(first, parts), networks(second, parts))
