"""Conditions: what a conditional generator receives about an image, as one vector for each image.

A method takes `condition: {class_path: …, …}` or null, and builds it by `core.nodes.build_node`. A condition is a part of
the module: its buffers are in checkpoints.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor, nn
from torch.utils.data import Dataset

from core.errors import UserError
from core.types import PathStr, PositiveFloat, PositiveInt
from modules.ops import noise
from modules.ops.bank_rows import Bank
from modules.ops.kmeans import group_means, kmeans, match_labels, mutual_information
from modules.ops.mixture import GaussianMixture, beta_quantiles
from modules.ops.nearest import nearest
from modules.ops.pretrained import DIMENSIONS, Extractor, load_extractor, unit_rms

EXTRACTORS = Literal[
    "mobilenet_v2", "vgg16_fc2", "vgg16_pool5", "resnet50", "simclr_resnet50", "efficientnet_lite0", "st_lpips_alex", "colors"
]  # fmt: skip
CHUNK = 16  # images whose features are computed at once
CLUSTER_ITERATIONS = 30


class Condition(nn.Module):
    """Base of conditions.

    Attributes:
        dim: length of the vectors, which a discriminator receives.
        embedding: length of the codes that a generator receives, a linear function of vectors that it learns; None: codes are
            the vectors.
        one_hot: whether vectors are one-hot.
        by_label: whether vectors are those of the data module's labels.
        paired: whether fakes in a discriminator's step have the vectors of its real images.
    """

    dim: int
    embedding: int | None = None
    one_hot = False
    by_label = False
    paired = False

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        """UserError if these image sets do not give what the condition needs."""

    def prepare(self, module: nn.Module, sets: Mapping[str, Dataset]) -> None:
        """Called when training begins, not on resume: computes what the condition stores of the images, equal on all ranks."""

    def before_iteration(self, module: nn.Module) -> None:
        """Called before each iteration, on all ranks."""

    def of_batch(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Vectors [N, dim] of a training batch."""
        raise NotImplementedError

    def of_fakes(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Vectors [N, dim] of fakes in training, on the CPU or this module's device."""
        raise NotImplementedError

    def draw(self, num_images: int, device: torch.device | None = None) -> Tensor:
        """Vectors [N, dim] to sample with."""
        raise NotImplementedError

    def draw_codes(self, num_images: int, embed: nn.Module, device: torch.device | None = None) -> Tensor:
        """Codes to sample with; `embed` is the generator's function of vectors."""
        return embed(self.draw(num_images, device))

    def refresh(self, embed: nn.Module) -> None:
        """Called after each epoch with the sampling generator's function of vectors; draws nothing from the global state."""


class Labels(Condition):
    """Class labels as one-hot vectors; sampling draws classes with equal chances.

    Args:
        num_classes: number of classes of `datamodule.labels`.
    """

    one_hot = True
    by_label = True

    def __init__(self, num_classes: PositiveInt) -> None:
        super().__init__()
        self.dim = num_classes

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        labels = getattr(sets["image"], "labels", None)
        if labels is None:
            raise UserError("module.condition needs class labels: set datamodule.labels (folder, or FILE.csv:COLUMN)")
        if (num_classes := int(labels.max()) + 1) > self.dim:
            raise UserError(f"module.condition.num_classes is {self.dim}, but the images have {num_classes} classes")
        if single := (labels.bincount() == 1).nonzero().flatten().tolist():
            image = sets["image"].names[int((labels == single[0]).nonzero())]
            raise UserError(f"datamodule.labels: class {single[0]} has one image, {image}; at least two are needed")

    def of_batch(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.of_labels(batch["label"])

    def of_labels(self, labels: Tensor) -> Tensor:
        """One-hot vectors [N, num_classes] of class indices [N]."""
        return F.one_hot(labels, self.dim).to(torch.get_default_dtype())

    def of_fakes(self, num_images: int, generator: torch.Generator) -> Tensor:
        return self.of_labels(torch.randint(self.dim, (num_images,), generator=generator))

    def draw(self, num_images: int, device: torch.device | None = None) -> Tensor:
        return self.of_labels(noise.randint(0, self.dim, (num_images,), device))


class Clusters(Condition):
    """Self-Conditioned GAN (Liu et al. 2020, arXiv 2006.10728): classes are clusters of the discriminator's features.

    Every `interval` iterations k-means begins at the means of the new features in the old clusters; new clusters get the
    numbers of the old ones that they overlap most with. Samples have clusters as often as the training images.

    Paper: labels of images outside of the clustered ones are looked up when they are needed; here: those of all at once.

    Args:
        num_clusters: k.
        interval: iterations between two clusterings.
        max_images: capacity, so that any checkpoint of a configuration fits; mirrored images count.
        max_clustered: images, chosen once, whose features are clustered; others get the nearest cluster.
    Attributes: `agreement`, the normalized mutual information of the last two clusterings.
    """

    one_hot = True
    paired = True

    def __init__(
        self,
        num_clusters: PositiveInt = 100,
        interval: PositiveInt = 25_000,
        max_images: PositiveInt = 200,
        max_clustered: PositiveInt = 25_000,
    ) -> None:
        super().__init__()
        self.dim, self.interval, self.max_clustered = num_clusters, interval, max_clustered
        self.register_buffer("labels", torch.zeros(max_images, dtype=torch.int64))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("agreement", torch.tensor(0.0))

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        images = len(sets["image"])
        if images > len(self.labels):
            raise UserError(f"module.condition.max_images is {len(self.labels)}; set it to {images}, the number of images")
        if self.dim > min(images, self.max_clustered):
            raise UserError(f"module.condition.num_clusters is {self.dim}, but there are {images} images to be clustered")

    @torch.no_grad()
    def before_iteration(self, module: nn.Module) -> None:
        if not module.every(self.interval):
            return
        images, stream = module.training_sets["image"], module.random_stream("clusters", shared=True)
        fixed = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(images), generator=fixed)[: self.max_clustered].sort().values.tolist()

        def features(entries: list[int]) -> Tensor:
            chunks = [entries[start : start + CHUNK] for start in range(0, len(entries), CHUNK)]
            stacks = (torch.stack([images[i] for i in chunk]).to(module.device) for chunk in chunks)
            return torch.cat([module.image_features(stack).flatten(1).float() for stack in stacks])

        points, old = features(chosen), self.labels[: int(self.count)]
        starts = None if len(old) == 0 else group_means(points, old[chosen], self.dim)
        centers = kmeans(points, self.dim, stream, iterations=CLUSTER_ITERATIONS, starts=starts)
        labels = nearest(points, centers)[1]
        if len(chosen) < len(images):
            parts = [list(range(start, min(start + CHUNK, len(images)))) for start in range(0, len(images), CHUNK)]
            labels = torch.cat([nearest(features(part), centers)[1] for part in parts])
        if len(old):
            labels = match_labels(old, labels, self.dim)
            self.agreement.fill_(mutual_information(old, labels, self.dim))
        self.labels[: len(images)] = module.trainer.strategy.broadcast(labels)
        self.count.fill_(len(images))

    def of_labels(self, labels: Tensor) -> Tensor:
        """One-hot vectors [N, k] of cluster numbers [N]."""
        return F.one_hot(labels, self.dim).to(torch.get_default_dtype())

    def of_batch(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.of_labels(self.labels[batch["index"]])

    def of_fakes(self, num_images: int, generator: torch.Generator) -> Tensor:
        picks = torch.randint(max(1, int(self.count)), (num_images,), generator=generator)
        return self.of_labels(self.labels[picks.to(self.labels.device)])

    def draw(self, num_images: int, device: torch.device | None = None) -> Tensor:
        picks = noise.randint(0, max(1, int(self.count)), (num_images,), self.labels.device)
        return self.of_labels(self.labels[picks])


class DataInstancePrior(Condition):
    """DISP (Mangla et al. 2022, arXiv 2012.04256): the condition of an image is what a pretrained network says about it.

    Features of the clean training images, mirrored ones included, are computed once, when a training begins, and stored. In
    training the fakes of both networks have priors of training images. The paper leaves open which layer, how features are
    scaled, the law of mix-up and the sizes of G_emb and of the mixture; here: see the arguments.

    Args:
        extractor: the network, see `modules.ops.pretrained`; `colors` is a control without a network.
        weights: file with its weights; null: the optional package (MobileNetV2).
        max_images: capacity, so that any checkpoint of a configuration fits; mirrored images count.
        scaling: of features: `center` subtracts the mean over the training images, then each row gets a root mean square of
            1, as with `none` without the subtraction; `standardize` gives each feature mean 0 and deviation 1.
        embedding: length of the generator's codes, G_emb.
        law: of priors of samples: those of training images (`memory`), mixtures of two of them (`mixup`; few images), a
            Gaussian or a mixture of Gaussians fitted to the codes after each epoch (`gaussian`, `gmm`; many images).
        mixup_alpha: shares of the two are Beta(alpha, alpha); 1: uniform.
        components: of `gmm`.
        covariance: of `gaussian` and `gmm`; diagonal where a full one has too few images: fewer than 10 × embedding for each
            component.
    """

    paired = True

    def __init__(
        self,
        extractor: EXTRACTORS = "mobilenet_v2",
        weights: PathStr | None = None,
        max_images: PositiveInt = 200,
        scaling: Literal["center", "none", "standardize"] = "center",
        embedding: PositiveInt = 128,
        law: Literal["mixup", "memory", "gaussian", "gmm"] = "mixup",
        mixup_alpha: PositiveFloat = 1.0,
        components: PositiveInt = 50,
        covariance: Literal["full", "diagonal"] = "diagonal",
    ) -> None:
        super().__init__()
        self.dim, self.embedding = DIMENSIONS[extractor], embedding
        self.extractor, self.weights, self.scaling, self.law, self.mixup_alpha = extractor, weights, scaling, law, mixup_alpha
        self.bank = Bank(max_images, (self.dim,))
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("deviation", torch.ones(self.dim))
        self.register_buffer("sha256", torch.zeros(32, dtype=torch.uint8))
        self.mixture = None
        if law in ("gaussian", "gmm"):
            self.mixture = GaussianMixture(components if law == "gmm" else 1, embedding, covariance == "full")
        self._loaded: list[tuple[Extractor, str]] = []  # no submodule: it neither trains nor belongs into checkpoints

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        images = len(sets["image"])
        if images > self.bank.capacity:
            raise UserError(f"module.condition.max_images is {self.bank.capacity}; set it to {images}, the number of images")
        if images < 2:
            raise UserError(f"module.condition: DataInstancePrior needs at least 2 training images, got {images}")
        if self.mixture is not None and len(self.mixture.weights) > images:
            raise UserError(f"module.condition.components is {len(self.mixture.weights)}, but there are {images} images")
        self._network()

    def _network(self) -> tuple[Extractor, str]:
        """The extractor and the SHA-256 of its file, read once."""
        if not self._loaded:
            try:
                self._loaded.append(load_extractor(self.extractor, self.weights))
            except UserError as error:
                raise UserError(f"module.condition.extractor: {error}") from None
        return self._loaded[0]

    def prepare(self, module: nn.Module, sets: Mapping[str, Dataset]) -> None:
        images, strategy = sets["image"], module.trainer.strategy
        network, sha256 = self._network()
        starts = range(0, len(images), CHUNK)
        bar = Tqdm(starts, desc="features of the images", unit="batch", leave=False, delay=3, disable=None)
        with bar if hasattr(bar, "__enter__") else nullcontext():
            chunks = [range(start, min(start + CHUNK, len(images))) for start in bar]
            rows = [network.to(module.device)(torch.stack([images[i] for i in chunk]).to(module.device)) for chunk in chunks]
        rows = strategy.broadcast(torch.cat(rows))  # processors of several kinds may round differently
        self.mean.copy_(rows.mean(0) if self.scaling != "none" else 0)
        if self.scaling == "standardize":
            self.deviation.copy_(rows.std(0, correction=0).clamp(min=1e-3 * float(rows.std())))
        self.sha256.copy_(_digest(sha256))
        self.bank.clear()
        self.bank.append(self._scaled(rows))
        self._loaded.clear()

    def _scaled(self, rows: Tensor) -> Tensor:
        rows = (rows - self.mean) / self.deviation
        return rows if self.scaling == "standardize" else unit_rms(rows)

    def of_images(self, images: Tensor, neighbors: int = 0) -> Tensor:
        """Vectors of any images [N, 3, H, W] in [-1, 1], by the network of the training; with `neighbors` the mean of so many
        nearest ones of training images."""
        network, sha256 = self._network()
        if not torch.equal(_digest(sha256), self.sha256.cpu()):
            raise UserError(f"module.condition.weights: not the file that this model was trained with ({self.extractor})")
        vectors, rows = self._scaled(network.to(images.device)(images)), self.bank.rows
        if not neighbors:
            return vectors
        nearest_rows = torch.cdist(vectors, rows).topk(min(neighbors, len(rows)), largest=False).indices
        return rows[nearest_rows].mean(1)

    def of_batch(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.bank.rows[batch["index"]]

    def of_fakes(self, num_images: int, generator: torch.Generator) -> Tensor:
        return self.bank.rows[torch.randint(len(self.bank), (num_images,), generator=generator).to(self.bank.values.device)]

    def draw(self, num_images: int, device: torch.device | None = None) -> Tensor:
        """Vectors of training images, for `mixup` mixtures of two; those of the other laws are codes only."""
        rows, num_rows = self.bank.rows, len(self.bank)
        first = noise.randint(0, num_rows, (num_images,), rows.device)
        if self.law != "mixup" or num_rows < 2:
            return rows[first]
        second = (first + noise.randint(1, num_rows, (num_images,), rows.device)) % num_rows
        share = noise.rand(num_images, device=rows.device)
        share = share if self.mixup_alpha == 1 else beta_quantiles(share, self.mixup_alpha)
        return rows[second].lerp(rows[first], share[:, None])

    def draw_codes(self, num_images: int, embed: nn.Module, device: torch.device | None = None) -> Tensor:
        if self.mixture is None:
            return embed(self.draw(num_images))
        dim = self.embedding
        return self.mixture.draw(noise.rand(num_images, device=device), noise.randn(num_images, dim, device=device))

    @torch.no_grad()
    def refresh(self, embed: nn.Module) -> None:
        if self.mixture is not None and len(self.bank):  # the space of codes moves during training
            self.mixture.fit(embed(self.bank.rows), torch.Generator().manual_seed(0))


def _digest(sha256: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(sha256 or "00" * 32)), dtype=torch.uint8)
