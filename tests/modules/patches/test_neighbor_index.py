import pytest
import torch

from datamodules.folder import ImageFolder
from datamodules.listing import list_images
from modules.ops.nearest import extract
from modules.patches.neighbor_index import NeighborIndex, Projection, halve, nearest_keys, nearest_scored


def photographs(*size):
    folder, files = list_images("datamodules/starter/landscapes")
    return ImageFolder(folder, files[:2], size).stack()


def points(kind):
    """Queries and keys: patches of two photographs, of one and its noisy copy, a constant, or a few identical clusters."""
    torch.manual_seed(0)
    if kind == "photographs":
        return (extract(image.unsqueeze(0), 7)[0] for image in photographs(34, 36))
    if kind == "noisy":
        image = photographs(34, 36)[:1]
        return extract(image + 0.1 * torch.randn_like(image), 7)[0], extract(image, 7)[0]
    if kind == "constant":
        return torch.full((300, 30), 0.5), torch.full((700, 30), 0.4)
    return torch.randn(3, 30)[torch.randint(3, (400,))], torch.randn(5, 30)[torch.randint(5, (999,))]


def direct(queries, keys, scale):
    """All scores [Q, M] by plain differences in double precision."""
    distances = torch.cdist(queries.double(), keys.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    return distances if scale is None else distances * scale.double()


KINDS = ["photographs", "noisy", "constant", "clusters"]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_index_finds_the_least_of_all_scores(kind, scaled):
    queries, keys = points(kind)
    scale = 0.2 + 5 * torch.rand(len(keys)) if scaled else None
    expected = direct(queries, keys, scale)
    scores, indices = NeighborIndex(keys).search(queries, scale)
    found = expected.gather(1, indices.unsqueeze(1))[:, 0]
    torch.testing.assert_close(scores.double(), found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected.min(1).values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [1, 997, 10**9])
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_of_any_size_give_the_full_matrix_result(kind, tile):
    queries, keys = points(kind)
    queries = queries[:120]
    for scale in (None, 0.2 + 5 * torch.rand(len(keys))):
        expected = direct(queries, keys, scale)
        scores, indices = nearest_scored(queries, keys, scale, tile)
        torch.testing.assert_close(scores.double(), expected.min(1).values, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(expected.gather(1, indices[:, None])[:, 0], expected.min(1).values, rtol=1e-4, atol=1e-4)


def test_a_patch_that_is_there_is_found_at_distance_zero():
    queries, keys = points("photographs")
    scores, indices = NeighborIndex(torch.cat([keys, queries])).search(queries)
    assert scores.max() == 0 and torch.equal(torch.cat([keys, queries])[indices], queries)


def test_the_index_leaves_out_most_keys():
    """Else it would be a slow way of comparing everything."""
    queries, keys = points("noisy")
    index, compared = NeighborIndex(keys), []
    compare = index._compare
    index._compare = lambda q, candidates, s: compared.append(len(q) * len(candidates)) or compare(q, candidates, s)
    index.search(queries)
    assert sum(compared) < 0.25 * len(queries) * len(keys)


def test_projected_distances_never_exceed_the_true_ones_and_come_close():
    queries, keys = points("photographs")
    project = Projection(keys)
    true, projected = torch.cdist(queries, keys), torch.cdist(project(queries), project(keys))
    assert (projected <= true + 1e-3).all()
    assert (projected / true.clamp(min=1e-3)).mean() > 0.95


@pytest.mark.parametrize(("number", "size"), [(1, 4), (5, 8), (100, 7), (1000, 48)])
def test_blocks_are_equal_and_hold_every_point(number, size):
    torch.manual_seed(0)
    blocks = halve(torch.randn(number, 3), size)
    assert blocks.shape[1] <= size and blocks.unique().tolist() == list(range(number))
    assert blocks.numel() - number < len(blocks)


def test_blocks_are_compact():
    torch.manual_seed(0)
    cloud = torch.rand(4096, 2)
    boxes = cloud[halve(cloud, 64)]
    assert (boxes.amax(1) - boxes.amin(1)).amax() < 0.2  # 64 blocks of a unit square: sides near 1/8


def test_minima_per_key_equal_direct_minima():
    queries, keys = points("noisy")
    for few in (queries[:50], queries):  # compared as a whole, and by the index
        least = nearest_keys(few)(keys)[0]
        torch.testing.assert_close(least.double(), direct(keys, few, None).min(1).values, rtol=1e-4, atol=1e-4)
