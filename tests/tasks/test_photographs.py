"""Training images that come back from models of photographs."""

from pathlib import Path

import lightning
import pytest
import torch

from datamodules.image_datamodule import ImageDataModule
from modules.gpnn import GPNN
from modules.ops.images import resize, to_uint8
from modules.singan import SinGAN
from tests.tasks.toys import saved, task


def photograph(folder: Path, height: int, width: int, name: str = "001.jpg"):
    """Data module and file of a starter photograph of this size."""
    data = ImageDataModule("datamodules/starter/landscapes", [height, width], samples_per_epoch=80, image=name)
    data.setup("fit")
    image = data.sets()["image"][0]
    return data, image, saved(folder / "photograph.png", to_uint8(image).permute(1, 2, 0))


def test_gpnn_gives_a_photograph_back(tmp_path):
    """Without noise, at the training size, from the finest scale: above the bounds of the method's own test."""
    _, image, file = photograph(tmp_path, 56, 56)
    for iterations, bound in ((1, 100), (10, 45)):
        module = GPNN([56, 56], noise=0.0, iterations=iterations).eval()
        module.store(image[None])
        made = {
            "generate": task("generate", num_images=1),
            "retarget": task("retarget", image=file),
            "conditional": task("conditional", image=file, scale=module.num_scales - 1),
        }
        for name, instance in made.items():
            pictures = dict(instance(module))
            result = pictures.get("sample_000", next(reversed(pictures.values())))
            assert 10 * torch.log10(4 / (result - image).square().mean()) > bound, name


def test_a_tiling_gives_the_tile_back():
    """Concat-SinGAN knows one image, the row of all; where an image of one tile's aspect is asked for, it is that tile."""
    module = SinGAN([24, 32], tiles=(1, 3), epochs_per_stage=1, min_size=14, scale_factor=0.5, width=8, depth=2).eval()
    torch.manual_seed(0)
    row = torch.rand(1, 3, 24, 96) * 2 - 1
    module.pyramid.reconstruction = lambda number: row
    tiles = torch.cat(row.split(32, 3))
    assert torch.equal(module.reconstruct(tiles[[2, 0]] * 0.9), tiles[[2, 0]])
    assert module.reconstruct(resize(tiles[1:2], (12, 16))).shape == (1, 3, 12, 16)
    assert torch.equal(module.reconstruct(torch.zeros(2, 3, 24, 96)), row.expand(2, -1, -1, -1))


@pytest.mark.slow
def test_singan_gives_a_photograph_back(tmp_path):
    """After 80 iterations a scale, at the training size and from the finest scale, within a third of the contrast."""
    data, image, file = photograph(tmp_path, 24, 32)
    module = SinGAN([24, 32], epochs_per_stage=1, min_size=14, scale_factor=0.5, width=16, depth=2)
    lightning.seed_everything(0, verbose=False)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    lightning.Trainer(accelerator="cpu", max_epochs=-1, num_sanity_val_steps=0, **quiet).fit(module, data)
    finest = module.num_scales - 1
    made = {"retarget": task("retarget", image=file), "conditional": task("conditional", image=file, scale=finest)}
    for name, instance in made.items():
        result = list(instance(module))[-1][1]
        assert (result - image).square().mean().sqrt() < 0.33 * image.std(), name
