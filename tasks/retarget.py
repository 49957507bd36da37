"""The training image at another size or aspect, with its parts kept as large as they are."""

import math
from collections.abc import Iterator

from torch import Tensor

from core.errors import UserError
from modules.base import GenerativeModule, sampling_mode
from modules.ops.images import resize
from tasks.inputs import accepted, checked_size, read_prepared, require


class Retarget:
    """The stretched image re-made of unstretched patches: `00_input`, `01_stretched`, `02_retargeted`.

    Where nothing is stretched, as the size is the image's own one in the model, `02_retargeted` is its reconstruction.

    Args:
        image: file of a training image.
        size: [height, width] wanted, any; None: the image's aspect with the model's shorter side, for the reconstruction.
        scale: where the stretched image enters, 0 = coarsest; None: the coarsest scale that the method takes an image at.
        alpha, iterations_coarsest: for methods that copy patches: completeness (small values use all of the image) and
            rounds at the coarsest scale; GPNN (Granot et al. 2022) retargets with 0.005 and 10. None: the model's own.
        step: largest ratio by which a side changes at once, such as 1.25: to a far size in several rounds, each of which
            stretches the result of the one before. None: at once. (GPNN's paper retargets gradually without giving a ratio.)
        noise: for methods that optimise patches: spread added to the stretched image; GPDM (Elnekave & Weiss 2022)
            retargets with 0.05. None: the method's own.
        seed: for methods that draw noise.
    """

    def __init__(
        self,
        image: str,
        size: list[int] | None = None,
        scale: int | None = None,
        alpha: float | None = None,
        iterations_coarsest: int | None = None,
        noise: float | None = None,
        step: float | None = None,
        seed: int = 0,
    ) -> None:
        if step is not None and not step > 1:
            raise UserError(f"task.step={step}: must be above 1, for example 1.25")
        self.image, self.step, self.seed = image, step, seed
        self.size = checked_size(size) if size is not None else None
        self.options = {"scale": scale, "alpha": alpha, "iterations_coarsest": iterations_coarsest, "noise": noise}

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        inject = require(module, "inject", "retarget")
        options = accepted(inject, "retarget", **self.options)
        image = read_prepared(self.image, module, None)
        stretched = read_prepared(self.image, module, self.size)
        with sampling_mode(module, self.seed):
            if stretched.shape == image.shape:
                result = require(module, "reconstruct", "retarget")(image.to(module.device)).cpu()
            else:
                first, *others = way(tuple(image.shape[-2:]), tuple(stretched.shape[-2:]), self.step)
                result = inject(read_prepared(self.image, module, first).to(module.device), **options)
                for size in others:
                    result = inject(resize(result, size), **options)
                result = result.cpu()
        yield "00_input", image[0]
        yield "01_stretched", stretched[0]
        yield "02_retargeted", result[0]


def way(start: tuple[int, int], end: tuple[int, int], step: float | None = None) -> list[tuple[int, int]]:
    """Sizes after `start` up to `end`, in equal ratios of at most `step` a side but for rounding; without it `end` alone."""
    widest = max(abs(math.log(last / first)) for first, last in zip(start, end, strict=True))
    rounds = max(1, math.ceil(widest / math.log(step) - 1e-9)) if step is not None else 1
    shares = [round_ / rounds for round_ in range(1, rounds)]
    between = [tuple(round(a * (b / a) ** share) for a, b in zip(start, end, strict=True)) for share in shares]
    return [*between, end]
