"""Changes images gradually into one another."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from core.errors import UserError
from core.types import ImageSize, PathStr
from modules.base import GenerativeModule
from modules.capabilities import Encodes, Interpolates
from tasks.animate import FrameCount, FrameRate
from tasks.inputs import read_prepared
from tasks.task import Function, Images, Task, numbered

Files = Annotated[list[PathStr], Field(min_length=2)]


@dataclass(kw_only=True)
class Interpolate(Task):
    """A path through the model's latents, as frames `frame_0000`, `frame_0001`, …

    Args:
        num_points: number of random images on the path.
        images: files in place of random images; they appear as the model reconstructs them.
        num_frames: frames from each image to the next one.
        loop: return to the first image at the end.
        line: straight lines between latents, which suit those that are not Gaussian, such as StyleGAN2's w; else arcs.
        size: [height, width]; by default the training size.
        frames_per_second: of the animation that evaluate.py writes next to the frames.
    """

    capability = Interpolates

    num_points: FrameCount = 4
    images: Files | None = None
    num_frames: FrameCount = 12
    loop: bool = True
    line: bool = False
    size: ImageSize | None = None
    frames_per_second: FrameRate = 10.0

    def render(self, module: GenerativeModule, sample_latents: Function) -> Images:
        size = tuple(self.size or module.image_size)
        if self.images is None:
            self.check_trained(module)
            points = sample_latents(self.num_points, size, indices=range(self.num_points))
        elif isinstance(module, Encodes):
            images = [read_prepared(file, module, size) for file in self.images]
            points = torch.cat([self.call(module, module.encode, image) for image in images])
        else:
            raise UserError(f"task.images: {type(module).__name__} has no encode(); leave it out for random images")
        latents = between(points, self.num_frames, self.loop, torch.lerp if self.line else spherical).split(1)
        yield from numbered("frame_{:04d}", [self.call(module, module.decode, latent, size)[0] for latent in latents])


def spherical(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The point at `share` of the arc from `first` to `second` (White 2016, arXiv 1609.04468)."""
    cosine = F.cosine_similarity(first.flatten(), second.flatten(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if angle.sin() < 1e-3:  # the same direction, or the opposite one, where no arc is unique
        return torch.lerp(first, second, share)
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / angle.sin()


def between(points: Tensor, steps: int, loop: bool, way: Function = spherical) -> Tensor:
    """Points [F, …] on a path through `points` [N, …], `steps` from each to the next; the last one, or with `loop` the first
    one again, ends it. `way` gives the point at a share of the way from one to another."""
    stops = [*points, points[0]] if loop else [*points]
    path = [way(first, second, step / steps) for first, second in pairwise(stops) for step in range(steps)]
    return torch.stack(path if loop else [*path, stops[-1]])
