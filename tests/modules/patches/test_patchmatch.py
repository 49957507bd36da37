import pytest
import torch

from datamodules.folder import ImageFolder
from datamodules.listing import list_images
from modules.ops.images import resize
from modules.ops.nearest import extract
from modules.patches.mosaic import PatchGrid
from modules.patches.neighbor_index import nearest_scored
from modules.patches.patchmatch import carry_over, patchmatch
from modules.patches.search import ExactSearch, PatchMatchSearch


@pytest.fixture(scope="module")
def photographs():
    folder, files = list_images("datamodules/starter/landscapes")
    return ImageFolder(folder, files[:2], (64, 64)).stack()


def test_ten_sweeps_come_within_a_fifth_of_the_exact_distance(photographs):
    torch.manual_seed(0)
    key = photographs[0]
    grid = PatchGrid([(64, 64)], 7)
    for query in (resize(photographs[:1], (40, 40))[0], photographs[1]):
        queries, keys = (extract(image.unsqueeze(0), 7)[0] for image in (query, key))
        exact = nearest_scored(queries, keys)[0].mean()
        shape = (query.shape[1] - 6, query.shape[2] - 6)
        start = torch.randint(grid.num_patches, shape)
        distances, matches = patchmatch(queries.view(*shape, -1), keys, grid, start, sweeps=10)
        true = (queries - keys[matches.flatten()]).square().sum(1)
        torch.testing.assert_close(distances.flatten(), true)
        assert exact - 1e-4 <= true.mean() <= 1.2 * exact
        searched = PatchMatchSearch([key], grid, sweeps=5)(query)  # projected patches; twice the sweeps from chance
        assert (queries - keys[searched.flatten()]).square().sum(1).mean() <= 1.2 * exact


def test_no_match_is_exchanged_for_a_worse_one(photographs):
    grid = PatchGrid([(64, 64)], 7)
    keys = extract(photographs[:1], 7)[0]
    queries = extract(photographs[1:], 7)[0].view(58, 58, -1)
    torch.manual_seed(0)
    matches = torch.randint(grid.num_patches, (58, 58))
    before = (queries - keys[matches]).square().sum(2)
    for _ in range(3):
        distances, matches = patchmatch(queries, keys, grid, matches, sweeps=1)
        assert (distances <= before).all() and (distances < before).any()
        before = distances


def test_patches_that_are_not_allowed_are_never_found(photographs):
    torch.manual_seed(0)
    grid = PatchGrid([(64, 64), (64, 64)], 7)
    allowed = torch.arange(0, grid.num_patches, 3)
    for search in (PatchMatchSearch(photographs, grid, allowed), ExactSearch(photographs, grid, allowed)):
        for start in (None, torch.full((58, 58), 1)):
            found = search(photographs[0], start)
            assert found.shape == (58, 58) and (found % 3 == 0).all()


def test_the_exact_search_finds_an_image_in_its_own_patches(photographs):
    grid = PatchGrid([(64, 64), (64, 64)], 7)
    for alpha in (None, 1.0, 0.005):
        found = ExactSearch(photographs, grid, alpha=alpha)(photographs[1])
        patches = torch.cat([extract(image.unsqueeze(0), 7)[0] for image in photographs])
        assert torch.equal(patches[found.flatten()], extract(photographs[1:], 7)[0])


def test_carrying_matches_over_keeps_them_on_the_same_grid_and_doubles_them_on_a_finer_one():
    grid, finer = PatchGrid([(13, 17), (9, 9)], 3), PatchGrid([(25, 33), (17, 17)], 3)
    own = torch.arange(11 * 15).view(11, 15)
    assert torch.equal(carry_over(own, grid, grid, (11, 15)), own)
    image, top, left = finer.locate(carry_over(own, grid, finer, (23, 31)))
    rows, columns = torch.meshgrid(torch.arange(23), torch.arange(31), indexing="ij")
    assert (image == 0).all() and (top - rows).abs().max() <= 1 and (left - columns).abs().max() <= 1
    second = finer.locate(carry_over(torch.full((11, 15), int(grid.starts[1])), grid, finer, (23, 31)))
    assert (second[0] == 1).all() and second[1:].max() <= 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (30, 2)])
def test_any_number_of_patches_works(photographs, shape):
    torch.manual_seed(0)
    grid = PatchGrid([(64, 64), (64, 64)], 7)
    query = photographs[0][:, : shape[0] + 6, : shape[1] + 6]
    assert PatchMatchSearch(photographs, grid)(query).shape == shape
    assert ExactSearch(photographs, grid)(query).shape == shape
