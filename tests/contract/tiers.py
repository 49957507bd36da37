"""How much of the contract a configuration has to prove, so that a new YAML of a known method costs next to nothing.

head: the first configuration of a class that defines the training step or the schedule itself. Everything is tested.
variant: inherits both, or uses a class of another configuration with other choices. Trained once, with one resume.
twin: class, choices and shapes of the networks at the sizes TINY are those of an earlier configuration. Only built.
"""

import functools
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from cli.build import build
from cli.loader import load_config
from core.nodes import find_class
from modules.bank import BankModule

ROOT = Path(__file__).parents[2]
SYNTHETIC = "datamodule.class_path=datamodules.synthetic.SyntheticDataModule"
SCHEDULE = ("training_step", "stage_modules", "stage_optimizers", "finished", "configure_optimizers")


@functools.cache  # all these functions run while tests are collected
def class_path(path: Path) -> str:
    return OmegaConf.load(path).module.class_path


def module_name(path: Path) -> str:
    """Name of the file that defines the method of a configuration: fewgan for configs/fewgan_256.yaml."""
    return class_path(path).split(".")[1]


def method_tests(path: Path) -> Any:
    """The test file of a configuration's method, which defines its sizes TINY and its numbers of PARAMETERS."""
    return importlib.import_module(f"tests.modules.test_{module_name(path)}")


def method_class(path: Path) -> type:
    return find_class(class_path(path), ("modules.",))


def tiny(path: Path) -> list[str]:
    """Overrides for a fit of a few seconds, and those of one configuration; a method without a test file fails here."""
    tests = method_tests(path)
    return [*tests.TINY, *getattr(tests, "TINY_OF", {}).get(path.stem, [])]


# The configuration that is named as its module comes first, so that it is the head.
YAMLS = sorted(
    (path for path in ROOT.glob("configs/*.yaml") if path.name != "base.yaml"),
    key=lambda path: (path.stem != module_name(path), path.stem),
)


@functools.cache
def structure(path: Path) -> tuple:
    """What a configuration trains at the sizes TINY, numbers such as learning rates left out."""
    config = load_config([str(path), SYNTHETIC, *tiny(path)])
    class_, settings = method_class(path), OmegaConf.to_container(config.module)
    defaults = {name: p.default for name, p in inspect.signature(class_).parameters.items()}
    choices = {k: v for k, v in (defaults | settings).items() if v is None or isinstance(v, str | bool | Mapping)}
    with torch.random.fork_rng():  # on the CPU: at these sizes faster than without memory
        shapes = {name: tuple(tensor.shape) for name, tensor in build(config.module).state_dict().items()}
    return class_, tuple(sorted((k, str(v)) for k, v in choices.items())), tuple(sorted(shapes.items()))


@functools.cache
def tier(path: Path) -> str:
    """`head`, `variant` or `twin`."""
    earlier = [other for other in YAMLS[: YAMLS.index(path)] if class_path(other) == class_path(path)]
    if any(structure(other) == structure(path) for other in earlier):
        return "twin"
    inherits = not any(name in vars(method_class(path)) for name in SCHEDULE)
    return "variant" if inherits or earlier else "head"


def by_path(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[path.stem for path in paths])


DISTINCT = [path for path in YAMLS if tier(path) != "twin"]
BANKS = [path for path in DISTINCT if issubclass(method_class(path), BankModule)]
TRAINED = [path for path in DISTINCT if path not in BANKS]
HEADS = [path for path in TRAINED if tier(path) == "head"]
