"""Moves the training image."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field
from torch import Tensor

from core.types import Options, Seed
from modules.base import GenerativeModule, sampling_mode
from modules.capabilities import Animates
from tasks.base import Task

FrameCount = Annotated[int, Field(ge=2)]
FrameRate = Annotated[float, Field(gt=0, le=50)]  # a GIF counts in hundredths of a second; players slow down below two


class Animate(Task):
    """A random walk of the model's noise that begins at the training image: frames `frame_0000`, `frame_0001`, …

    Args:
        num_frames: number of frames.
        frames_per_second: of the animation that evaluate.py writes next to the frames.
        options: options of the method, such as alpha, beta and start_scale.
        seed: determines the motion.
    """

    capability = Animates

    def __init__(
        self,
        num_frames: FrameCount = 100,
        frames_per_second: FrameRate = 10.0,
        options: Options | None = None,
        seed: Seed = 0,
    ) -> None:
        self.num_frames, self.frames_per_second, self.options, self.seed = num_frames, frames_per_second, options, seed

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        animate = self.bind(module)
        with sampling_mode(module, self.seed, [0]):
            frames = animate(self.num_frames).cpu()
        yield from ((f"frame_{index:04d}", frame) for index, frame in enumerate(frames))
