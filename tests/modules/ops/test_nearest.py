import torch

from modules.ops.kmeans import kmeans
from modules.ops.nearest import extract, nearest


def test_patches_are_cut_row_by_row():
    images = torch.rand(2, 3, 6, 7)
    patches = extract(images, 3, stride=2)
    assert patches.shape == (2, 2 * 3, 27)
    assert torch.equal(patches[1, 4].view(3, 3, 3), images[1, :, 2:5, 2:5])


def test_nearest_equals_brute_force_in_every_chunking():
    queries, keys = torch.randn(50, 8), torch.randn(30, 8)
    distances = torch.cdist(queries.double(), keys.double())
    for chunk in (7, 4096):
        squared, index = nearest(queries, keys, chunk)
        assert torch.equal(index, distances.argmin(1))
        assert torch.allclose(squared.double(), distances.amin(1).square(), atol=1e-5)


def test_kmeans_finds_separated_clusters_whatever_the_seed():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = torch.cat([c + 0.1 * torch.randn(40, 2) for c in centers])
    best = min(
        nearest(points, kmeans(points, 3, torch.Generator().manual_seed(seed)))[0].mean().item() for seed in range(5)
    )
    assert best < 0.05


def test_kmeans_without_enough_points_repeats_them():
    centers = kmeans(torch.tensor([[0.0], [1.0]]), 5, torch.Generator().manual_seed(0))
    assert centers.shape == (5, 1) and set(centers.flatten().tolist()) <= {0.0, 1.0}


def test_an_empty_cluster_takes_the_point_farthest_from_its_center():
    points = torch.tensor([[0.0], [1.0], [2.0], [9.0], [10.0], [17.0]])
    starts = torch.tensor([[1.0], [11.0], [100.0], [200.0]])  # the last two get no point
    centers = kmeans(points, 4, torch.Generator(), iterations=1, starts=starts)
    assert centers.flatten().tolist() == [1.0, 12.0, 17.0, 9.0]
