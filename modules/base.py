"""What every generative method shares: optimisation over ranks, two clocks, exact resume, safe rebuild from a file."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from core.errors import UserError
from modules.ops.allowance import Allowance

if not torch.cuda.is_available():  # Lightning makes torch look for GPUs anew in each optimizer step: here 0.2 ms in vain
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


@contextmanager
def sampling_mode(module: nn.Module, seed: int) -> Iterator[None]:
    """Inside: eval mode, no gradients, random state from `seed`. After it every submodule is in the mode that it had, and
    the random state is as if nothing had been drawn, so that training gives the same with and without looking at it."""
    modes = [(part, part.training) for part in module.modules()]
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad():
        torch.manual_seed(seed)
        module.eval()
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode


class GenerativeModule(LightningModule):
    """Base of every method.

    A method writes its constructor (keywords with types and defaults, `save_hyperparameters()`, no file access),
    `configure_optimizers`, `training_step` and `sample`. Optional capabilities are found by name: `reconstruct(images)`,
    `inject(images, scale)`, `fill(image, mask, num_images)`, `diagnostics(sets)`, `baselines(num_images)`.

    Two clocks: Lightning's epoch, and `iteration`, one for each `training_step`. `global_step` counts optimizer steps and is
    not used (P 1.1).
    """

    image_size: tuple[int, int]
    duration_settings: tuple[str, ...] = ()  # settings that say how long training takes: they may change when a run goes on

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.iteration = 0
        self.images_seen = 0
        self._stored_optimizers: int | None = None

    def optimize(self, optimizer: torch.optim.Optimizer, loss: Tensor, clip_norm: float | None = None) -> None:
        """Backward of `loss`, mean of the gradients over ranks, clipping, step: the only place where weights change.

        Only the stepped optimizer's gradients are reduced, in one flat tensor. This replaces DDP's reducer, which misses
        parameters that were frozen when it was built and fails on alternating losses (P 3.1, 3.5, 3.9). All ranks have to
        take the same branch, so that the same parameters have gradients.
        """
        optimizer.zero_grad()
        strategy, scaler = self.trainer.strategy, getattr(self.trainer.precision_plugin, "scaler", None)
        # Lightning's manual_backward without its hooks of callbacks, which cost 2 % of a small network's step.
        with getattr(strategy, "block_backward_sync", nullcontext)():
            strategy.pre_backward(loss)
            (loss if scaler is None else scaler.scale(loss)).backward()
        if self.trainer.world_size > 1:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            flat = self.trainer.strategy.reduce(flat, reduce_op="mean")
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
        if clip_norm is not None:
            self.clip_gradients(optimizer, clip_norm, "norm")
        optimizer.step()

    def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
        """`num_images` new images [N, 3, H, W] in [-1, 1]; `size` (height, width), default the training size.

        Draws from the global generator; the caller seeds and isolates it.
        """
        raise TypeError(f"{type(self).__name__} does not define sample()")

    @property
    def samples_ready(self) -> bool:
        """False while unconditional samples mean nothing yet, so that nobody draws or measures them."""
        return True

    def finished(self, epochs: int) -> bool:
        """True if nothing is left to train after `epochs` whole epochs; asked with the weights of that moment."""
        return False

    def frozen(self) -> Iterable[nn.Module]:
        """Submodules that stay in eval mode while the rest trains: batch statistics and spectral vectors of frozen parts
        would move otherwise (P 4.4)."""
        return ()

    def train(self, mode: bool = True) -> "GenerativeModule":
        super().train(mode)
        for module in self.frozen():
            module.eval()
        return self

    def epoch_seed(self, *, shared: bool = False) -> int:
        """A seed from the run's seed and the epoch, different on every rank unless `shared`.

        Never a small number: pictures are drawn from such, and would show the fixed noise of training.
        """
        run_seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        rank = 0 if shared else self.global_rank + 1
        return ((run_seed * 1_000_003 + self.current_epoch) * 4_099 + rank + 1) * 6_364_136_223_846_793_005 % 2**63

    def shared_generator(self) -> torch.Generator:
        """A CPU generator that is equal on all ranks and after a resume in the same epoch."""
        return torch.Generator().manual_seed(self.epoch_seed(shared=True))

    def on_fit_start(self) -> None:
        if self._stored_optimizers not in (None, len(self.trainer.optimizers)):
            raise UserError(
                f"the checkpoint holds {self._stored_optimizers} optimizers, {type(self).__name__} as configured has "
                f"{len(self.trainer.optimizers)}: it was written with another image_size, number of scales or version"
            )
        self.train()  # a module left in eval would be trained in eval mode (P 9.9)

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.epoch_seed())  # with the sampler's order: an exact resume without stored RNG state (P 6.5)

    def on_train_batch_end(self, outputs: Any, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.iteration += 1
        self.images_seen += len(batch["image"]) * self.trainer.world_size

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Empty: Lightning runs validation hooks only for modules that have this method (P 9.1)."""

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Empty, as `validation_step`."""

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        """ValueError if the method cannot train on these sets; asked before anything is written."""

    @staticmethod
    def errors_by_image(errors: Tensor) -> dict[str, float]:
        """Diagnostics of the reconstruction errors [N] of the training images: those of the first 16, and the worst of all."""
        each = {f"reconstruction_rmse_image{i}": float(error) for i, error in enumerate(errors[:16])}
        return {**each, "reconstruction_rmse_worst_image": float(errors.max())}

    def diagnostics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        """Numbers that only this method has; `sets` are the data module's sets by name."""
        return {}

    def baselines(self, num_images: int) -> dict[str, Tensor]:
        """Named sets of images that mark what this method gives by chance."""
        return {}

    @classmethod
    def from_checkpoint(cls, content: Mapping[str, Any]) -> Self:
        """The module of a checkpoint with this `content`, in eval mode; as `load_from_checkpoint`, but RuntimeError if it
        would take more memory than the weights in there could fill."""
        with Allowance(content["state_dict"]):
            module = cls(**content.get("hyper_parameters", {}))
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"])
        return module.eval()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["iteration"], checkpoint["images_seen"] = self.iteration, self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = f"{type(self).__module__}.{type(self).__qualname__}"
        if checkpoint.get("class_path") != own:
            raise UserError(f"the checkpoint was written by {checkpoint.get('class_path')}, not by {own}")
        self.iteration, self.images_seen = checkpoint["iteration"], checkpoint["images_seen"]
        if "optimizer_states" in checkpoint:
            self._stored_optimizers = len(checkpoint["optimizer_states"])
