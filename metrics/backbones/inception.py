"""Inception-v3: torchvision's for ImageNet (published SIFID), and the one of published FID and KID numbers."""

from collections.abc import Mapping

import torch_fidelity.feature_extractor_inceptionv3 as fidelity
from torch import Tensor, nn
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision.models import inception, inception_v3

from core.errors import UserError
from metrics.backbones.backbone import Backbone, load_state_dict, outputs_of

FID_CLASSES, IMAGENET_CLASSES = 1008, 1000
FID_SHA256_PREFIX = "6726825d"  # part of the name under which the weights of 2015 are distributed
IMAGENET_SHA256_PREFIXES = ("0cc3c7bd", "1a9a5a14")  # torchvision's files of today and of 2019, with the same weights
STEM = (  # the layers before each of the two first poolings, a pooling beginning the second part
    ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    ("maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
)
MIN_STEM_SIZE = 7  # pixels that either part needs on both sides


class Inception(Backbone):
    """An Inception-v3 with torchvision's names: the 2048 features before its classifier `fc`."""

    input_size, min_size = 299, 96

    def __init__(self, network: nn.Module, state: Mapping[str, Tensor], sha256: str, lowpass: int | None = None) -> None:
        super().__init__(lowpass)
        self.network = network
        load_state_dict(network, state)
        self.register_buffer("class_weights", network.fc.weight.detach().clone(), persistent=False)
        network.fc = nn.Identity()
        self.weights_sha256 = sha256
        self.eval().requires_grad_(False)

    def embed(self, images: Tensor) -> Tensor:
        return self.network(images)

    @property
    def map_keys(self) -> tuple[str, ...]:
        return f"{self.key('sifd')}_pool1", f"{self.key('sifd')}_pool2"

    def layers(self, images: Tensor) -> list[Tensor]:
        """Maps before the first pooling (64 channels; from 7 pixels on) and before the second (192; from 19 pixels on)."""
        maps = []
        for part in STEM:
            if min(images.shape[-2:]) < MIN_STEM_SIZE:
                break
            for name in part:
                images = getattr(self.network, name)(images)
            maps.append(images)
        return maps

    def stages(self, images: Tensor) -> list[Tensor]:
        layers = ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c")
        return outputs_of([getattr(self.network, layer) for layer in layers], self.network, images)


class ImageNetInception(Inception):
    """The Inception-v3 of published SIFID."""

    name = "inception_v3"

    def __init__(self, state: Mapping[str, Tensor], sha256: str, lowpass: int | None = None) -> None:
        super().__init__(inception_v3(weights=None, aux_logits=False, init_weights=False), state, sha256, lowpass)

    def key(self, kind: str) -> str:
        return "sifid" if kind == "sifd" and not self.lowpass else super().key(kind)

    def caution(self) -> str | None:
        if str(self.weights_sha256).startswith(IMAGENET_SHA256_PREFIXES) and not self.lowpass:
            return "not comparable with published FID and KID: another backbone"
        return super().caution()


class FIDInception(Inception):
    """The Inception-v3 of published FID and KID, with the input of the graph of 2015."""

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
        known = str(self.weights_sha256).startswith(FID_SHA256_PREFIX)
        return None if known else f"fid and kid of a file whose SHA-256 does not begin with {FID_SHA256_PREFIX}"

    def normalize(self, images: Tensor) -> Tensor:
        return (images - 128) / 128

    def resize(self, images: Tensor, size: int) -> Tensor:
        return interpolate_bilinear_2d_like_tensorflow1x(images, size=(size, size), align_corners=False)


def fid_inception() -> nn.Module:
    """Untrained, with the blocks of torch_fidelity, which pool as the network of 2015. Its own extractor unpickles files."""
    blocks = [
        inception.BasicConv2d, fidelity.InceptionA, inception.InceptionB, fidelity.InceptionC, inception.InceptionD,
        fidelity.InceptionE_1, inception.InceptionAux,
    ]  # fmt: skip
    network = inception.Inception3(FID_CLASSES, aux_logits=False, inception_blocks=blocks, init_weights=False)
    network.Mixed_7c = fidelity.InceptionE_2(2048)
    return network
