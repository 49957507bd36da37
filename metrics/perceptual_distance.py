"""Perceptual distances between images, as squared Euclidean distances of rows that each image gets once."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import UserError
from metrics.backbones.backbone import Backbone, check_bytes, full_precision
from metrics.backbones.state_dicts import read_state_dict

MAX_SIZE = 256  # pixels of the longer side; larger images are brought down to it
TRUNKS = {"alex": "features.10.weight", "vgg": "features.28.weight"}  # the last layer of torchvision's files


class PerceptualDistance:
    """Bytes [N, 3, H, W] -> rows [N, D] whose squared distances are sum over layers of mean over positions of the weighted
    squared difference of unit-length features (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a
    Perceptual Metric", 2018, equation 1).

    Here with the weight 1 / channels on the stages of a backbone, so that no learned heads are needed: `pd_<backbone>`, which
    has another scale than LPIPS. Images keep their size between `min_size` on the shorter and 256 on the longer side.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.key, self.min_size = backbone, backbone.key("pd"), backbone.min_size
        self.sha256, self.lowpass = backbone.weights_sha256, backbone.lowpass

    def layers(self, images: Tensor) -> list[tuple[Tensor, Tensor | float]]:
        """Features [N, C, h, w] of floats in 0…255, and the weight [C] or one number of each layer."""
        stages = self.backbone.stages(self.backbone.normalize(images))
        return [(stage, 1 / stage.shape[1]) for stage in stages]

    def to(self, device: torch.device) -> "PerceptualDistance":
        self.backbone.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        check_bytes(images)
        with full_precision(images.device):
            parts = [self._rows(part) for part in images.split(32)]
        return torch.cat(parts) if parts else torch.zeros(0, 0)

    def _rows(self, images: Tensor) -> Tensor:
        images, (height, width) = images.float(), images.shape[-2:]
        if self.lowpass:
            images = F.interpolate(images, (self.lowpass, self.lowpass), mode="area")
        size = self.size_of(height, width)
        if size != (height, width) or self.lowpass:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 255)
        rows = []
        for maps, weight in self.layers(images):
            unit = maps / (maps.square().sum(1, keepdim=True).sqrt() + 1e-10)
            scale = (torch.as_tensor(weight, device=maps.device) / maps.shape[-2:].numel()).sqrt()
            rows.append((unit * scale.view(1, -1, 1, 1)).flatten(1))
        return torch.cat(rows, 1)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The size at which images of these pixels are compared."""
        factor = max(min(1, MAX_SIZE / max(height, width)), self.min_size / min(height, width))
        return round(height * factor), round(width * factor)

    def protocol(self, height: int, width: int) -> dict[str, str | list[int] | None]:
        """How images of these pixels are compared: `size` is what the network sees."""
        return {"key": self.key, "weights_sha256": self.sha256, "size": list(self.size_of(height, width))}


class LPIPS(PerceptualDistance):
    """LPIPS 0.1 with the heads of the package lpips on torchvision's AlexNet or VGG-16 `state`: `lpips_alex`, `lpips_vgg`."""

    def __init__(self, state: Mapping[str, Tensor], net: str, sha256: str) -> None:
        import lpips

        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torchvision, about how lpips builds the trunk
            self.network: nn.Module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval().requires_grad_(False)
        trunk = self.network.net
        trunk.load_state_dict({name: state[f"features.{name.partition('.')[2]}"] for name in trunk.state_dict()})
        self.key, self.sha256, self.min_size = f"lpips_{net}", sha256, 64
        self.lowpass = None

    def layers(self, images: Tensor) -> list[tuple[Tensor, Tensor | float]]:
        maps = self.network.net(self.network.scaling_layer(images / 127.5 - 1))
        return [(layer, head.model[-1].weight.flatten()) for layer, head in zip(maps, self.network.lins, strict=True)]

    def to(self, device: torch.device) -> "LPIPS":
        self.network.to(device)
        return self


class ShiftTolerantLPIPS(PerceptualDistance):
    """LPIPS that blurs before it halves (Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric", 2022), with trunk
    and heads from the `state` of the authors' files: `st_lpips_alex`, `st_lpips_vgg`."""

    def __init__(self, state: Mapping[str, Tensor], sha256: str) -> None:
        weights = [name for name in state if name.startswith("net.") and name.endswith(".weight")]
        names = sorted((name.removesuffix(".weight") for name in weights), key=_number_of_layer)
        self.convolutions = [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in names]
        self.heads = [state[f"lin{number}.model.1.weight"].flatten() for number in range(5)]
        self.shift, self.scale = state["scaling_layer.shift"], state["scaling_layer.scale"]
        self.blocks = {5: (1, 1, 1, 1, 1), 13: (2, 2, 3, 3, 3)}[len(names)]
        self.key = "st_lpips_alex" if len(names) == 5 else "st_lpips_vgg"
        self.sha256, self.min_size, self.lowpass = sha256, 64, None

    def layers(self, images: Tensor) -> list[tuple[Tensor, Tensor | float]]:
        maps, remaining, layers = (images / 127.5 - 1 - self.shift) / self.scale, list(self.convolutions), []
        alex = len(remaining) == 5
        for number, (depth, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            if number in (1, 2) or (number and not alex):
                maps = _half_blurred(F.max_pool2d(maps, 3 if alex else 2, 1))
            for _ in range(depth):
                weight, bias = remaining.pop(0)
                maps = F.conv2d(maps, weight, bias, padding=2 if alex and number == 0 else weight.shape[-1] // 2)
                maps = (_half_blurred(maps) if alex and number == 0 else maps).relu()
            layers.append((maps, head))
        return layers

    def to(self, device: torch.device) -> "ShiftTolerantLPIPS":
        self.convolutions = [(weight.to(device), bias.to(device)) for weight, bias in self.convolutions]
        self.heads = [head.to(device) for head in self.heads]
        self.shift, self.scale = self.shift.to(device), self.scale.to(device)
        return self


def _number_of_layer(name: str) -> int:
    return int(name.rpartition(".")[2])


def _half_blurred(maps: Tensor) -> Tensor:
    """Binomial blur over 3 x 3, then every second pixel; two reflected pixels around."""
    line = torch.tensor([0.25, 0.5, 0.25], device=maps.device)
    kernel = (line[:, None] * line).expand(maps.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(maps, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=maps.shape[1])


def load_perceptual(backbone: Backbone | None, weights: str | None) -> PerceptualDistance:
    """LPIPS where `weights` is torchvision's file of AlexNet or VGG-16, ST-LPIPS where it is one of that distance, else the
    distance on `backbone`.

    FileNotFoundError or ValueError for a file that is missing, of another network or not readable safely.
    """
    if weights is None:
        return PerceptualDistance(backbone)
    path = Path(weights)
    state, sha256 = read_state_dict(path)
    for net, name in reversed(TRUNKS.items()):
        if name in state:
            try:
                return LPIPS(state, net, sha256)
            except (RuntimeError, KeyError) as error:
                raise UserError(f"{path} does not fit {net}: {str(error).splitlines()[-1].strip()}") from error
    if "scaling_layer.shift" in state and "lin4.model.1.weight" in state:
        try:
            return ShiftTolerantLPIPS(state, sha256)
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} does not fit ST-LPIPS: {error} is unknown or missing") from error
    raise UserError(f"{path} contains neither AlexNet nor VGG-16 with torchvision's names, nor ST-LPIPS")
