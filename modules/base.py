"""Base of every generative method: optimization over ranks, seeds, averages, sampling, and rebuilding from a checkpoint."""

import copy
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Self

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from core.errors import UserError
from core.files import shipped_file
from modules.conditions import Condition
from modules.ops.noise import image_generators
from modules.ops.weights import check_keys, read_hashed

if not torch.cuda.is_available():  # Lightning makes torch look for GPUs anew in each optimizer step: 0.2 ms
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


@contextmanager
def sampling_mode(module: nn.Module, seed: int, images: Iterable[int] | None = None) -> Iterator[None]:
    """Inside: eval mode, no gradients, random state from `seed`; all is restored, so that training is the same with and without
    looking at it. Of `images`, by their indices, image i depends on (seed, i) alone."""
    modes = [(part, part.training) for part in module.modules()]
    rows = nullcontext() if images is None else image_generators(seed, images)
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad(), rows:
        torch.manual_seed(seed)
        module.eval()
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode


class Average(NamedTuple):
    """A moving average of a submodule's weights with either a `half_life` in images or a constant `decay`, the weight of the
    old values in an iteration. Buffers are copied."""

    source: str
    half_life: float | None = None
    decay: float | None = None

    def weight(self, batch_images: int) -> float:
        return 0.5 ** (batch_images / self.half_life) if self.decay is None else self.decay


