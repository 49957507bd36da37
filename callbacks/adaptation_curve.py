"""AdaptationCurve: realism, diversity and novelty in the course of an adaptation."""

import csv
import math
import time
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image, ImageDraw
from torch import Tensor

from callbacks.image_grid import log_images, to_pixels
from callbacks.sample_metrics import draw_samples, evenly_spaced
from core.files import atomic_write
from core.types import AtLeastTwo, PathStr, PositiveInt, Seed
from metrics.adaptation import AdaptationMeasure, AdaptationValues
from metrics.backbones.registry import load_backbone
from metrics.perceptual_distance import load_perceptual
from metrics.realism import load_realism
from modules.base import GenerativeModule
from modules.ops.images import from_uint8, image_grid

COLUMNS = ("iteration", *AdaptationValues._fields, "seconds", "protocol")
SHOWN = 10  # samples in a row of the grid
PANEL, MARGIN = 320, 46  # pixels of the plot


class AdaptationCurve(Callback):
    """Measures the samples of fixed latents every `every_n_iterations`, before the first iteration (the source model, for an
    adaptation) and at the end; see `metrics.adaptation.AdaptationValues`.

    Writes a row of `curve.csv`, the picture `curve.png` (diversity over realism) and the grid
    `images/adaptation_<iteration>.png`: samples of the first measurement above those of the same latents now. Loggers get the
    values as `curve/<name>` and the pictures.

    Only rank 0 measures, and the random state of training stays as it was. In a run that is resumed rows from its iteration on
    are replaced.

    Args:
        num_images: samples, image i of which depends on (seed, i) alone; two or more, for the distance of pairs.
        realism: file of a classifier that configs/tasks/realism.yaml makes; null: without. It cannot be trained where only the
            few training images exist.
        backbone: of the kernel distance, see `load_backbone`, and of the perceptual distance without `perceptual_weights`.
        perceptual_weights: see SampleMetrics.
        max_heldout: images of the training, and held-out ones (the data module's `heldout_root`), that are compared.
        chunk: samples drawn at once.
    """

    def __init__(
        self, every_n_iterations: PositiveInt = 100, num_images: AtLeastTwo = 200, realism: PathStr | None = None,
        backbone: str = "auto", weights: PathStr | None = None, perceptual_weights: PathStr | None = None,
        max_heldout: PositiveInt = 200, chunk: PositiveInt = 50, seed: Seed = 0,
    ) -> None:  # fmt: skip
        self.every_n_iterations, self.num_images, self.max_heldout = every_n_iterations, num_images, max_heldout
        self.chunk, self.seed = chunk, seed
        self.backbone = load_backbone(backbone, weights)
        self.distance = load_perceptual(self.backbone, perceptual_weights)
        self.classifier = load_realism(realism) if realism else None
        self.rows: list[dict[str, Any]] = []
        self._first: Tensor | None = None  # uint8, the first samples of the first measurement
        self._measure: AdaptationMeasure | None = None

    # --- hooks --------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        if not trainer.is_global_zero:
            return
        sets, networks = trainer.datamodule.sets(), (self.distance, self.backbone, self.classifier)
        for network in filter(None, networks):
            network.to(pl_module.device)
        images = {key: evenly_spaced(sets[key], self.max_heldout) for key in ("image", "image_heldout") if sets.get(key)}
        if self.classifier is None:
            reason = "" if "image_heldout" in images else ", which needs held-out images of both domains"
            rank_zero_info(f"AdaptationCurve: no realism: it needs callbacks.curve.realism=FILE{reason}")
        training, *heldout = (pixels.to(pl_module.device) for pixels in images.values())
        self._measure = AdaptationMeasure(training, *heldout or [None], *networks)
        earlier = read_curve(Path(trainer.default_root_dir) / "curve.csv")
        self.rows = [row for row in earlier if row["iteration"] < pl_module.iteration]

    def on_train_batch_start(self, trainer: Trainer, pl_module: GenerativeModule, batch: Any, batch_idx: int) -> None:
        if pl_module.iteration % self.every_n_iterations == 0:  # averages are up to date now
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        measured = self.rows and self.rows[-1]["iteration"] == pl_module.iteration
        if pl_module.finished(trainer.current_epoch) and not measured:
            self._evaluate(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first = state_dict["first"]

    # --- measuring ----------------------------------------------------------------------------------------------------

    def _evaluate(self, trainer: Trainer, module: GenerativeModule) -> None:
        if not (trainer.is_global_zero and module.samples_ready):
            return
        begin = time.monotonic()
        samples = torch.cat([part for _, part in draw_samples(module, self.num_images, self.chunk, self.seed)])
        values = self._measure(samples)._asdict()
        protocol = f"{self._measure.protocol()}, {self.num_images} samples of seed {self.seed}"
        row = {"iteration": module.iteration, **values, "seconds": time.monotonic() - begin, "protocol": protocol}
        self.rows.append(row)
        shown = samples[:SHOWN].cpu()
        self._first = shown if self._first is None else self._first
        grid = image_grid(from_uint8(torch.cat([self._first, shown])), len(shown))
        pictures = {"adaptation": to_pixels(grid), "curve": plot(self.rows)}
        self._write(Path(trainer.default_root_dir), pictures, module.iteration)
        known = {key: value for key, value in values.items() if not math.isnan(value)}
        logged = {f"curve/{key}": value for key, value in known.items()} | {"iteration": module.iteration}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.fit_loop.total_batch_idx)
        log_images(trainer, {f"curve/{name}": pixels for name, pixels in pictures.items()})
        text = ", ".join(f"{key} {known[key]:.3f}" for key in ("realism", "intra", "pairs") if key in known)
        rank_zero_info(f"iteration {module.iteration}: {text}")

    def _write(self, folder: Path, pictures: dict[str, np.ndarray], iteration: int) -> None:
        table = StringIO(newline="")
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in self.rows)
        with atomic_write(folder / "curve.csv") as file:
            file.write(table.getvalue().encode())
        names = {"adaptation": f"images/adaptation_{iteration:06d}.png", "curve": "curve.png"}
        for name, pixels in pictures.items():
            with atomic_write(folder / names[name]) as file:
                Image.fromarray(pixels).save(file, format="PNG")


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The rows of a `curve.csv`; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    read = {"protocol": str}  # of the others numbers
    return [{key: read.get(key, _number)(value) for key, value in row.items() if key in COLUMNS} for row in rows]


