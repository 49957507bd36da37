"""Toy methods whose answers are known, and files for them; tasks are built from the YAML files that users give."""

from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from cli.build import build
from modules.base import GenerativeModule
from modules.ops.noise import rand, randn

TASKS = Path(__file__).parents[2] / "configs" / "tasks"
THREE = np.array([[250, 10, 10], [20, 240, 30], [15, 25, 230]], dtype=np.uint8)  # colors


class NoisyMethod(GenerativeModule):
    """Samples are noise, injection inverts the image and adds noise, fills keep the image beside the hole, dimmed."""

    image_size = (24, 32)
    trained = True

    @property
    def samples_ready(self):
        return self.trained

    def sample(self, num_images, size=None, temperature: float = 1.0, top_k: int | None = None):
        assert not self.training
        return rand(num_images, 3, *(size or self.image_size)) * temperature

    def inject(self, images, scale=0):
        if not 0 <= scale <= 2:
            raise ValueError(f"scale is {scale}; this model has the scales 0 to 2")
        return -images * 0.5 + 0.1 * torch.rand_like(images) + scale

    def inpaint(self, image, mask, num_images, candidates: int = 1):
        return torch.where(mask > 0, rand(num_images, *image.shape[1:]) * candidates, image * 0.5)


class ExactMethod(GenerativeModule):
    """Injection inverts, reconstruction dims, enlarging repeats pixels, frames count up, latents are two numbers."""

    image_size = (24, 32)

    def sample(self, num_images, size=None):
        return torch.rand(num_images, 3, *(size or self.image_size))

    def inject(self, images, scale=1, alpha: float = 7.0):
        if scale < 1:
            raise ValueError("scale is 0; allowed are 1 to 2")
        return -images * 0.5 + scale + alpha

    def reconstruct(self, images):
        return images * 0.25

    def super_resolve(self, images, factor):
        size = [int(side * factor) for side in images.shape[-2:]]
        return torch.nn.functional.interpolate(images, size) + 1e-6 * torch.rand(1)

    def animate(self, num_frames, alpha: float = 0.1, beta: float = 0.9, start_scale: int = 0):
        steps = torch.linspace(-1, 1, num_frames).view(-1, 1, 1, 1).expand(-1, 3, *self.image_size)
        return steps.clone() * alpha * beta + start_scale + 1e-6 * torch.rand(1)

    def sample_latents(self, num_images, size=None):
        return randn(num_images, 2) + size[0]

    def encode(self, images):
        return images[:, :2].mean((2, 3))

    def decode(self, latents, size=None):
        return latents.mean(1).view(-1, 1, 1, 1).expand(-1, 3, *size)


class PlainMethod(GenerativeModule):
    image_size = (24, 32)

    def sample(self, num_images, size=None):
        return torch.zeros(num_images, 3, *self.image_size)


def task(name: str, **keys):
    """The task as evaluate.py builds it: its YAML, then the keys of the command line."""
    return build(OmegaConf.merge(OmegaConf.load(TASKS / f"{name}.yaml").task, keys))


def saved(path: Path, pixels, mode: str | None = None) -> str:
    Image.fromarray(np.asarray(pixels, dtype=np.uint8), mode).save(path)
    return str(path)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(256, size=(height, width, channels), dtype=np.uint8)


def outside() -> torch.Tensor:
    """Pixels of the working size that lie 9 pixels or more from the hole of the fixture `files`."""
    far = torch.ones(24, 32, dtype=torch.bool)
    far[:17, :17] = False
    return far
