"""Perceptual distances between images, as squared Euclidean distances of rows that each image gets once."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from core.errors import UserError
from metrics.backbones.backbone import Backbone, bicubic, in_batches, low_passed, read_state_dict
from modules.ops.trunks import ShiftTolerantTrunk

MAX_SIZE = 256  # pixels of the longer side; larger images are brought down to it
TRUNKS = {"vgg": "features.28.weight", "alex": "features.10.weight"}  # the last layer of torchvision's files


class PerceptualDistance(nn.Module):
    """uint8 [N, 3, H, W] -> rows [N, D] whose squared distances are sum over layers of mean over positions of the weighted
    squared difference of unit-length features (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a
    Perceptual Metric", 2018, equation 1). Here with the weight 1 / channels on the stages of a backbone."""

    min_size, lowpass = 64, None

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.key, self.min_size = backbone, backbone.key("pd"), backbone.min_size
        self.sha256, self.lowpass = backbone.weights_sha256, backbone.lowpass

    def layers(self, images: Tensor) -> list[tuple[Tensor, Tensor | float]]:
        """Features [N, C, h, w] of floats in 0…255, and the weight [C] or one number of each layer."""
        stages = self.backbone.stages(self.backbone.normalize(images))
        return [(stage, 1 / stage.shape[1]) for stage in stages]

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(in_batches(self._rows, images))

    def _rows(self, images: Tensor) -> Tensor:
        images = bicubic(low_passed(images, self.lowpass), self.size_of(*images.shape[-2:]))
        rows = []
        for maps, weight in self.layers(images):
            unit = maps / (maps.square().sum(1, keepdim=True).sqrt() + 1e-10)
            scale = (torch.as_tensor(weight, device=maps.device) / maps.shape[-2:].numel()).sqrt()
            rows.append((unit * scale.view(1, -1, 1, 1)).flatten(1))
        return torch.cat(rows, 1)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The size at which images are compared: unchanged between `min_size` on the shorter and 256 on the longer side."""
        factor = max(min(1, MAX_SIZE / max(height, width)), self.min_size / min(height, width))
        return round(height * factor), round(width * factor)

    def protocol(self, height: int, width: int) -> dict[str, str | list[int] | None]:
        return {"key": self.key, "weights_sha256": self.sha256, "size": list(self.size_of(height, width))}


class LPIPS(PerceptualDistance):
    """LPIPS 0.1 with the heads of the package lpips on torchvision's AlexNet or VGG-16 `state`."""

    def __init__(self, state: Mapping[str, Tensor], net: str, sha256: str) -> None:
        import lpips

        nn.Module.__init__(self)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torchvision, about how lpips builds the trunk
            self.network: nn.Module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval().requires_grad_(False)
        trunk = self.network.net
        trunk.load_state_dict({name: state[f"features.{name.partition('.')[2]}"] for name in trunk.state_dict()})
        self.key, self.sha256 = f"lpips_{net}", sha256

    def layers(self, images: Tensor) -> list[tuple[Tensor, Tensor | float]]:
        maps = self.network.net(self.network.scaling_layer(images / 127.5 - 1))
        return [(layer, head.model[-1].weight.flatten()) for layer, head in zip(maps, self.network.lins, strict=True)]


class ShiftTolerantLPIPS(PerceptualDistance):
    """LPIPS that blurs before it halves, with trunk and heads from the `state` of the authors' files."""

    def __init__(self, state: Mapping[str, Tensor], sha256: str) -> None:
        nn.Module.__init__(self)
        self.trunk = ShiftTolerantTrunk(alex="net.slice2.5.weight" in state)
        self.trunk.load_state_dict({name: state[name] for name in self.trunk.state_dict()})
        self.heads = nn.ParameterList(state[f"lin{number}.model.1.weight"].flatten() for number in range(5))
        self.requires_grad_(False)
        self.key, self.sha256 = "st_lpips_alex" if self.trunk.alex else "st_lpips_vgg", sha256

    def layers(self, images: Tensor) -> list[tuple[Tensor, Tensor | float]]:
        return list(zip(self.trunk(images / 127.5 - 1), self.heads, strict=True))


def load_perceptual(backbone: Backbone | None, weights: str | None) -> PerceptualDistance:
    """LPIPS where `weights` is torchvision's file of AlexNet or VGG-16, ST-LPIPS where it is one of that distance, else the
    distance on `backbone`. FileNotFoundError or UserError for other files."""
    if weights is None:
        return PerceptualDistance(backbone)
    path = Path(weights)
    state, sha256 = read_state_dict(path)
    net = next((net for net, layer in TRUNKS.items() if layer in state), None)
    if net is None and not {"scaling_layer.shift", "lin4.model.1.weight"} <= state.keys():
        raise UserError(f"{path} contains neither AlexNet nor VGG-16 with torchvision's names, nor ST-LPIPS")
    try:
        return LPIPS(state, net, sha256) if net else ShiftTolerantLPIPS(state, sha256)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = f"{error} is unknown or missing" if isinstance(error, KeyError) else str(error).splitlines()[-1].strip()
        raise UserError(f"{path} does not fit {net or 'ST-LPIPS'}: {reason}") from error
