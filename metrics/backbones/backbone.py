"""Backbone: the base class of all feature extractors."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import UserError
from modules.ops.weights import read_hashed

# Fixed, since the convolution algorithm and so the last digits depend on it. On a CPU activations of more than 32 MB, those of
# 8 images, are taken from the system and returned to it at every layer, which doubles the time.
BATCH, CPU_BATCH = 64, 4


class Backbone(nn.Module):
    """uint8 [N, 3, H, W] of any size -> features [N, d], float32.

    Always in eval mode, without gradient, in full precision. `lowpass` averages images down to that size first: on flat
    drawings invisible noise otherwise moves features half as far as another domain does.
    """

    name: str
    input_size: int
    resize_filter = "bicubic, antialiased"
    min_size = 64  # pixels of the shorter side that `stages` need
    weights_sha256: str | None = None  # of the weight file, if there is one
    class_weights: Tensor | None  # [classes, d] of the classifier of the inception score

    def __init__(self, lowpass: int | None = None) -> None:
        super().__init__()
        if lowpass is not None and lowpass < 8:
            raise UserError(f"lowpass must be null or at least 8 pixels, but is {lowpass}")
        self.lowpass = lowpass
        self.register_buffer("class_weights", None, persistent=False)

    def key(self, kind: str) -> str:
        return f"{kind}_{self.name}" + (f"_lowpass{self.lowpass}" if self.lowpass else "")

    def normalize(self, images: Tensor) -> Tensor:
        """Images in 0…255 to the range the network was trained on."""
        return (images - 127.5) / 127.5

    def resize(self, images: Tensor, size: int) -> Tensor:
        return bicubic(images, (size, size))

    def embed(self, images: Tensor) -> Tensor:
        """Features [N, d] of normalized float images."""
        raise NotImplementedError

    def forward(self, images: Tensor, size: int | None = None) -> Tensor:
        """`size` is the network's input in pixels, by default `input_size`."""

        def rows(part: Tensor) -> Tensor:
            return self.embed(self.normalize(self.resize(low_passed(part, self.lowpass), size or self.input_size)))

        return torch.cat(in_batches(rows, images))

    @property
    def map_keys(self) -> tuple[str, ...]:
        """Keys of the single-image distances, one for each of `layers`, earliest first."""
        return (self.key("sifd"),)

    def layers(self, images: Tensor) -> list[Tensor]:
        """Maps [N, C, h, w] of normalized float images, for as many of `map_keys` as their size reaches."""
        raise NotImplementedError

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [N, 3, H, W], N at least 1, at their original size -> feature maps [N, C, h, w] by key, image by image so
        that their last bits depend on the image alone. A layer with fewer than two positions is left out."""
        parts = in_batches(lambda image: self.layers(self.normalize(low_passed(image, self.lowpass))), images, 1)
        maps = dict(zip(self.map_keys, map(torch.cat, zip(*parts, strict=True)), strict=False))
        return {key: layer for key, layer in maps.items() if layer.shape[-2:].numel() > 1}

    def stages(self, images: Tensor) -> list[Tensor]:
        """Maps [N, C, h, w] of normalized float images at their original size, fine to coarse, for perceptual distances."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    def protocol(self) -> dict[str, str | int | None]:
        return {
            "backbone": self.name,
            "backbone_fingerprint": self.fingerprint(),
            "weights_sha256": self.weights_sha256,
            "input_size": self.input_size,
            "resize": self.resize_filter,
            "lowpass": self.lowpass,
        }

    def caution(self) -> str | None:
        return "not comparable with published FID, KID and SIFID: another backbone"

    def fingerprint(self) -> str:
        """SHA-256 over all tensors and the preprocessing."""
        digest = hashlib.sha256(f"{self.name} {self.input_size} {self.resize_filter} {self.lowpass}".encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def read_state_dict(path: Path) -> tuple[Mapping[str, Tensor], str]:
    """The state dict in a file, read by the safe loader, and the file's SHA-256; FileNotFoundError or UserError."""
    state, sha256 = read_hashed(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a state dict of tensors by name, got {type(state).__name__}")
    return state, sha256


def load_state_dict(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Strict, except for counters that no forward pass reads and the auxiliary classifier of training."""
    state = {name: tensor for name, tensor in state.items() if not name.startswith("AuxLogits.")}
    counters = {n: t for n, t in network.state_dict().items() if n.endswith("num_batches_tracked")}
    network.load_state_dict(counters | state)


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Any], images: Tensor, batch_size: int | None = None) -> list[Any]:
    """`function` of uint8 [N, 3, H, W] in parts, of which there is one even without images: no autocast and, on a GPU,
    deterministic convolutions without TF32."""
    check_bytes(images)
    on_cpu = images.device.type == "cpu"
    exact = nullcontext() if on_cpu else torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.autocast(images.device.type, enabled=False), exact:
        return [function(part) for part in images.split(batch_size or (CPU_BATCH if on_cpu else BATCH))]


def low_passed(images: Tensor, side: int | None) -> Tensor:
    """Bytes as floats in 0…255, averaged down to `side` x `side` pixels if given."""
    return F.interpolate(images.float(), (side, side), mode="area") if side else images.float()


def bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    same = tuple(images.shape[-2:]) == size
    return images if same else F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 255)


def outputs_of(layers: list[nn.Module], network: nn.Module, images: Tensor) -> list[Tensor]:
    outputs: list[Tensor] = []
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.register_forward_hook(lambda _, __, output: outputs.append(output)))
        network(images)
    return outputs


def check_bytes(images: Tensor) -> None:
    """TypeError unless they are uint8 [N, 3, H, W]: floats would silently be measured on another scale."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise TypeError(f"images have to be uint8 [N, 3, H, W], got {images.dtype} {tuple(images.shape)}")
