"""Changes the size or aspect of a training image and keeps the size of its parts."""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from modules.base import GenerativeModule
from modules.capabilities import Reconstructs
from modules.ops.images import resize
from tasks.inputs import read_prepared
from tasks.task import Function, Images, ImageTask


@dataclass(kw_only=True)
class Retarget(ImageTask):
    """The stretched image rendered from unstretched patches: `00_input`, `01_stretched`, `02_retargeted`.

    At the image's own size in the model, `02_retargeted` is its reconstruction.

    Args:
        image: file of a training image.
        size: [height, width] of the result; None: the image's aspect with the model's shorter side, for the reconstruction.
        step: largest ratio by which a side changes at once, such as 1.25; a far size is reached in several rounds. None: at
            once. (GPNN's paper retargets gradually, ratio not stated.)
    """

    step: Annotated[float, Field(gt=1)] | None = None

    def render(self, module: GenerativeModule, inject: Function) -> Images:
        image, stretched = (read_prepared(self.image, module, size) for size in (None, self.size))
        if stretched.shape == image.shape and isinstance(module, Reconstructs):
            result = self.call(module, module.reconstruct, image)
        else:
            first, *others = sizes_between(image.shape[-2:], stretched.shape[-2:], self.step)
            result = inject(read_prepared(self.image, module, first))
            for size in others:
                result = inject(resize(result, size))
        yield "00_input", image[0]
        yield "01_stretched", stretched[0]
        yield "02_retargeted", result[0]


def sizes_between(start: tuple[int, int], end: tuple[int, int], step: float | None = None) -> list[tuple[int, int]]:
    """Sizes after `start` up to `end`, in equal ratios of at most `step` but for rounding; without it `end` alone."""
    widest = max(abs(math.log(last / first)) for first, last in zip(start, end, strict=True))
    rounds = max(1, math.ceil(widest / math.log(step) - 1e-9)) if step is not None else 1
    return [tuple(map(round, size)) for size in np.geomspace(start, end, rounds + 1)[1:]]
