"""Arrows between the rooms of the house point one way. The table is the architecture; change both together."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN = ("train", "evaluate", "sweep", "configs", "modules", "datamodules", "callbacks", "reports", "tests")

# A room (the longest name that a module's dotted name begins with), and what it may import of the project and of the stack.
ROOMS = {
    "train": ("configs callbacks", "torch lightning omegaconf"),
    "evaluate": (
        "configs callbacks.config_snapshot callbacks.metrics.card modules.tasks.pictures",
        "torch torchvision lightning omegaconf",
    ),
    "sweep": ("configs", ""),
    "configs": ("configs", "omegaconf yaml"),
    "datamodules": ("datamodules modules.ops.decode", "torch torchvision kornia lightning PIL numpy imagehash"),
    "callbacks": ("callbacks modules.base modules.ops.images", "torch lightning torchmetrics omegaconf PIL numpy"),
    "callbacks.resume": ("callbacks.config_snapshot callbacks.run_card configs.resume", "lightning omegaconf"),
    "callbacks.wandb_run": ("", "lightning numpy wandb"),  # nothing else knows W&B; a logger object is enough
    "callbacks.metrics": ("callbacks.metrics modules.ops", "torch torchvision torchmetrics lpips"),
    "reports": (
        "reports callbacks.metrics callbacks.run_card modules.base modules.ops modules.tasks.inputs",
        "torch PIL numpy",
    ),
    "modules": (
        "modules.base modules.pyramid modules.nonparametric modules.networks modules.losses modules.augment modules.ops",
        "torch lightning",
    ),
    "modules.base": ("modules.ops", "torch lightning"),
    "modules.pyramid": ("modules.base modules.rehearsal modules.ops", "torch lightning"),
    "modules.nonparametric": ("modules.base modules.ops", "torch lightning"),
    "modules.networks": ("modules.networks modules.ops", "torch"),
    "modules.losses": ("modules.losses modules.ops", "torch kornia lpips"),
    "modules.augment": ("modules.augment modules.ops", "torch kornia"),
    "modules.ops": ("modules.ops", "torch torchvision kornia"),
    "modules.ops.decode": ("", "PIL numpy"),
    "modules.tasks": ("modules.tasks modules.base modules.ops", "torch torchvision kornia PIL numpy"),
    "modules.tasks.pictures": ("modules.ops", "torch PIL numpy av"),
}
# Methods that build on another method, with the head of their family.
FAMILIES: dict[str, str] = {}
# modules.tasks.inputs looks through the package to name the methods that can do what a task asks for.
BARE_PACKAGES = {("modules.tasks.inputs", "modules")}


def within(name: str, rooms: tuple[str, ...] | list[str]) -> bool:
    return any(f"{name}.".startswith(f"{room}.") for room in rooms)


def dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [file for name in OWN if name != "tests" for file in [*ROOT.glob(f"{name}.py"), *(ROOT / name).rglob("*.py")]]


def imports(source: str) -> set[str]:
    """Dotted names of all that the source imports, inside functions too; a module named after `from … import` counts."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in modules if is_module(name)} or {node.module}
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def complaints(name: str, imported: set[str]) -> list[str]:
    room = max((room for room in ROOMS if within(name, [room])), key=len, default=None)
    if room is None:
        return [f"{name} is in no room of the table"]
    project, stack = (words.split() for words in ROOMS[room])
    own = [FAMILIES[name]] if name in FAMILIES else []
    wrong = []
    for other in sorted(imported):
        first = other.split(".")[0]
        if first in sys.stdlib_module_names or (name, other) in BARE_PACKAGES:
            continue
        if not within(other, [*project, *own] if first in OWN else stack):
            wrong.append(f"{name} ({room}) imports {other}")
    return wrong


@pytest.mark.parametrize("file", FILES, ids=[dotted(file) for file in FILES])
def test_imports_point_one_way(file):
    assert not complaints(dotted(file), imports(file.read_text()))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("configs.loader", "import torch"),
        ("configs.loader", "def f():\n    from lightning import Trainer"),
        ("modules.ops.images", "from modules.networks.patch import PatchCritic"),
        ("modules.losses.adversarial", "import lightning.pytorch"),
        ("modules.fewgan", "from callbacks import image_grid"),
        ("modules.fewgan", "from modules.tasks.generate import Generate"),
        ("modules.singan", "from modules.fewgan import FewGAN"),
        ("callbacks.image_grid", "from modules.fewgan import FewGAN"),
        ("callbacks.image_grid", "import wandb"),
        ("callbacks.image_grid", "from reports.page import tag"),
        ("modules.tasks.generate", "from reports.page import tag"),
        ("reports.compare", "from modules.gpnn import GPNN"),
        ("callbacks.metrics.kernel", "from callbacks.image_grid import evaluating"),
        ("datamodules.folder", "from tests.conftest import x"),
        ("datamodules.folder", "from modules.ops.images import resize"),
        ("train", "from modules.fewgan import FewGAN"),
        ("elsewhere.thing", "import math"),
    ],
)
def test_a_wrong_import_is_found(name, source):
    assert complaints(name, imports(source))
