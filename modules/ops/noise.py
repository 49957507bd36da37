"""Random draws of sampling, so that image i depends on (seed, i) alone: on no other image, batch size, rank or device.

`sample` and the other capabilities draw from here; where `image_generators` is not active, by torch's global generator.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from itertools import repeat

import torch
from torch import Tensor

_active: ContextVar[list[torch.Generator] | None] = ContextVar("image_generators", default=None)


@contextmanager
def _activated(generators: list[torch.Generator] | None) -> Iterator[None]:
    token = _active.set(generators)
    try:
        yield
    finally:
        _active.reset(token)


def image_generators(seed: int, images: Iterable[int]) -> AbstractContextManager[None]:
    """Inside, row i of what is drawn comes from a CPU generator that (seed, images[i]) determines."""
    return _activated([torch.Generator().manual_seed(_mixed(seed, image)) for image in images])


def single_image(index: int) -> AbstractContextManager[None]:
    """Inside, all draws are for image `index` of the batch."""
    generators = _active.get()
    return _activated(None if generators is None else [generators[index]])


def randn(*shape: int, device: torch.device | None = None) -> Tensor:
    """Standard normal values; the first dimension is the number of images, or a multiple of it in the images' order."""
    return _draw(torch.randn, shape, device)


def randn_like(images: Tensor) -> Tensor:
    return randn(*images.shape, device=images.device).to(images.dtype) if _active.get() else torch.randn_like(images)


def rand(*shape: int, device: torch.device | None = None) -> Tensor:
    return _draw(torch.rand, shape, device)


def randint(low: int, high: int, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    return _draw(lambda size, **options: torch.randint(low, high, size, **options), shape, device)


def random_walk(rest: Tensor, draw: Callable[[], Tensor], alpha: float, beta: float, first_step: float) -> Iterator[Tensor]:
    """Endless z_0 = rest, z_1, …: z_{t+1} = alpha rest + (1 - alpha) (z_t + beta (z_t - z_{t-1}) + (1 - beta) u), u drawn
    (animation of SinGAN, Rott Shaham et al. 2019): `alpha` pulls back, `beta` near 1 makes the motion smooth."""
    before, now = rest, torch.lerp(rest, draw(), first_step)
    while True:
        yield before
        before, now = now, alpha * rest + (1 - alpha) * (now + beta * (now - before) + (1 - beta) * draw())


def random_walks(maps: Iterable[tuple[Tensor, Callable[[], Tensor]]], start: int, *settings: float) -> Iterator[tuple]:
    """`random_walk` of several maps, given by their rest and draw, step by step; the first `start` maps stay at rest."""
    walks = (repeat(rest) if index < start else random_walk(rest, draw, *settings) for index, (rest, draw) in enumerate(maps))
    return zip(*walks, strict=True)


def _draw(function: Callable[..., Tensor], shape: tuple[int, ...], device: torch.device | None) -> Tensor:
    generators = _active.get()
    if generators is None:
        return function(shape, device=device)
    rows, rest = divmod(shape[0], len(generators))
    if rest:
        raise ValueError(f"{shape[0]} rows cannot be shared out among {len(generators)} images")
    return torch.cat([function((rows, *shape[1:]), generator=generator) for generator in generators]).to(device)


def _mixed(seed: int, image: int) -> int:
    """A seed whose neighbors are far apart (a step of Knuth's MMIX generator)."""
    return ((seed * 2_654_435_761 + image + 1) * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % 2**63
