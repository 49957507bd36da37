"""Images that change gradually into one another."""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import UserError
from modules.base import GenerativeModule, sampling_mode
from tasks.animate import check_frames
from tasks.inputs import checked_size, read_prepared, require, require_trained_sampler


class Interpolate:
    """A way through the model's latents, as frames `frame_0000`, `frame_0001`, …

    Args:
        num_points: number of random images on the way, at least two.
        images: instead of random ones: files, two or more; they appear as the model reconstructs them.
        num_frames: frames from each image to the next one.
        loop: go back to the first image at the end.
        size: [height, width], any; the training size by default.
        frames_per_second: of the animation that evaluate.py writes beside the frames, up to 50.
        seed: the same seed gives the same images.
    """

    def __init__(
        self,
        num_points: int = 4,
        images: list[str] | None = None,
        num_frames: int = 12,
        loop: bool = True,
        size: list[int] | None = None,
        frames_per_second: float = 10.0,
        seed: int = 0,
    ) -> None:
        check_frames(num_frames, frames_per_second)
        if images is not None and len(images) < 2:
            raise UserError(f"task.images={list(images)}: two or more files are needed")
        if num_points < 2:
            raise UserError(f"task.num_points={num_points}: must be at least 2")
        self.num_points, self.images, self.num_frames, self.loop = num_points, images, num_frames, loop
        self.size = checked_size(size) if size is not None else None
        self.frames_per_second, self.seed = frames_per_second, seed

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        latents, render = (require(module, name, "interpolate") for name in ("sample_latents", "decode"))
        size = self.size or tuple(module.image_size)
        with sampling_mode(module, self.seed):
            if self.images is None:
                require_trained_sampler(module, "interpolate")
                points = latents(self.num_points, size)
            else:
                encode = require(module, "encode", "interpolate")
                points = torch.cat([encode(read_prepared(file, module, size).to(module.device)) for file in self.images])
            way = between(points, self.num_frames, self.loop)
            frames = torch.cat([render(latent.unsqueeze(0), size).cpu() for latent in way])
        for index, frame in enumerate(frames):
            yield f"frame_{index:04d}", frame


def between(points: Tensor, steps: int, loop: bool) -> Tensor:
    """The way [F, …] through the points [N, …], `steps` from each to the next; it ends at the last, or before the first."""
    stops = [*points, points[0]] if loop else [*points]
    shares = [step / steps for step in range(steps)]
    way = [spherical(first, second, share) for first, second in pairwise(stops) for share in shares]
    return torch.stack(way if loop else [*way, stops[-1]])


def spherical(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The point at `share` of the arc from `first` to `second`.

    On the straight line between two draws of a wide Gaussian lie points much shorter than any draw, which no decoder has
    seen (White 2016, arXiv 1609.04468).
    """
    cosine = F.cosine_similarity(first.flatten(), second.flatten(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if angle.sin() < 1e-3:  # the same direction, or the opposite one, where no arc is special
        return torch.lerp(first, second, share)
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / angle.sin()
