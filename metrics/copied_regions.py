"""How large a region of a picture is copied from another picture, moved by one constant offset?"""

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import UserError
from modules.ops.nearest import extract, nearest

PATCH, STRIDE = 5, 2
TOLERANCE = 0.05  # root of the mean squared difference of two equal patches, in parts of the full range
AT_ONCE = 2**24  # distances, 64 MB


def copied_shares(images: Tensor, sources: Tensor, flip: bool = True, tolerance: float = TOLERANCE) -> Tensor:
    """Size of the largest region of each image that is in each source, as a share of the image: float64 [n, m] in 0…1.

    Floats [n, 3, H, W] and [m, 3, H, W] in 0…1, small ones: the work grows with the square of the pixels. Around every
    second pixel of an image the nearest patch of 5 x 5 pixels of the source is looked up; neighbours (4) whose finds are
    equal within `tolerance` and lie at the same offset are one region. With `flip` the mirrored source counts as well.
    ValueError if an image is smaller than a patch.
    """
    if min(*images.shape[-2:], *sources.shape[-2:]) < PATCH:
        raise UserError(f"images of {tuple(images.shape[-2:])} pixels hold no patch of {PATCH}")
    shape = [(side - PATCH) // STRIDE + 1 for side in images.shape[-2:]]
    width = sources.shape[-1] - PATCH + 1
    y, x = (STRIDE * torch.arange(side, device=images.device) for side in shape)
    own = (y[:, None] * width + x).flatten()
    queries = extract(images, PATCH, STRIDE)
    shares = []
    for source in sources:
        both = torch.stack([source, source.flip(-1)]) if flip else source[None]
        keys = extract(both, PATCH)
        distances, found = nearest(queries.flatten(0, 1), keys.flatten(0, 1), chunk=max(1, AT_ONCE // keys[..., 0].numel()))
        found, offsets = found.view(len(images), -1), keys.shape[1] * 2
        labels = found // keys.shape[1] * offsets * 2 + found % keys.shape[1] - own + offsets
        equal = (distances / queries.shape[-1]).view_as(labels) <= tolerance**2
        largest = largest_region(labels.where(equal, -1).unflatten(1, shape))
        shares.append(largest.double() / (shape[0] * shape[1]))
    return torch.stack(shares, 1).cpu()


def largest_region(labels: Tensor) -> Tensor:
    """Number of cells [n] of the largest region of 4-neighbours with one label in maps [n, h, w]; -1 is no label."""
    number, height, width = labels.shape
    ids = torch.arange(height * width, device=labels.device).view(1, height, width).expand_as(labels)
    down, right = labels[:, 1:] == labels[:, :-1], labels[:, :, 1:] == labels[:, :, :-1]
    while True:
        before = ids
        ids = ids.maximum(F.pad(ids[:, 1:].where(down, 0), (0, 0, 0, 1))).maximum(
            F.pad(ids[:, :-1].where(down, 0), (0, 0, 1, 0))
        )
        ids = ids.maximum(F.pad(ids[:, :, 1:].where(right, 0), (0, 1))).maximum(F.pad(ids[:, :, :-1].where(right, 0), (1, 0)))
        if torch.equal(ids, before):
            break
    counts = torch.zeros(number, height * width, dtype=torch.long, device=labels.device)
    counts.scatter_add_(1, ids.flatten(1), (labels >= 0).long().flatten(1))
    return counts.amax(1)


def shrink(images: Tensor, side: int = 32) -> Tensor:
    """Bytes [N, 3, H, W] -> floats in 0…1, area-averaged so that the shorter side has at most `side` pixels."""
    images = images.float() / 255
    factor = side / min(images.shape[-2:])
    if factor >= 1:
        return images
    return F.interpolate(images, [max(side, round(factor * length)) for length in images.shape[-2:]], mode="area")
