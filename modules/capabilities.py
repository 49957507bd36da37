"""Capabilities of methods, as protocols: tasks, callbacks and reports ask `isinstance(module, Inpaints)`.

A method's further parameters, with defaults, are options, which users set by `task.options.<name>`; for
one of type Tensor they give the file of an image.
"""

import inspect
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from modules.base import GenerativeModule


@runtime_checkable
class Samples(Protocol):
    def sample(self, num_images: int, size: tuple[int, int] | None) -> Tensor:
        """New images [N, 3, H, W] of `size`, by default the training size."""


@runtime_checkable
class Reconstructs(Protocol):
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] of any size as the model sees them, same size out."""


@runtime_checkable
class Autoencodes(Protocol):
    def autoencode(self, images: Tensor) -> Tensor:
        """Reconstructions of images [N, 3, H, W] of the training size by an autoencoder: hundreds in a moment."""


@runtime_checkable
class Injects(Protocol):
    def inject(self, images: Tensor, scale: int) -> Tensor:
        """Images [N, 3, H, W] of any size rendered with what the model has learned, same size out. They enter at `scale`, by
        default the coarsest that takes an image; finer ones keep more of them."""


@runtime_checkable
class Edits(Protocol):
    def edit(self, image: Tensor, mask: Tensor) -> Tensor:
        """The image [1, 3, H, W] with another content where `mask` [1, 1, H, W] is 1; the rest is not rendered anew."""


@runtime_checkable
class Inpaints(Protocol):
    def inpaint(self, image: Tensor, mask: Tensor, num_images: int) -> Tensor:
        """`num_images` ways to fill the hole (`mask` [1, 1, H, W] is 1) of an image [1, 3, H, W]."""


@runtime_checkable
class Animates(Protocol):
    def animate(self, num_frames: int) -> Tensor:
        """Frames [F, 3, H, W] of a random walk that begins at the training image."""


@runtime_checkable
class SuperResolves(Protocol):
    def super_resolve(self, images: Tensor, factor: float) -> Tensor:
        """Images [N, 3, h, w] enlarged to [N, 3, int(factor h), int(factor w)] with more detail."""


@runtime_checkable
class Interpolates(Protocol):
    def sample_latents(self, num_images: int, size: tuple[int, int] | None) -> Tensor:
        """Latents [N, ...] of new images."""

    def decode(self, latents: Tensor, size: tuple[int, int] | None) -> Tensor:
        """Images [N, 3, H, W] of latents, a continuous function of them."""


@runtime_checkable
class Encodes(Protocol):
    def encode(self, images: Tensor) -> Tensor:
        """Latents [N, ...] of images [N, 3, H, W] of any size, for `Interpolates.decode`."""


@runtime_checkable
class ExplainsSources(Protocol):
    def provenance(self) -> Tensor:
        """Source image, row and column, integers [N, 3, H, W], of each pixel of the last images."""

    def provenance_picture(self) -> Tensor:
        """The same as pictures [N, 3, H, W] in [-1, 1]."""

    def source_shares(self) -> Tensor:
        """Share of the last images that each training image gave; sums to 1."""


def functions(capability: type) -> list[str]:
    """Names of the methods that a capability consists of; options belong to the first one."""
    return [name for name in vars(capability) if not name.startswith("_")]


def options(method: Any, capability: type) -> dict[str, inspect.Parameter]:
    """Parameters of the function of a method, or of a module, beyond those of the capability."""
    name = functions(capability)[0]
    common = inspect.signature(getattr(capability, name)).parameters
    return {key: p for key, p in inspect.signature(getattr(method, name)).parameters.items() if key not in common}


def methods(capability: type = Samples) -> list[type[GenerativeModule]]:
    """The classes in `modules/` that can be trained and have a capability, by name."""
    files = [import_module(f"modules.{entry.name}") for entry in iter_modules([str(Path(__file__).parent)])]
    classes = [value for file in files for value in vars(file).values() if isinstance(value, type)]
    kinds = {c for c in classes if issubclass(c, GenerativeModule) and issubclass(c, capability)}
    able = {c for c in kinds if c.sample is not GenerativeModule.sample or (c.no_samples and capability is not Samples)}
    return sorted(able, key=lambda c: c.__name__)


def adopt(path: str) -> dict[str, Any] | None:
    """The model in a file of another project as a checkpoint of the first method that reads such files, else None."""
    return next(filter(None, (method.adopt(path) for method in methods(GenerativeModule))), None)
