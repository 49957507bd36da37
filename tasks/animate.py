"""Moves the training image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from modules.base import GenerativeModule, sampling_mode
from modules.capabilities import Animates
from tasks.task import Task

FrameCount = Annotated[int, Field(ge=2)]
FrameRate = Annotated[float, Field(gt=0, le=50)]  # a GIF counts in hundredths of a second; players slow down below two


@dataclass(kw_only=True)
class Animate(Task):
    """A random walk of the model's noise that begins at the training image: frames `frame_0000`, `frame_0001`, …

    Args:
        num_frames: number of frames.
        frames_per_second: of the animation that evaluate.py writes next to the frames.
    """

    capability = Animates

    num_frames: FrameCount = 100
    frames_per_second: FrameRate = 10.0

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        animate = self.bind(module)
        with sampling_mode(module, self.seed, [0]):
            frames = animate(self.num_frames).cpu()
        yield from ((f"frame_{index:04d}", frame) for index, frame in enumerate(frames))
