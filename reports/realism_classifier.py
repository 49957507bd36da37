"""Realism: trains the classifier that measures how far samples belong to a target domain."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.errors import UserError
from core.files import atomic_folder
from core.types import ImageSize, PositiveInt, Seed
from datamodules.folder import ImageFolder
from datamodules.listing import list_images
from metrics.realism import load_realism, realism_file, train_realism
from modules.ops.images import to_uint8


@dataclass(kw_only=True)
class Realism:
    """Writes `realism.pt`, a classifier of the images in two folders or zip files, first those of the source domain, then
    those of the target; and `realism.json`: its SHA-256, accuracy and mean probability on kinds of images, all held out.

    No model may have been trained on these images.

    Args:
        image_size: [height, width] of the samples to be classified.
        steps: of its training.
    """

    image_size: ImageSize
    steps: PositiveInt = 600
    seed: Seed = 0

    def __call__(
        self, paths: Sequence[Path], folder: Path, measure: Callable[[Path], Any] | None = None, loggers: Sequence[Any] = ()
    ) -> str:
        """Returns the text to print; nothing else is measured or logged."""
        if len(paths) != 2:
            raise UserError(f"{len(paths)} folders of images; give two: held-out source images, then held-out target images")
        roots = {"source": str(paths[0]), "target": str(paths[1])}
        sets = {key: ImageFolder(*list_images(root, True, key), self.image_size) for key, root in roots.items()}
        if set(sets["source"].digests) & set(sets["target"].digests):
            raise UserError(f"{paths[0]} and {paths[1]} share images; source and target have to differ")
        source, target = (to_uint8(images.stack()) for images in sets.values())
        classifier = train_realism(source, target, self.steps, self.seed)
        digests = {f"{name}_fingerprint": images.fingerprint for name, images in sets.items()}
        with atomic_folder(folder) as draft:
            with (draft / "realism.pt").open("wb") as file:
                torch.save(realism_file(classifier, digests), file)
            classifier = load_realism(str(draft / "realism.pt"))
            facts = {"sha256": classifier.sha256, **classifier.facts}
            (draft / "realism.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        values = ", ".join(f"{name} {value:.3f}" for name, value in classifier.facts["probabilities"].items())
        accuracy, path = classifier.facts["accuracy"], shlex.quote(str(folder / "realism.pt"))
        return f"accuracy {accuracy:.3f}; mean probability of: {values}\n{path}"
