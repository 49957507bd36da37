"""MobileNetV2; its weights come from an optional package or a file."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.models import mobilenet_v2

from metrics.backbones.backbone import Backbone, load_state_dict, outputs_of
from modules.ops.pretrained import PACKAGE_SHA256


class MobileNetV2(Backbone):
    """Classifier of ImageNet (Sandler et al., 2018), the 1280 pooled last features. `state` is torchvision's state dict."""

    name, input_size = "mobilenet_v2", 224

    def __init__(self, state: Mapping[str, Tensor], sha256: str, lowpass: int | None = None) -> None:
        super().__init__(lowpass)
        network = mobilenet_v2(weights=None)
        load_state_dict(network, state)
        self.features = network.features.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.weights_sha256 = sha256
        if sha256 != PACKAGE_SHA256:
            self.name = f"mobilenet_v2_{sha256[:8]}"
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1) * 255)
        self.eval().requires_grad_(False)

    def normalize(self, images: Tensor) -> Tensor:
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def embed(self, images: Tensor) -> Tensor:
        return self.features(images).mean((2, 3))

    def layers(self, images: Tensor) -> list[Tensor]:
        return [self.features[:4](images)]  # 24 channels at a quarter of the size, as the second layer of SIFID

    def stages(self, images: Tensor) -> list[Tensor]:
        return outputs_of([self.features[i] for i in (1, 3, 6, 13, 17)], self.features, images)  # the last of each size