class GenerativeModule(LightningModule):
    """Base of every method.

    A method writes its constructor (keywords with types and defaults, `save_hyperparameters()`, no file access),
    `configure_optimizers`, `training_step` and `sample`; further abilities are the methods of `modules.capabilities`.
    `iteration` counts `training_step`s; `global_step` counts optimizer steps and is not used (P 1.1).

    Attributes:
        image_size: height and width of samples.
        duration_settings: hyper-parameters that say how long training takes; they may change when a run is resumed.
        reals_per_iteration: batches of fresh training images that one iteration needs, such as one for each critic step.
        fixed_size: whether all images are of the training size, and square.
        no_samples: for a method without samples of its own, such as an autoencoder, why; `samples_ready` is False then.
        averages: by name of a submodule what it is the average of; `add_average` makes one.
    """

    image_size: tuple[int, int]
    duration_settings: tuple[str, ...] = ()
    reals_per_iteration = 1
    fixed_size = False
    no_samples: str | None = None
    num_stages, stage, stage_name = 1, 0, ""  # of a method without stages

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.iteration = 0
        self.images_seen = 0
        self.averages: dict[str, Average] = {}
        self.source_sha256: str | None = None
        self._streams: dict[tuple[str, bool], torch.Generator] = {}
        self._stored_optimizers: int | None = None

    # --- optimization -------------------------------------------------------------------------------------------------

    def optimize(
        self, optimizer: torch.optim.Optimizer, loss: Tensor, clip_norm: float | None = None, scrub: bool = False
    ) -> None:
        """Backward, mean of the gradients over ranks, clipping, step, in place of DDP's reducer, which fails on alternating
        losses (P 3.1, 3.5, 3.9). The same parameters must have gradients on all ranks. `scrub` replaces NaN by 0, infinity by
        ±1e5."""
        optimizer.zero_grad()
        strategy, scaler = self.trainer.strategy, getattr(self.trainer.precision_plugin, "scaler", None)
        # Lightning's manual_backward without its hooks of callbacks, which cost 2 % of a small network's step.
        with getattr(strategy, "block_backward_sync", nullcontext)():
            strategy.pre_backward(loss)
            (loss if scaler is None else scaler.scale(loss)).backward()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.average_over_ranks(gradients)
        if scrub:
            for gradient in gradients:
                torch.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5, out=gradient)
        if clip_norm is not None:
            self.clip_gradients(optimizer, clip_norm, "norm")
        optimizer.step()

    def mean_over_ranks(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes; all of them have to call this."""
        return values if self.trainer.world_size == 1 else self.trainer.strategy.reduce(values, reduce_op="mean")

    def average_over_ranks(self, tensors: list[Tensor]) -> None:
        """Gives tensors their means over the processes, in one reduction."""
        if self.trainer.world_size > 1 and tensors:
            means = self.mean_over_ranks(torch.cat([tensor.flatten() for tensor in tensors]))
            for tensor, mean in zip(tensors, means.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def every(self, iterations: int) -> bool:
        """True in the first of every `iterations` iterations, for lazily computed terms."""
        return self.iteration % iterations == 0

    @staticmethod
    def lazy_adam(lr: float, betas: tuple[float, float], interval: int) -> tuple[float, tuple[float, float]]:
        """Adam's settings for an optimizer that also steps for a term of every `interval`-th iteration, with its gradient
        scaled by `interval` (Karras et al. 2020, arXiv 1912.04958, appendix B)."""
        share = interval / (interval + 1)
        return lr * share, (betas[0] ** share, betas[1] ** share)

    # --- random numbers -----------------------------------------------------------------------------------------------

    def epoch_seed(self, *, shared: bool = False) -> int:
        """A seed from the run's seed and the epoch, different on every rank unless `shared`."""
        # Never a small number: samples are drawn with small seeds, and would show the fixed noise of training.
        run_seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        rank = 0 if shared else self.global_rank + 1
        return ((run_seed * 1_000_003 + self.current_epoch) * 4_099 + rank + 1) * 6_364_136_223_846_793_005 % 2**63

    def shared_generator(self) -> torch.Generator:
        """A CPU generator that is equal on all ranks and after a resume in the same epoch."""
        return torch.Generator().manual_seed(self.epoch_seed(shared=True))

    def random_stream(self, name: str, *, shared: bool = False) -> torch.Generator:
        """The CPU generator of a purpose: terms that are switched off do not shift the draws of others."""
        if (name, shared) not in self._streams:
            digest = hashlib.sha256(f"{self.epoch_seed(shared=shared)} {name}".encode()).digest()
            self._streams[name, shared] = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return self._streams[name, shared]

    # --- sampling -----------------------------------------------------------------------------------------------------

    def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
        """New images [N, 3, H, W] in [-1, 1] of `size`, by default the training size, drawn by `modules.ops.noise`."""
        raise NotImplementedError(f"{type(self).__name__} does not define sample()")

    def check_size(self, size: Sequence[int] | None) -> None:
        if size is not None and tuple(size) != self.image_size:
            raise UserError(f"size is {list(size)}; {type(self).__name__} makes images of {list(self.image_size)} only")

    @property
    def samples_ready(self) -> bool:
        """False while unconditional samples are meaningless, and are neither drawn nor measured."""
        return self.no_samples is None

    def finished(self, epochs: int) -> bool:
        """True if nothing is left to train after `epochs` whole epochs; called with the current weights."""
        return False

    def ends_stage(self, epoch: int) -> bool:
        """True if `epoch` is the last one of a stage."""
        return False

    # --- averages, frozen parts, source weights -----------------------------------------------------------------------

    def add_average(self, name: str, source: str, **settings: float) -> None:
        """Adds the submodule `name`, the average of the submodule `source`, always in eval mode; `settings` as in `Average`."""
        if ("half_life" in settings) == ("decay" in settings):
            raise ValueError(f"{name}: give either half_life or decay")
        self.averages[name] = Average(source, **settings)
        setattr(self, name, copy.deepcopy(getattr(self, source)).requires_grad_(False).eval())

    @torch.no_grad()
    def update_averages(self, batch_images: int) -> None:
        for name, average in self.averages.items():
            target, source = getattr(self, name), getattr(self, average.source)
            weight = average.weight(batch_images)
            for mean, value in zip(target.parameters(), source.parameters(), strict=True):
                mean.lerp_(value.to(mean.dtype), 1 - weight)
            for mean, value in zip(target.buffers(), source.buffers(), strict=True):
                mean.copy_(value)

    def frozen(self) -> Iterable[nn.Module]:
        """Submodules that never train: in eval mode (P 4.4), without gradients, left out of the check for finite weights."""
        return ()

    def _untrained(self) -> list[nn.Module]:
        return [*self.frozen(), *(getattr(self, name) for name in self.averages)]

    def trained_modules(self) -> Iterable[nn.Module]:
        """Submodules that are in train mode while the method trains."""
        return self.children()

    def train(self, mode: bool = True) -> Self:
        super().train(False)
        self.training = mode
        for module in self.trained_modules():
            module.train(mode)
        for module in self._untrained():
            module.eval().requires_grad_(False)
        return self

    def start_from_source(self) -> tuple[str, Any, str] | None:
        """Loads `source_checkpoint` for a training that is not resumed: its path, content and SHA-256, or None without one.
        `train.py` calls it before anything is written, a fit where nobody has."""
        path = self.hparams.get("source_checkpoint")
        if not path:
            return None
        try:
            source, self.source_sha256 = self.read_source(shipped_file(path))
            self.load_source(source)
        except (UserError, OSError) as error:
            raise UserError(f"module.source_checkpoint={path}: {str(error).removeprefix(f'{path}: ')}") from None
        return path, source, self.source_sha256

    def load_source(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads the weights of a source model from the content of `source_checkpoint`: by default what `convert` returns, which
        has to fill this module completely. UserError lists missing and unexpected keys."""
        state, expected = self.convert(checkpoint), self.state_dict()
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            raise UserError("the source checkpoint holds no state dict of tensors")
        shapes = {key: (tuple(state[key].shape), tuple(expected[key].shape)) for key in sorted(state.keys() & expected.keys())}
        further = [f"{key} has shape {given}, expected {own}" for key, (given, own) in shapes.items() if given != own]
        check_keys(state.keys(), expected.keys(), type(self).__name__, further)
        self.load_state_dict(state)

    def read_source(self, path: str) -> tuple[Any, str]:
        """Content of the file `source_checkpoint` and its SHA-256; override it for files of another kind."""
        return read_hashed(path)

    def convert(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The state dict of this module from a source file; override it for files of other projects."""
        return checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else checkpoint

    # --- hooks --------------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        if self._stored_optimizers is None and self.source_sha256 is None:  # neither resumed nor loaded by train.py
            self.start_from_source()
        if self._stored_optimizers not in (None, len(self.trainer.optimizers)):
            raise UserError(
                f"the checkpoint holds {self._stored_optimizers} optimizers, {type(self).__name__} as configured has "
                f"{len(self.trainer.optimizers)}: it was written with another image_size, number of scales or version"
            )
        self.train()  # a module left in eval would be trained in eval mode (P 9.9)

    def on_train_epoch_start(self) -> None:
        self._streams.clear()
        torch.manual_seed(self.epoch_seed())  # with the sampler's order: an exact resume without stored RNG state (P 6.5)

    def on_train_batch_end(self, outputs: Any, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        images = len(batch["image"]) * self.trainer.world_size
        self.iteration += 1
        self.images_seen += images
        self.update_averages(images)

    def split_reals(self, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The batch as `reals_per_iteration` batches of equal length."""
        parts = {key: values.chunk(self.reals_per_iteration) for key, values in batch.items()}
        return [dict(zip(parts, rows, strict=True)) for rows in zip(*parts.values(), strict=True)]

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Empty: Lightning runs validation hooks only for modules that have this method (P 9.1)."""

    test_step = validation_step

    # --- data and diagnostics -----------------------------------------------------------------------------------------

    @property
    def training_sets(self) -> Mapping[str, Dataset]:
        """The data module's image sets by name (image, side, source, …)."""
        return self.trainer.datamodule.sets()

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        """UserError if the method cannot train on these sets; called before anything is written."""
        for condition in self.conditions():
            condition.check_data(sets)

    def conditions(self) -> list[Condition]:
        return [part for part in self.modules() if isinstance(part, Condition)]

    @staticmethod
    def errors_by_image(errors: Tensor) -> dict[str, float]:
        """Diagnostics of reconstruction errors [N]: those of the first 16 images, and the worst of all."""
        each = {f"reconstruction_rmse_image{i}": float(error) for i, error in enumerate(errors[:16])}
        return {**each, "reconstruction_rmse_worst_image": float(errors.max())}

    def diagnostics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        return {}

    def baselines(self, num_images: int) -> dict[str, Tensor]:
        """Named sets of images that show what this method generates by chance."""
        return {}

    # --- checkpoints --------------------------------------------------------------------------------------------------

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any]) -> Self:
        module = cls(**checkpoint.get("hyper_parameters", {}))
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        return module.eval()

    @classmethod
    def adopt(cls, path: str) -> dict[str, Any] | None:
        """A checkpoint of this class made from the model in another project's file, with a `description` of what it is;
        None if the method reads no such files or this is none, UserError if it is an incomplete one."""
        return None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["iteration"], checkpoint["images_seen"] = self.iteration, self.images_seen
        checkpoint["source_sha256"] = self.source_sha256

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        expected = f"{type(self).__module__}.{type(self).__qualname__}"
        if checkpoint.get("class_path") != expected:
            raise UserError(f"the checkpoint was written by {checkpoint.get('class_path')}, not by {expected}")
        self.iteration, self.images_seen = checkpoint["iteration"], checkpoint["images_seen"]
        self.source_sha256 = checkpoint.get("source_sha256")
        if "optimizer_states" in checkpoint:
            self._stored_optimizers = len(checkpoint["optimizer_states"])
