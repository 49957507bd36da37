import pickle
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import inception_v3, mobilenet_v2

from metrics.backbones import backbone as backbone_module
from metrics.backbones import registry
from metrics.backbones.inception import FIDInception, fid_inception
from metrics.backbones.mobilenet import MobileNetV2
from metrics.backbones.random_cnn import RandomCNN
from metrics.backbones.registry import load_backbone
from modules.ops.pretrained import PACKAGE, PACKAGE_SHA256

PACKAGE_IS_INSTALLED = registry.package_file() is not None


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(fid_inception().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def mobilenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    torch.save(mobilenet_v2(weights=None).state_dict(), path)
    return path


def test_random_cnn_is_the_same_everywhere_and_frozen() -> None:
    state = torch.get_rng_state()
    first, second = RandomCNN(), RandomCNN().train()
    assert torch.equal(state, torch.get_rng_state())
    assert first.fingerprint() == second.fingerprint()
    assert not any(part.training for part in second.modules())
    images = noise(3, 3, 20, 30)
    features = first(images)
    assert features.shape == (3, 480) and features.dtype == torch.float32
    assert not features.requires_grad and torch.equal(features, second(images))
    assert first.key("kd") == "kd_rand_cnn" and first.key("fd") == "fd_rand_cnn"


def test_features_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, images = RandomCNN(), noise(5, 3, 24, 32)
    together = backbone(images)
    monkeypatch.setattr(backbone_module, "CPU_BATCH", 2)
    assert torch.allclose(backbone(images), together, atol=1e-6)
    assert torch.allclose(torch.cat([backbone(image[None]) for image in images]), together, atol=1e-5)
    assert backbone(images[:0]).shape == (0, 480)


def test_full_precision_under_autocast() -> None:
    backbone, images = RandomCNN(), noise(2, 3, 24, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(backbone(images), backbone(images)) and backbone(images).dtype == torch.float32
        under = backbone(images)
    assert torch.equal(under, backbone(images))


def test_lowpass_removes_fine_noise_and_is_named() -> None:
    plain, low = RandomCNN(), RandomCNN(lowpass=8)
    gray = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    grain = (gray.int() + (noise(1, 3, 64, 64).int() // 16 - 8)).to(torch.uint8)
    moved = [(backbone(grain) - backbone(gray)).norm().item() for backbone in (plain, low)]
    assert moved[1] < moved[0] / 3
    assert low.key("kd") == "kd_rand_cnn_lowpass8" and low.fingerprint() != plain.fingerprint()


def test_only_bytes_are_taken() -> None:
    with pytest.raises(TypeError, match="float32"):
        RandomCNN()(torch.rand(1, 3, 8, 8))


def test_auto_falls_back_to_the_random_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PACKAGE", "a-package-that-nobody-has-installed")
    monkeypatch.setattr("modules.ops.pretrained.PACKAGE", "a-package-that-nobody-has-installed")
    assert isinstance(load_backbone(), RandomCNN)
    with pytest.raises(FileNotFoundError, match="a-package-that-nobody-has-installed"):
        load_backbone("mobilenet_v2")
    with pytest.raises(FileNotFoundError, match="weights"):
        load_backbone("inception_v3_fid")


@pytest.mark.skipif(not PACKAGE_IS_INSTALLED, reason=f"the optional package {PACKAGE} is not installed")
def test_mobilenet_of_the_package() -> None:
    backbone = load_backbone()
    assert backbone.key("kd") == "kd_mobilenet_v2" and backbone.weights_sha256 == PACKAGE_SHA256
    network = mobilenet_v2(weights=None).eval()
    network.load_state_dict(torch.load(registry.package_file(), weights_only=True))
    images = noise(2, 3, 224, 224)  # no resize: torchvision's own network on its own normalization
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        expected = network.features(inputs).mean((2, 3))
    assert torch.allclose(backbone(images), expected, atol=1e-4)


@pytest.mark.skipif(not PACKAGE_IS_INSTALLED, reason=f"the optional package {PACKAGE} is not installed")
def test_changed_package_file_is_refused(monkeypatch: pytest.MonkeyPatch, mobilenet_file: Path) -> None:
    monkeypatch.setattr(registry, "package_file", lambda: mobilenet_file)
    with pytest.raises(ValueError, match="SHA-256"):
        load_backbone()


def test_mobilenet_of_a_file_is_named_after_its_hash(mobilenet_file: Path) -> None:
    state = torch.get_rng_state()
    backbone = load_backbone(weights=str(mobilenet_file))
    assert isinstance(backbone, MobileNetV2) and torch.equal(state, torch.get_rng_state())
    assert backbone.key("kd") == f"kd_mobilenet_v2_{backbone.weights_sha256[:8]}"
    assert backbone(noise(1, 3, 40, 30), size=64).shape == (1, 1280)


def test_inception_of_a_file_gives_fid_and_kid(inception_file: Path) -> None:
    backbone = load_backbone(weights=str(inception_file))
    assert isinstance(backbone, FIDInception)
    assert (backbone.key("fd"), backbone.key("kd")) == ("fid", "kid")
    assert "does not begin" in backbone.caution()
    images = noise(2, 3, 40, 30)
    features = backbone(images)
    assert features.shape == (2, 2048) and torch.equal(features, backbone.train()(images))
    assert backbone(images, size=149).shape == (2, 2048)


def test_files_that_do_not_fit_are_refused(tmp_path: Path, mobilenet_file: Path, inception_file: Path) -> None:
    birds = inception_v3(weights=None, num_classes=200, aux_logits=False, init_weights=False).state_dict()
    torch.save(birds, tmp_path / "birds.pth")
    state = torch.load(mobilenet_file, weights_only=True)
    torch.save({k: v for k, v in state.items() if "features.3" not in k}, tmp_path / "part.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save(mobilenet_v2(weights=None), tmp_path / "network.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(print))
    for name, message in {
        "birds.pth": "200 classes",
        "part.pth": "does not fit mobilenet_v2",
        "other.pth": "neither",
        "list.pth": "expected a state dict",
        "network.pth": "would run code",
        "text.pth": "not a file of tensors",
        "code.pth": "would run code",
    }.items():
        with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError, match=message) as error:
            load_backbone(weights=str(tmp_path / name))
        assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_backbone(weights=str(tmp_path / "nowhere.pth"))
    with pytest.raises(ValueError, match="contains mobilenet_v2"):
        load_backbone("inception_v3_fid", weights=str(mobilenet_file))
    with pytest.raises(ValueError, match="Did you mean mobilenet_v2"):
        load_backbone("mobilnet")
    with pytest.raises(ValueError, match="lowpass"):
        load_backbone(weights=str(inception_file), lowpass=64)
