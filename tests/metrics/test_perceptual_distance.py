from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import lpips
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import alexnet
from torchvision.models.vgg import cfgs, make_layers

from metrics.backbones.inception import FIDInception, fid_inception
from metrics.backbones.random_cnn import RandomCNN
from metrics.perceptual_distance import PerceptualDistance, load_perceptual


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def squared(rows: Tensor) -> Tensor:
    return (rows[0::2] - rows[1::2]).square().sum(1)


def lpips_pair(net: str, folder: Path) -> tuple[Path, lpips.LPIPS]:
    """A file with torchvision's names, and the package's own network with these weights."""
    torch.manual_seed(0)
    features = alexnet(weights=None).features if net == "alex" else make_layers(cfgs["D"])
    path = folder / f"{net}.pth"
    torch.save({f"features.{name}": tensor for name, tensor in features.state_dict().items()}, path)
    theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    slices = [theirs.net.slice1, theirs.net.slice2, theirs.net.slice3, theirs.net.slice4, theirs.net.slice5]
    mine = {name: layer for part in slices for name, layer in part.named_children()}
    for name, layer in mine.items():
        layer.load_state_dict(features[int(name)].state_dict())
    return path, theirs


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_equals_the_package(net: str, tmp_path: Path) -> None:
    path, theirs = lpips_pair(net, tmp_path)
    images = noise(6, 3, 64, 80)
    ours = load_perceptual(None, str(path))
    with torch.no_grad():
        expected = theirs(images[0::2] / 127.5 - 1, images[1::2] / 127.5 - 1).flatten()
    assert squared(ours(images)).tolist() == pytest.approx(expected.tolist(), rel=1e-4) and expected.min() > 0
    assert ours.key == f"lpips_{net}" and len(ours.protocol(64, 80)["weights_sha256"]) == 64


def test_distance_on_a_backbone_by_its_definition() -> None:
    images, network = noise(4, 3, 64, 96), RandomCNN()
    expected = torch.zeros(2)
    for maps in network.stages(images / 127.5 - 1):
        unit = maps / maps.norm(dim=1, keepdim=True)
        expected += (unit[0::2] - unit[1::2]).square().mean(1).mean((1, 2))
    distance = PerceptualDistance(network)
    assert squared(distance(images)).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert distance.key == "pd_rand_cnn" and PerceptualDistance(RandomCNN(lowpass=32)).key == "pd_rand_cnn_lowpass32"


def test_grows_with_noise_and_is_zero_for_equal_images() -> None:
    torch.manual_seed(0)
    image = F.interpolate(torch.rand(1, 3, 6, 6) * 255, (64, 64), mode="bicubic").clamp(0, 255)
    steps = [(image + level * torch.randn(image.shape)).clamp(0, 255).to(torch.uint8) for level in (0, 0, 10, 40)]
    rows = PerceptualDistance(RandomCNN())(torch.cat(steps))
    distances = (rows[1:] - rows[0]).square().sum(1).tolist()
    assert 0 == distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize(("size", "seen"), [((32, 48), (64, 96)), ((64, 96), (64, 96)), ((512, 256), (256, 128))])
def test_size_of_images(size: tuple, seen: tuple) -> None:
    network, sizes = RandomCNN(), []
    network.stages = lambda images: sizes.append(tuple(images.shape[-2:])) or RandomCNN.stages(network, images)
    distance = PerceptualDistance(network)
    distance(noise(1, 3, *size))
    assert sizes == [seen] and distance.protocol(*size)["size"] == list(seen)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        load_perceptual(None, str(tmp_path / "nothing.pth"))
    path = tmp_path / "inception.pth"
    torch.save({name: tensor[:1] for name, tensor in fid_inception().state_dict().items() if tensor.ndim}, path)
    with pytest.raises(ValueError, match="neither AlexNet nor VGG-16"):
        load_perceptual(None, str(path))
    torch.save({"features.10.weight": torch.zeros(2)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="does not fit alex"):
        load_perceptual(None, str(tmp_path / "part.pth"))


def test_stages_of_inception_go_from_fine_to_coarse() -> None:
    torch.manual_seed(0)
    backbone = FIDInception(fid_inception().state_dict(), "0" * 64)
    distance = PerceptualDistance(backbone)
    sizes = [stage.shape[-1] for stage, _ in distance.layers(torch.rand(1, 3, 96, 96) * 255)]
    assert len(sizes) == 5 and sizes == sorted(sizes, reverse=True) and backbone.class_weights.shape == (1008, 2048)
    assert "class_weights" not in backbone.state_dict()


ALEX = {"slice1.0": (3, 64, 11), "slice2.5": (64, 192, 5), "slice3.9": (192, 384, 3), "slice4.11": (384, 256, 3),
        "slice5.13": (256, 256, 3)}  # fmt: skip


def tolerant_state(convolutions: dict[str, tuple[int, int, int]]) -> dict[str, Tensor]:
    """A random file of ST-LPIPS: (inputs, outputs, kernel) of the layers by name."""
    torch.manual_seed(0)
    state = {"scaling_layer.shift": torch.randn(1, 3, 1, 1), "scaling_layer.scale": torch.rand(1, 3, 1, 1) + 0.5}
    for name, (inputs, outputs, kernel) in convolutions.items():
        state[f"net.{name}.weight"] = torch.randn(outputs, inputs, kernel, kernel) / (kernel * inputs**0.5)
        state[f"net.{name}.bias"] = 0.1 * torch.randn(outputs)
        state[f"lin{int(name[5]) - 1}.model.1.weight"] = torch.rand(1, outputs, 1, 1)
    return state


class Blur(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        padded = F.pad(maps, (2, 2, 2, 2), mode="reflect")
        kernel = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])) / 16
        windows = padded.unfold(2, 3, 2).unfold(3, 3, 2)
        return (windows * kernel).sum((-1, -2))


