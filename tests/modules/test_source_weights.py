"""The source models that come with the project: what configs/stylegan2.yaml and configs/sngan.yaml give, with which
adaptations and TransferGAN begin."""

import importlib.metadata
from pathlib import Path

import pytest
import torch

from cli.build import build
from cli.loader import load_config
from datamodules.image_datamodule import ImageDataModule
from metrics.adaptation import mean_pair_distance, nearest
from metrics.backbones.random_cnn import RandomCNN
from metrics.perceptual_distance import PerceptualDistance, load_perceptual
from metrics.perceptual_diversity import EmbeddingCache
from modules.base import sampling_mode
from modules.ops.images import to_uint8

ROOT = Path(__file__).parents[2]
FILES = {name: ROOT / f"weights/{name}_faces32.pt" for name in ("stylegan2", "sngan")}
FACES = ["datamodule.root=datamodules/starter/faces64.zip", "datamodule.heldout_root=datamodules/starter/faces64_heldout.zip"]
NUMBER = 100


@pytest.fixture(scope="module", params=FILES)
def images(request):
    """Bytes by name: samples, training and held-out faces."""
    config = load_config([str(ROOT / f"configs/{request.param}.yaml"), *FACES])
    source = build(config.module)
    source.load_source(source.read_source(str(FILES[request.param]))[0])
    with sampling_mode(source, 0, range(NUMBER)):
        samples = source.sample(NUMBER)
    data = ImageDataModule(**{k: v for k, v in config.datamodule.items() if k in ("root", "heldout_root", "image_size")})
    data.setup()
    sets = data.sets()
    reals = {name: sets[name].take(range(0, len(sets[name]), len(sets[name]) // NUMBER)) for name in ("image", "image_heldout")}
    return {name: to_uint8(values) for name, values in ({"samples": samples} | reals).items()}


@pytest.mark.parametrize("name", ["rand_cnn", "st_lpips_alex"])
def test_samples_are_as_varied_as_faces_and_near_faces_that_training_never_saw(images, name):
    """Ratios by ST-LPIPS, of pairs and of the nearest: StyleGAN2 0.84 and 1.27 (200 images), SNGAN 0.81 and 1.00 (100)."""
    if name == "rand_cnn":
        distance = PerceptualDistance(RandomCNN())
    else:
        try:
            package = importlib.metadata.distribution("stlpips-pytorch")
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("the optional package with ST-LPIPS is not installed")
        file = "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth"
        distance = load_perceptual(None, str(package.locate_file(file)))
    rows = {key: EmbeddingCache(values, distance) for key, values in images.items()}
    pairs = {key: mean_pair_distance(part) for key, part in rows.items()}
    near = {key: float(nearest(rows[key], rows["image_heldout"])[0].mean()) for key in ("samples", "image")}
    assert pairs["samples"] >= 0.75 * pairs["image"]
    assert near["samples"] <= 1.4 * near["image"]


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_it_is_small_and_holds_tensors_only(file):
    assert file.stat().st_size <= 4_000_000
    state = torch.load(file, weights_only=True)
    assert {key.split(".")[0] for key in state} == {"generator", "generator_ema", "discriminator"}
    assert all(value.isfinite().all() for value in state.values())
