"""What a method can do beside `sample`, as protocols: tasks, callbacks and reports ask `isinstance(module, Inpaints)`.

A method has a capability by defining its methods; options of one method are further keywords with defaults, which users
reach by `task.options.<name>`.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Reconstructs(Protocol):
    """Gives images back as the model sees them."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] of any size, same size out."""


@runtime_checkable
class Injects(Protocol):
    """Renders any image with what the model has learned, entering at a scale: finer scales keep more of the image."""

    def inject(self, images: Tensor, scale: int) -> Tensor:
        """Images [N, 3, H, W] of any size, same size out."""


@runtime_checkable
class Inpaints(Protocol):
    """Fills holes."""

    def inpaint(self, image: Tensor, mask: Tensor, num_images: int) -> Tensor:
        """`num_images` ways to fill the hole (`mask` [1, 1, H, W] is 1) of an image [1, 3, H, W]."""


@runtime_checkable
class Animates(Protocol):
    """Moves the training image."""

    def animate(self, num_frames: int, alpha: float, beta: float, start_scale: int) -> Tensor:
        """Frames [F, 3, H, W] of a random walk that begins at the training image."""


@runtime_checkable
class SuperResolves(Protocol):
    """Enlarges images and adds detail."""

    def super_resolve(self, images: Tensor, factor: float) -> Tensor:
        """Images [N, 3, h, w] enlarged to [N, 3, int(factor h), int(factor w)]."""


@runtime_checkable
class Interpolates(Protocol):
    """Has latents between which images change gradually."""

    def sample_latents(self, num_images: int, size: tuple[int, int] | None) -> Tensor:
        """Latents [N, ...] of new images."""

    def decode(self, latents: Tensor, size: tuple[int, int] | None) -> Tensor:
        """Images [N, 3, H, W] of latents, a continuous function of them."""


@runtime_checkable
class ExplainsSources(Protocol):
    """Copies pixels, and knows from where."""

    @property
    def provenance(self) -> Tensor:
        """Source image, row and column, integers [N, 3, H, W], of each pixel of the last images made."""

    def provenance_picture(self) -> Tensor:
        """The same as pictures [N, 3, H, W] in [-1, 1]."""

    def source_shares(self) -> Tensor:
        """Share of the last images that each training image gave; sums to 1."""


CAPABILITIES = (Reconstructs, Injects, Inpaints, Animates, SuperResolves, Interpolates, ExplainsSources)