def _number(text: str) -> float | int:
    return int(text) if text.isdigit() else float(text)


def plot(rows: list[dict[str, Any]]) -> np.ndarray:
    """Diversity (intra, blue, and pairs, orange) over realism, or over the iteration where realism is unknown: uint8
    [H, W, 3]."""
    known = not any(math.isnan(row["realism"]) for row in rows)
    x_key = "realism" if known else "iteration"
    right = 1.0 if known else max(rows[-1]["iteration"], 1)
    top = 1.1 * max([row[key] for row in rows for key in ("intra", "pairs") if not math.isnan(row[key])] or [1.0]) or 1.0
    picture = Image.new("RGB", (PANEL + 2 * MARGIN, PANEL + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((MARGIN, MARGIN, MARGIN + PANEL, MARGIN + PANEL), outline="gray")
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = MARGIN + share * PANEL, MARGIN + (1 - share) * PANEL
        draw.line((x, MARGIN + PANEL, x, MARGIN + PANEL + 4), fill="gray")
        draw.text((x - 10, MARGIN + PANEL + 6), f"{share * right:.4g}", fill="black")
        draw.line((MARGIN - 4, y, MARGIN, y), fill="gray")
        draw.text((4, y - 6), f"{share * top:.3f}", fill="black")
    draw.text((MARGIN + PANEL - 50, MARGIN + PANEL + 22), x_key, fill="black")
    for index, (key, color) in enumerate((("intra", "#0b57a4"), ("pairs", "#b35900"))):
        draw.text((MARGIN + 80 * index, MARGIN - 22), key, fill=color)
        shown = [row for row in rows if not math.isnan(row[key])]
        points = [(MARGIN + row[x_key] / right * PANEL, MARGIN + (1 - row[key] / top) * PANEL) for row in shown]
        if len(points) > 1:
            draw.line(points, fill=color, width=2)
        for point in points:
            draw.circle(point, 3, fill=color)
    return np.asarray(picture)
