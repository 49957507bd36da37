"""VQGAN (Esser, Rombach & Ommer 2021, arXiv 2012.09841), second stage: a transformer over codes."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor
from torch.optim import AdamW
from torch.utils.data import Dataset

from core.errors import UserError
from core.types import (
    BelowOne,
    Betas,
    ImageSize,
    NonNegativeFloat,
    NonNegativeInt,
    OpenFraction,
    PathStr,
    PositiveFloat,
    PositiveInt,
    Probability,
)  # fmt: skip
from modules.networks.code_transformer import CodeTransformer
from modules.networks.vqgan_checkpoints import check_keys, read_transformer
from modules.ops import noise
from modules.ops.images import resize
from modules.staged import StagedModule
from modules.tokenizer import OnCodes

FINAL_RATE = 0.1  # of the learning rate, at the end of the training
MAX_MEASURED = 500  # images of the diagnostics
MAX_COUNTED = 5000  # training images whose codes make the unigram


class VQGANTransformer(OnCodes, StagedModule):
    """Maximum likelihood of the maps of codes in raster order; samples are drawn code by code and decoded.

    Args:
        image_size, num_codes, downsampling: those of the autoencoder.
        tokenizer_checkpoint: file of the autoencoder: of this project, or a public one, see `VQGAN`.
        num_classes: classes of `datamodule.labels`, whose token begins a sequence; null: a start token.
        start_token: false: code 0 is the start token, as in the released unconditional models.
        source_checkpoint: file whose transformer's weights are the first ones: a public one, or of this project.
        layers, width, heads, dropout, positions, above: see `networks.code_transformer.CodeTransformer`.
        keep: probability that a code stays in the input; others are replaced by random ones, against overfitting.
        lr: of AdamW, rises in `warmup` iterations and falls by a cosine to a tenth; released code: constant,
            4.5e-6 for each image of an iteration.
        temperature, top_k, top_p: of samples, see `networks.pixelcnn.draw`.
    """

    collapse_advice = "a smaller module.lr, a larger module.dropout, more training images"
    fixed_size = True

    def __init__(
        self,
        image_size: ImageSize,
        tokenizer_checkpoint: PathStr,
        epochs: PositiveInt = 20,
        num_codes: PositiveInt = 1024,
        downsampling: PositiveInt = 16,
        num_classes: PositiveInt | None = None,
        start_token: bool = True,
        layers: PositiveInt = 24,
        width: PositiveInt = 1024,
        heads: PositiveInt = 16,
        dropout: BelowOne = 0.0,
        positions: PositiveInt | None = None,
        above: bool = False,
        keep: Probability = 1.0,
        lr: PositiveFloat = 3e-4,
        betas: Betas = (0.9, 0.95),
        weight_decay: NonNegativeFloat = 0.01,
        warmup: NonNegativeInt = 500,
        clip_norm: PositiveFloat | None = 1.0,
        temperature: PositiveFloat = 1.0,
        top_k: PositiveInt | None = None,
        top_p: OpenFraction | None = None,
        source_checkpoint: PathStr | None = None,
    ) -> None:
        super().__init__(epochs)
        self.save_hyperparameters()
        self.image_size = tuple(image_size)
        self.grid = tuple(side // downsampling for side in self.image_size)
        tokens = num_classes or int(start_token)
        self.transformer = CodeTransformer(num_codes, self.grid, tokens, layers, width, heads, dropout, positions, above)
        self._codes: Tensor | None = None  # of the training images as far as they have been seen

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        super().check_data(sets)
        if self.hparams.num_classes is None:
            return
        labels = getattr(sets["image"], "labels", None)
        if labels is None:
            raise UserError("module.num_classes needs class labels: set datamodule.labels (folder, or FILE.csv:COLUMN)")
        if (classes := int(labels.max()) + 1) > self.hparams.num_classes:
            raise UserError(f"module.num_classes is {self.hparams.num_classes}, but the images have {classes} classes")

    def check_tokenizer(self) -> None:
        super().check_tokenizer()
        expected = {"num_codes": self.tokenizer.quantize.num_codes, "downsampling": self.tokenizer.downsampling}
        for key, value in expected.items():
            if self.hparams[key] != value:
                raise UserError(f"module.{key} is {self.hparams[key]}; expected {value}, the autoencoder's")

    def start_from_source(self) -> tuple[str, Any, str]:
        lineage, path = super().start_from_source(), self.hparams.source_checkpoint
        if path:
            try:
                state, expected = read_transformer(path), self.transformer.state_dict()
                check_keys(*({key: tuple(value.shape) for key, value in part.items()} for part in (state, expected)), path)
            except (UserError, OSError) as error:
                raise UserError(f"module.source_checkpoint={path}: {str(error).removeprefix(f'{path}: ')}") from None
            self.transformer.load_state_dict(state)
        return lineage

    # --- training -----------------------------------------------------------------------------------------------------

    def stage_modules(self, stage: int) -> list[torch.nn.Module]:
        return [self.transformer]

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        hp = self.hparams
        return [AdamW(self.transformer.parameter_groups(hp.weight_decay), hp.lr, tuple(hp.betas))]

    def cache_stage(self, stage: int) -> None:
        self._codes = torch.full((len(self.training_sets["image"]), *self.grid), -1, dtype=torch.int32)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        hp, (optimizer,) = self.hparams, self.current_optimizers()
        codes, labels = self._batch_codes(batch), batch["label"] if hp.num_classes else None
        inputs = codes
        if hp.keep < 1:
            replaced = torch.rand(codes.shape) >= hp.keep
            inputs = torch.where(replaced.to(codes.device), torch.randint(hp.num_codes, codes.shape).to(codes.device), codes)
        loss = F.cross_entropy(self.transformer(codes, labels, inputs), codes)
        self._set_rate(batch_idx)
        self.optimize(optimizer, loss, hp.clip_norm)
        self.log_training({"g_loss": loss}, len(codes))

    def _batch_codes(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Codes of a batch; each image is encoded once, by itself, so that its codes do not depend on the batch."""
        for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
            if self._codes[index, 0, 0] < 0:
                self._codes[index] = self.tokenizer.encode(image[None])[0].cpu()
        return self._codes[batch["index"].cpu()].long().to(self.device)

    def _set_rate(self, batch_idx: int) -> None:
        hp, progress = self.hparams, (self.current_epoch + batch_idx / self.trainer.num_training_batches) / self.hparams.epochs
        cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        for group in self.current_optimizers()[0].param_groups:
            group["lr"] = hp.lr * min(1.0, (self.iteration + 1) / max(hp.warmup, 1)) * cosine

    # --- capabilities -------------------------------------------------------------------------------------------------

    @property
    def samples_ready(self) -> bool:
        return self.tokenizer is not None

    @torch.no_grad()
    def sample(
        self, num_images: int, size: tuple[int, int] | None = None, temperature: PositiveFloat | None = None,
        top_k: PositiveInt | None = None, top_p: OpenFraction | None = None, label: NonNegativeInt | None = None,
    ) -> Tensor:  # fmt: skip
        """New images; by default with the settings of the training, and of random classes."""
        f, size = self.hparams.downsampling, tuple(size or self.image_size)
        if any(side < least for side, least in zip(size, self.image_size, strict=True)):
            raise UserError(f"size is {list(size)}; expected at least {list(self.image_size)}, the size of training")
        grid, labels = tuple(-(-side // f) for side in size), self._labels(num_images, label)
        images = self.tokenizer.decode(self.sample_codes(num_images, grid, labels, temperature, top_k, top_p))
        return images[..., : size[0], : size[1]]

    def sample_codes(
        self, num_images: int, grid: tuple[int, int], labels: Tensor | None = None, temperature: float | None = None,
        top_k: int | None = None, top_p: float | None = None, **known: Tensor,
    ) -> Tensor:  # fmt: skip
        """Codes [N, h, w]; see `CodeTransformer.sample`."""
        hp = self.hparams
        settings = temperature or hp.temperature, top_k or hp.top_k, top_p or hp.top_p or 1.0
        if settings[1] is not None and settings[1] > hp.num_codes:
            raise UserError(f"top_k is {settings[1]}; allowed are 1 to {hp.num_codes} (the number of codes) and null")
        with Tqdm(total=math.prod(grid), desc="codes", unit="code", leave=False, delay=3, disable=None) as bar:
            return self.transformer.sample(num_images, grid, labels, *settings, **known, progress=bar.update)

    def _labels(self, num_images: int, label: int | None) -> Tensor | None:
        classes = self.hparams.num_classes
        if label is not None and label >= (classes or 0):
            raise UserError(f"label is {label}; the model has {classes or 'no'} classes")
        if classes is None:
            return None
        return noise.randint(0, classes, (num_images,)) if label is None else torch.full((num_images,), label)

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.tokenizer.reconstruct(images)

    @torch.no_grad()
    def inpaint(
        self, image: Tensor, mask: Tensor, num_images: int, temperature: PositiveFloat | None = None,
        top_k: PositiveInt | None = None, top_p: OpenFraction | None = None, dilation: NonNegativeInt = 0,
        candidates: PositiveInt = 1, label: NonNegativeInt | None = None,
    ) -> Tensor:  # fmt: skip
        """`num_images` ways to fill the hole of an image: its codes are drawn again, the others stay.

        A code depends on those before it only; of `candidates` fills the one is selected under which the known codes are
        likeliest. `dilation` in codes widens the hole. The whole image is decoded anew.
        """
        f, size = self.hparams.downsampling, tuple(image.shape[-2:])
        sides = tuple(max(-(-side // f), least) * f for side, least in zip(size, self.grid, strict=True))
        codes = self.tokenizer.encode(resize(image, sides))
        hole = F.adaptive_max_pool2d(mask.float(), codes.shape[-2:])
        hole = F.max_pool2d(hole, 2 * dilation + 1, stride=1, padding=dilation)[:, 0] > 0
        total, grid = num_images * candidates, tuple(codes.shape[1:])
        known, hole = (values.expand(total, -1, -1) for values in (codes, hole))
        labels = self._labels(total, label)
        filled = self.sample_codes(total, grid, labels, temperature, top_k, top_p, known=known, mask=hole)
        if candidates > 1 and grid == self.grid:
            scores = (self.transformer.log_prob(filled, labels) * ~hole).sum((1, 2)).view(num_images, candidates)
            filled = filled.view(num_images, candidates, *grid)[torch.arange(num_images), scores.argmax(1)]
        return resize(self.tokenizer.decode(filled[:: len(filled) // num_images]), size)

    # --- measurements -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _set_codes(self, images: Dataset, most: int) -> tuple[Tensor, Tensor | None]:
        """Codes of at most so many images of a set, evenly chosen, and their labels if the model takes any."""
        picks = torch.linspace(0, len(images) - 1, min(len(images), most)).long()
        codes = [self.tokenizer.encode(torch.stack([images[int(i)] for i in part]).to(self.device)) for part in picks.split(64)]
        labelled = self.hparams.num_classes and images.labels is not None
        return torch.cat(codes), torch.as_tensor(images.labels)[picks] if labelled else None

    @torch.no_grad()
    def diagnostics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        """Nats per code of training and held-out images, and of the latter under the frequencies of codes at each position."""
        numbers = {"nll": self._nats(*self._set_codes(sets["image"], MAX_MEASURED))}
        if len(sets.get("image_heldout", ())):
            codes, labels = self._set_codes(sets["image_heldout"], MAX_MEASURED)
            if labels is not None or not self.hparams.num_classes:
                numbers["nll_heldout"] = self._nats(codes, labels)
            seen = self._codes if self._codes is not None else self._set_codes(sets["image"], MAX_COUNTED)[0]
            seen = seen[seen[:, 0, 0] >= 0].long().to(codes.device)
            numbers["unigram_nll"] = unigram_nats(seen, codes, self.hparams.num_codes)
        return numbers

    def _nats(self, codes: Tensor, labels: Tensor | None) -> float:
        parts = zip(codes.split(64), [None] * len(codes) if labels is None else labels.split(64), strict=False)
        return float(-torch.cat([self.transformer.log_prob(*part) for part in parts]).mean())

    @torch.no_grad()
    def baselines(self, num_images: int) -> dict[str, Tensor]:
        """Reconstructions of training images, which no sample can surpass, and images of random blocks of 4 x 4 codes."""
        codes = self._set_codes(self.training_sets["image"], max(num_images, 1000))[0]
        picks = noise.randint(0, len(codes), (num_images, *(-(-side // 4) for side in self.grid)))
        picks = picks.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, : self.grid[0], : self.grid[1]].to(codes.device)
        rows, columns = (torch.arange(side, device=codes.device) for side in self.grid)
        blocks = codes[picks, rows[:, None], columns]
        some = codes[torch.linspace(0, len(codes) - 1, min(num_images, len(codes))).long().to(codes.device)]
        return {"reconstructions": self.tokenizer.decode(some), "random_4x4": self.tokenizer.decode(blocks)}


def unigram_nats(train: Tensor, heldout: Tensor, num_codes: int) -> float:
    """Nats per code of `heldout` [N, h, w] under the frequencies of `train` at each position, each count raised by 1."""
    counts = F.one_hot(train.flatten(1).T, num_codes).sum(1) + 1.0  # [h w, K]
    logs = (counts / counts.sum(1, keepdim=True)).log()
    return float(-logs.gather(1, heldout.flatten(1).T).mean())