def tolerant_alex(state: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """Layer by layer as the paper's table lists them."""
    conv = [(state[f"net.{name}.weight"], state[f"net.{name}.bias"]) for name in ALEX]
    x = (image / 127.5 - 1 - state["scaling_layer.shift"]) / state["scaling_layer.scale"]
    one = Blur()(F.conv2d(x, *conv[0], padding=2)).relu()
    two = F.conv2d(Blur()(F.max_pool2d(one, 3, 1)), *conv[1], padding=2).relu()
    three = F.conv2d(Blur()(F.max_pool2d(two, 3, 1)), *conv[2], padding=1).relu()
    four = F.conv2d(three, *conv[3], padding=1).relu()
    return [one, two, three, four, F.conv2d(four, *conv[4], padding=1).relu()]


def test_shift_tolerant_lpips_by_its_definition(tmp_path: Path) -> None:
    state = tolerant_state(ALEX)
    torch.save(state, tmp_path / "alex.pth")
    ours, images = load_perceptual(None, str(tmp_path / "alex.pth")), noise(2, 3, 64, 80)
    expected = 0.0
    for number, (a, b) in enumerate(zip(*(tolerant_alex(state, image[None].float()) for image in images), strict=True)):
        a, b = (maps / maps.norm(dim=1, keepdim=True).clamp(min=1e-9) for maps in (a, b))
        expected += ((a - b).square() * state[f"lin{number}.model.1.weight"]).sum(1).mean().item()
    assert squared(ours(images)).item() == pytest.approx(expected, rel=1e-3) and ours.key == "st_lpips_alex"


def test_shift_tolerant_vgg_has_five_blocks(tmp_path: Path) -> None:
    widths, inputs, layers = [64, 128, 256, 512, 512], 3, {}
    names = (("1", "0 2"), ("2", "6 8"), ("3", "12 14 16"), ("4", "20 22 24"), ("5", "28 30 32"))
    for width, (part, numbers) in zip(widths, names, strict=True):
        for number in numbers.split():
            layers[f"slice{part}.{number}"] = (inputs, width, 3)
            inputs = width
    torch.save(tolerant_state(layers), tmp_path / "vgg.pth")
    ours = load_perceptual(None, str(tmp_path / "vgg.pth"))
    assert ours.key == "st_lpips_vgg"
    assert [maps.shape[1] for maps, _ in ours.layers(torch.rand(1, 3, 64, 64))] == widths


def package_file(net: str) -> Path | None:
    try:
        name = f"stlpips_pytorch/weights/vST0.0/{net}_shift_tolerant.pth"
        path = Path(str(distribution("stlpips_pytorch").locate_file(name)))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


@pytest.mark.skipif(package_file("alex") is None, reason="the package stlpips-pytorch with the authors' weights is not there")
def test_shift_tolerant_lpips_is_small_for_a_shift() -> None:
    torch.manual_seed(0)
    image = F.interpolate(torch.rand(2, 3, 12, 12) * 255, (72, 72), mode="bicubic").clamp(0, 255).to(torch.uint8)
    rows = load_perceptual(None, str(package_file("alex")))(torch.cat([image[:, :, 4:68, 4:68], image[:, :, 4:68, 5:69]]))
    shifted, other = (rows[2:] - rows[:2]).square().sum(1), (rows[0] - rows[1]).square().sum()
    assert shifted.max() < 0.1 * other
