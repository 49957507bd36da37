"""A conditional GAN with one stage that uses what the bases offer, for their tests."""

from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.nodes import build_node
from core.types import Node
from datamodules.synthetic import SyntheticDataModule
from modules.ops.noise import randn
from modules.staged import StagedModule

LABELS = {"class_path": "modules.conditions.Labels", "num_classes": 3}


class ToyGAN(StagedModule):
    """Linear generator of 8 × 8 images with batch norm, linear critic, frozen features, a moving average that samples."""

    reals_per_iteration = 2

    def __init__(
        self, epochs: int | None = 2, decay: float = 0.5, condition: Node | None = None, source_checkpoint: str | None = None,
        iterations: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(epochs, 1, iterations and [iterations])
        self.save_hyperparameters()
        self.image_size = (8, 8)
        self.condition = condition and build_node(condition)
        dim = self.condition.dim if condition else 0
        self.generator = nn.Sequential(nn.Linear(4 + dim, 192), nn.Unflatten(1, (3, 8, 8)), nn.BatchNorm2d(3), nn.Tanh())
        self.critic = nn.Linear(192 + dim, 1)
        self.features = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout())
        self.add_average("generator_ema", "generator", decay=decay)
        self.draws: list[Tensor] = []  # of the streams, for tests

    def frozen(self) -> list[nn.Module]:
        return [self.features]

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(self.generator.parameters(), 0.01), torch.optim.SGD(self.critic.parameters(), 0.01)]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        g_opt, d_opt = self.current_optimizers()
        for reals in self.split_reals(batch):
            vectors = self.condition.of_batch(reals) if self.condition else None
            number = len(reals["image"])
            noise = torch.randn(number, 4, generator=self.random_stream("noise"))
            self.draws.append(noise)
            fakes = self._images(self.generator, noise, vectors)
            scores = self._score(self.features(reals["image"]), vectors), self._score(fakes.detach(), vectors)
            self.optimize(d_opt, F.softplus(-scores[0]).mean() + F.softplus(scores[1]).mean())
        self.optimize(g_opt, F.softplus(-self._score(fakes, vectors)).mean())
        self.log_training({"images": float(number)}, number)

    def _images(self, generator: nn.Module, noise: Tensor, vectors: Tensor | None) -> Tensor:
        return generator(noise if vectors is None else torch.cat([noise, vectors], 1))

    def _score(self, images: Tensor, vectors: Tensor | None) -> Tensor:
        rows = images.flatten(1)
        return self.critic(rows if vectors is None else torch.cat([rows, vectors], 1))

    @torch.no_grad()
    def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
        vectors = self.condition.draw(num_images, self.device) if self.condition else None
        return self._images(self.generator_ema, randn(num_images, 4, device=self.device), vectors)


def fit(module: lightning.LightningModule, *callbacks: lightning.Callback, **options: Any) -> lightning.Trainer:
    """Two iterations an epoch, each of two batches of two drawn images."""
    lightning.seed_everything(0, verbose=False)
    data = {"batch_size": 2, "samples_per_epoch": 8, **options.pop("data", {})}
    checkpoint = options.pop("checkpoint", None)
    settings = {
        "accelerator": "cpu", "devices": 1, "max_epochs": -1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    trainer = lightning.Trainer(**(settings | options), callbacks=list(callbacks))
    trainer.fit(module, SyntheticDataModule([8, 8], **data), ckpt_path=checkpoint)
    return trainer
