"""The largest region of a picture that is copied from another picture, moved by one constant offset."""

import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from core.errors import check_counts
from modules.ops.nearest import extract, nearest

PATCH, STRIDE = 5, 2
TOLERANCE = 0.05  # root mean squared difference of two patches that count as equal; 1 is the full range
MAX_DISTANCES = 2**24  # computed at once, 64 MB


def copied_shares(images: Tensor, sources: Tensor) -> Tensor:
    """Size of the largest region of each image that is in each source, as a share of the image: float64 [n, m] in 0…1.

    Floats [n, 3, H, W] and [m, 3, H, W] in 0…1. Around every second pixel of an image the nearest patch
    of the source and its mirror image is searched; 4-neighbors whose matches are equal within TOLERANCE and lie at the same
    offset are one region.
    """
    check_counts("the search of copied regions", PATCH, "pixels on each side", *images.shape[-2:], *sources.shape[-2:])
    shape = [(side - PATCH) // STRIDE + 1 for side in images.shape[-2:]]
    width = sources.shape[-1] - PATCH + 1
    y, x = (STRIDE * torch.arange(side, device=images.device) for side in shape)
    positions = (y[:, None] * width + x).flatten()
    queries = extract(images, PATCH, STRIDE)
    shares = []
    for source in sources:
        keys = extract(torch.stack([source, source.flip(-1)]), PATCH)
        chunk = max(1, MAX_DISTANCES // keys[..., 0].numel())
        distances, indices = nearest(queries.flatten(0, 1), keys.flatten(0, 1), chunk)
        indices, offsets = indices.view(len(images), -1), keys.shape[1] * 2
        labels = indices // keys.shape[1] * offsets * 2 + indices % keys.shape[1] - positions + offsets
        equal = (distances / queries.shape[-1]).view_as(labels) <= TOLERANCE**2
        largest = largest_region(labels.where(equal, -1).unflatten(1, shape))
        shares.append(largest.double() / (shape[0] * shape[1]))
    return torch.stack(shares, 1).cpu()


def largest_region(labels: Tensor) -> Tensor:
    """Cells [n] of the largest region of 4-neighbors with one label in maps [n, h, w]; -1 is no label."""
    cells = torch.arange(labels.numel()).view_as(labels)
    labels = labels.cpu()
    down, right = labels[:, 1:] == labels[:, :-1], labels[:, :, 1:] == labels[:, :, :-1]
    first = torch.cat([cells[:, :-1][down], cells[:, :, :-1][right]])
    second = torch.cat([cells[:, 1:][down], cells[:, :, 1:][right]])
    graph = coo_array((torch.ones(len(first)), (first, second)), shape=(labels.numel(), labels.numel()))
    regions = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
    valid = (labels >= 0).flatten()
    sizes = regions.bincount(valid.double())[regions] * valid
    return sizes.view(len(labels), -1).amax(1).long()


def shrink(images: Tensor, side: int = 32) -> Tensor:
    """uint8 [N, 3, H, W] -> floats in 0…1, area-averaged so that the shorter side has at most `side` pixels."""
    factor = side / min(images.shape[-2:])
    if factor >= 1:
        return images.float() / 255
    size = [max(side, round(factor * length)) for length in images.shape[-2:]]
    parts = images.split(64)  # floats of all images of a large set would take too much memory
    return torch.cat([F.interpolate(part.float() / 255, size, mode="area") for part in parts])
