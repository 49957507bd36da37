"""The training image in motion."""

from collections.abc import Iterator

from torch import Tensor

from core.errors import UserError
from modules.base import GenerativeModule, sampling_mode
from tasks.inputs import accepted, require

FASTEST = 50.0  # frames per second; a GIF counts in hundredths of a second, and players slow down at one


class Animate:
    """A random walk of the model's noise from the training image on, as frames `frame_0000`, `frame_0001`, …

    Args:
        num_frames: how many.
        alpha: pull back to the training image, 0 … 1.
        beta: smoothness of the motion, 0 … 1. Paper (SinGAN, Rott Shaham et al. 2019): 0.8 to 0.95.
        start_scale: scales below stay at rest; larger values move details only. Paper: 0, 1 or 2.
        frames_per_second: of the animation that evaluate.py writes beside the frames, up to 50.
        seed: the same seed gives the same motion.
    """

    def __init__(
        self,
        num_frames: int = 100,
        alpha: float = 0.1,
        beta: float = 0.9,
        start_scale: int = 0,
        frames_per_second: float = 10.0,
        seed: int = 0,
    ) -> None:
        check_frames(num_frames, frames_per_second)
        for name, value in {"alpha": alpha, "beta": beta}.items():
            if not 0 <= value <= 1:
                raise UserError(f"task.{name}={value}: must lie between 0 and 1")
        self.num_frames, self.frames_per_second, self.seed = num_frames, frames_per_second, seed
        self.options = {"alpha": alpha, "beta": beta, "start_scale": start_scale}

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        walk = require(module, "animate", "animate")
        options = accepted(walk, "animate", **self.options)
        with sampling_mode(module, self.seed):
            frames = walk(self.num_frames, **options).cpu()
        for index, frame in enumerate(frames):
            yield f"frame_{index:04d}", frame


def check_frames(num_frames: int, frames_per_second: float) -> None:
    """ValueError unless there are at least two frames at a speed that an animation can have."""
    if num_frames < 2:
        raise UserError(f"task.num_frames={num_frames}: must be at least 2")
    if not 0 < frames_per_second <= FASTEST:
        raise UserError(f"task.frames_per_second={frames_per_second}: must be above 0 and at most {FASTEST:g}")
