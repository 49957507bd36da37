"""Image and mask files for tasks."""

import pytest
import torch
from PIL import Image

from tests.tasks.toys import noise, saved


@pytest.fixture
def files(tmp_path):
    """A noise image of 64×48 pixels, a mask with a square hole, and an empty mask."""
    torch.manual_seed(0)
    pixels = torch.randint(256, (48, 64, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "image.png")
    mask = Image.new("L", (64, 48))
    mask.save(tmp_path / "empty.png")
    mask.paste(255, (8, 8, 16, 16))
    mask.save(tmp_path / "mask.png")
    return {name: str(tmp_path / f"{name}.png") for name in ("image", "mask", "empty")}


@pytest.fixture
def image(tmp_path):
    return saved(tmp_path / "image.png", noise(48, 64))
