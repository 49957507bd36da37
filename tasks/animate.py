"""Moves the training image."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from modules.base import GenerativeModule
from modules.capabilities import Animates
from tasks.task import Function, Images, Task, numbered

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

    def render(self, module: GenerativeModule, animate: Function) -> Images:
        return numbered("frame_{:04d}", animate(self.num_frames))
