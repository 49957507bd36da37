"""Draws new images."""

import zipfile
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.types import ImageSize, PathStr, PositiveInt
from modules.base import GenerativeModule
from modules.capabilities import ExplainsSources, Interpolates, methods
from tasks.task import Function, Images, Task, numbered


@dataclass(kw_only=True)
class Generate(Task):
    """Random images: `sample_000`, `sample_001`, …

    For a method that copies pixels also `sources_000`, …, in which each training image is a range of hues, darker towards its
    bottom; and `sources`, integers [N, 3, H, W]: image, row and column of every pixel.

    Args:
        num_images: number of images.
        latents: .npy or .npz file with latents [N, …], of which images are made in place of random ones, for methods that
            interpolate; equal latents give a source and its adaptations images to compare. `num_images` and `options` are not
            used.
        size: [height, width]; by default the training size.
        batch_size: images computed at once; it limits the memory and changes no image.
    """

    num_images: PositiveInt = 8
    latents: PathStr | None = None
    size: ImageSize | None = None
    batch_size: PositiveInt = 16

    def render(self, module: GenerativeModule, sample: Function) -> Images:
        self.check_trained(module)
        if self.latents is not None:
            yield from numbered("sample_{:03d}", self._decoded(module))
            return
        size = {"size": tuple(self.size)} if self.size else {}
        batches = []
        for start in range(0, self.num_images, self.batch_size):
            indices = range(start, min(start + self.batch_size, self.num_images))
            images = sample(len(indices), **size, indices=indices)
            sources = (module.provenance(), module.provenance_picture()) if isinstance(module, ExplainsSources) else ()
            batches.append([images, *(part.cpu() for part in sources)])
        images, *sources = map(torch.cat, zip(*batches, strict=True))
        yield from numbered("sample_{:03d}", images)
        if sources:
            yield "sources", sources[0]
            yield from numbered("sources_{:03d}", sources[1])

    def _decoded(self, module: GenerativeModule) -> Tensor:
        """Images of the latents in the file."""
        if not isinstance(module, Interpolates):
            able = ", ".join(method.__name__ for method in methods(Interpolates))
            raise UserError(f"task.latents: {type(module).__name__} has no decode(); methods that have it: {able}")
        size, parts = tuple(self.size or module.image_size), read_latents(self.latents).split(self.batch_size)
        return torch.cat([self.call(module, module.decode, part, size) for part in parts])


def read_latents(path: str) -> Tensor:
    """The floats [N, …] in a .npy file, or in the only array of an .npz file; UserError for anything else."""
    try:
        values = np.load(path, allow_pickle=False)
        if not isinstance(values, np.ndarray):  # an .npz file
            values = values[values.files[0]] if len(values.files) == 1 else None
    except FileNotFoundError:
        raise UserError(f"task.latents={path}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        values = None
    if values is None or values.ndim < 2 or values.dtype.kind != "f" or not len(values) or not np.isfinite(values).all():
        raise UserError(f"task.latents={path}: expected one array of finite floats [N, …] in a .npy or .npz file")
    return torch.from_numpy(values.astype(np.float32))
