"""Realism of samples of a domain: the mean probability that a classifier of source and target images calls them target."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from core.errors import UserError
from metrics.backbones.backbone import in_batches
from metrics.feature_metric import SampleSetMetric
from modules.ops.images import from_uint8, resize, to_uint8
from modules.ops.weights import read_hashed

SIDE = 64  # pixels; larger images are brought down to it
WIDTHS = (32, 64, 96, 128)
MIN_IMAGES = 50  # of either domain
BATCH = 64
HELD_OUT = 10  # one image of so many is not trained on
MIN_ACCURACY, MAX_SOURCE = 0.95, 0.15  # on images that were not trained on; of the source


class RealismClassifier(nn.Module):
    """uint8 [N, 3, H, W] -> probability [N] of the target domain.

    Paper (Zhao et al. 2022, arXiv 2203.04121): a convolutional network that is not described; here: four strided convolutions
    on images of at most 64 pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(8, outputs), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * WIDTHS[-1], 1))
        self.sha256: str | None = None  # of the file
        self.facts: dict[str, Any] = {}

    def logits(self, images: Tensor) -> Tensor:
        """Logits [N] of images in [-1, 1]."""
        factor = min(1, SIDE / max(images.shape[-2:]))
        size = tuple(round(side * factor) for side in images.shape[-2:])
        return self.layers(resize(images, size)).flatten()

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(in_batches(lambda part: self.logits(from_uint8(part)).sigmoid(), images, BATCH))


def unrealistic(source: Tensor, target: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Images of neither domain, uint8 [N, 3, H, W] by name. A classifier that has seen the two domains only calls some
    of these realistic: images of one color, noise, and images blurred to a quarter of their resolution."""
    num_samples, size = len(target), target.shape[-2:]
    colors = torch.randint(256, (num_samples, 3, 1, 1), generator=generator, dtype=torch.uint8)
    colors[::2] = colors[::2, :1]  # gray
    colors[1::4] = target[1::4].float().mean((2, 3), keepdim=True).round().to(torch.uint8)
    noise = torch.randint(256, (num_samples, 3, *size), generator=generator, dtype=torch.uint8)
    shuffled = target.flatten(2)[:, :, torch.randperm(size.numel(), generator=generator)].view_as(target)
    small = tuple(max(1, side // 4) for side in size)
    blurred = [to_uint8(resize(resize(from_uint8(images), small), tuple(size))) for images in (source, target)]
    return {"blank": colors.expand(-1, -1, *size).contiguous(), "noise": noise, "shuffled": shuffled,
            "blurred_source": blurred[0], "blurred_target": blurred[1]}  # fmt: skip


def train_realism(source: Tensor, target: Tensor, steps: int = 600, seed: int = 0) -> RealismClassifier:
    """A classifier of uint8 [N, 3, H, W] of the source domain against [M, 3, H, W] of the target, none of which may be images
    that a model adapts to. `facts` are its accuracy, and its mean probability on each kind of images, all held out.

    UserError for fewer than 50 images of a domain, and where the two are not told apart.
    """
    for name, images in (("source", source), ("target", target)):
        if len(images) < MIN_IMAGES:
            raise UserError(
                f"{len(images)} {name} images are too few for a classifier, which needs {MIN_IMAGES} that no model was trained "
                f"on; where only the few training images exist, realism cannot be measured"
            )
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        classifier, generator = RealismClassifier(), torch.Generator().manual_seed(seed)
        held = [torch.arange(len(images)) % HELD_OUT == 0 for images in (source, target)]
        negatives = unrealistic(source[~held[0]], target[~held[1]], generator)
        others, quarter = torch.cat([*negatives.values()]), BATCH // 4
        optimizer = torch.optim.AdamW(classifier.parameters(), 2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        labels = torch.cat([torch.zeros(2 * quarter), torch.ones(2 * quarter)])
        for _ in trange(steps, desc="realism classifier", leave=False, disable=None):
            parts = ((source[~held[0]], quarter), (others, quarter), (target[~held[1]], 2 * quarter))
            batch = torch.cat([images[torch.randint(len(images), (count,))] for images, count in parts])
            batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(-1), batch)
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(classifier.logits(from_uint8(batch)), labels).backward()
            optimizer.step()
            schedule.step()
    classifier.eval().requires_grad_(False)
    rows = {"source": source[held[0]], "target": target[held[1]]}
    rows |= unrealistic(*rows.values(), generator)
    probabilities = {name: classifier(images) for name, images in rows.items()}
    sides = ((probabilities["source"] < 0.5).float().mean(), (probabilities["target"] >= 0.5).float().mean())
    accuracy = float(sum(sides) / 2)
    means = {name: float(values.mean()) for name, values in probabilities.items()}
    if accuracy < MIN_ACCURACY or means["source"] > MAX_SOURCE:
        raise UserError(
            f"the classifier does not tell the two domains apart: accuracy {accuracy:.3f} on held-out images (at least "
            f"{MIN_ACCURACY}), mean probability of source images {means['source']:.3f} (at most {MAX_SOURCE})"
        )
    classifier.facts = {"accuracy": accuracy, "probabilities": means, "image_size": list(target.shape[-2:]), "steps": steps,
                        "seed": seed, "num_source": len(source), "num_target": len(target)}  # fmt: skip
    return classifier


def realism_file(classifier: RealismClassifier, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a classifier's file: weights, how it was trained, and further `facts`."""
    return {"realism": classifier.state_dict(), "facts": {**classifier.facts, **facts}}


def load_realism(path: str) -> RealismClassifier:
    """The classifier of a file. UserError for a file of another kind."""
    content, sha256 = read_hashed(path)
    classifier = RealismClassifier()
    try:
        classifier.load_state_dict(content["realism"])
        classifier.facts = dict(content["facts"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise UserError(f"{path} holds no realism classifier; configs/tasks/realism.yaml makes one") from None
    classifier.sha256 = sha256
    return classifier.eval().requires_grad_(False)


class Realism(SampleSetMetric):
    """Mean probability p_t of the samples, uint8, by a classifier; near 0 for source images, near 1 for real targets."""

    value_names = ("realism",)

    def __init__(self, reals: Tensor, classifier: RealismClassifier) -> None:
        super().__init__(reals)
        self.classifier = [classifier]  # in a list: not a submodule, which the metric's state would include

    def measure(self, samples: Tensor) -> Tensor:
        return self.classifier[0](samples)

    def value(self, reals: Tensor, fakes: Tensor) -> dict[str, Tensor]:
        self.columns = {"realism": fakes.double()}
        return {"realism": fakes.double().mean()}
