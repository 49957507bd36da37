"""Imports between packages point one way. The table is the architecture; change both together."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN = (
    "train", "evaluate", "sweep", "cli", "core", "experiment", "modules", "datamodules", "metrics", "callbacks", "tasks",
    "reports", "tests",
)  # fmt: skip

# A package (the longest name that a module's dotted name begins with), and what it may import of the project and of libraries.
# Every package may import `core`, and every one that handles tensors `modules.ops`.
PACKAGES = {
    "train": ("cli core experiment callbacks", "torch lightning omegaconf"),
    "evaluate": (
        "cli core experiment callbacks metrics.results tasks.output modules.capabilities",
        "torch torchvision lightning omegaconf",
    ),
    "sweep": ("cli core", ""),
    "cli": ("cli core", "omegaconf yaml pydantic"),
    "core": ("core", ""),
    "core.types": ("core", "pydantic"),
    "experiment": (
        "experiment core modules.base modules.staged modules.bank modules.ops metrics.results",
        "torch lightning omegaconf numpy",
    ),
    "experiment.wandb_logger": ("core", "lightning numpy wandb"),  # nothing else knows W&B; a logger object is enough
    "datamodules": ("datamodules core modules.ops", "torch torchvision kornia lightning pydantic PIL numpy imagehash"),
    "metrics": ("metrics core modules.ops", "torch torchvision torchmetrics torch_fidelity lpips scipy tqdm"),
    "callbacks": (
        "callbacks experiment metrics core modules.base modules.staged modules.capabilities modules.ops",
        "torch lightning torchmetrics omegaconf pydantic PIL numpy",
    ),
    "tasks": (
        "tasks datamodules core modules.base modules.capabilities modules.ops",
        "torch torchvision kornia PIL numpy pydantic",
    ),
    "tasks.output": ("core modules.ops", "torch PIL numpy av"),
    "reports": (
        "reports tasks callbacks metrics experiment core modules.base modules.capabilities modules.ops modules.patches",
        "torch pydantic PIL numpy jinja2",
    ),
    "reports.realism_classifier": ("metrics datamodules core modules.ops", "torch"),  # learns from images, not from models
    "modules": (
        "core modules.base modules.staged modules.pyramid modules.bank modules.capabilities modules.conditions "
        "modules.conditional_gan modules.networks modules.losses modules.augment modules.patches modules.ops",
        "torch lightning pydantic",
    ),
    "modules.networks": ("core modules.networks modules.ops", "torch"),
    "modules.losses": ("core modules.losses modules.ops", "torch kornia lpips"),
    # Perceptual distances as losses are those of the metrics, which import no method.
    "modules.losses.perceptual": ("core modules.ops metrics.backbones metrics.perceptual_distance", "torch"),
    "modules.augment": ("core modules.augment modules.ops", "torch kornia"),
    "modules.patches": ("core modules.patches modules.ops", "torch"),
    "modules.ops": ("core modules.ops", "torch torchvision kornia scipy"),
}
# Methods that build on another method, with the head of their family.
FAMILIES: dict[str, str] = {
    "modules.tgan": "modules.stylegan2",
    **{f"modules.{name}": "modules.tgan" for name in ("bsa", "cdc", "ewc", "freezed", "fsgan", "minegan")},
    "modules.dcl": "modules.cdc",
    **{f"modules.{name}": "modules.sngan" for name in ("biggan", "selfcondgan", "ssgan")},
    "modules.tokenizer": "modules.vqgan",
    **{f"modules.{name}": "modules.tokenizer" for name in ("latentpatch", "vqgan_transformer")},
}


def within(name: str, packages: tuple[str, ...] | list[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


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
    package = max((package for package in PACKAGES if within(name, [package])), key=len, default=None)
    if package is None:
        return [f"{name} is in no package of the table"]
    project, stack = (names.split() for names in PACKAGES[package])
    own = [FAMILIES[name]] if name in FAMILIES else []
    wrong = []
    for other in sorted(imported):
        first = other.split(".")[0]
        if first in sys.stdlib_module_names:
            continue
        if not within(other, [*project, *own] if first in OWN else stack):
            wrong.append(f"{name} ({package}) imports {other}")
    return wrong


@pytest.mark.parametrize("file", FILES, ids=[dotted(file) for file in FILES])
def test_imports_point_one_way(file):
    assert not complaints(dotted(file), imports(file.read_text()))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("cli.loader", "import torch"),
        ("cli.loader", "def f():\n    from lightning import Trainer"),
        ("modules.ops.images", "from modules.networks.patch_gan import PatchCritic"),
        ("modules.losses.adversarial", "import lightning.pytorch"),
        ("modules.fewgan", "from callbacks import image_grid"),
        ("modules.fewgan", "from tasks.generate import Generate"),
        ("modules.singan", "from modules.fewgan import FewGAN"),
        ("callbacks.image_grid", "from modules.fewgan import FewGAN"),
        ("callbacks.image_grid", "import wandb"),
        ("callbacks.image_grid", "from reports.page import tag"),
        ("tasks.generate", "from reports.page import tag"),
        ("reports.compare", "from modules.gpnn import GPNN"),
        ("metrics.kernel", "from callbacks.image_grid import evaluating"),
        ("datamodules.folder", "from tests.conftest import x"),
        ("datamodules.folder", "from modules.networks.patch_gan import PatchCritic"),
        ("train", "from modules.fewgan import FewGAN"),
        ("elsewhere.thing", "import math"),
    ],
)
def test_a_wrong_import_is_found(name, source):
    assert complaints(name, imports(source))
