"""The synthesis of LatentPatch on random codes, against loops over every source and cell."""

import pytest
import torch
import torch.nn.functional as F

from modules.patches.latent_patches import (
    LatentSources,
    compose,
    interpolate,
    latent_sizes,
    plan_windows,
    project_codebook,
    shifts_inside,
    verbatim_scores,
)


def sources(images=20, size=(8, 8), codes=40, rank=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, codes, (images, *size), generator=generator, dtype=torch.int16)
    return LatentSources(maps, torch.randn(codes, rank, generator=generator, dtype=dtype))


def uniform(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def synthesize(made, sizes, patch, stride, neighbors, images=3, guess=None, rho=0, seed=1):
    """Origin of every cell; the code path of the module without the module."""
    features = None if guess is None else interpolate(guess, made.size, sizes[0]).clone()
    for number, size in enumerate(sizes):
        masked = number == 0 and guess is None
        windows = plan_windows(size, patch, stride, masked=masked)
        if features is None:
            features = made.book.new_zeros(images, size[0] * size[1], made.book.shape[1])
        elif number:
            features = interpolate(features, sizes[number - 1], size)
        draws = uniform(len(features), len(windows), 2, seed=seed + number)
        origin = compose(made.at(size), features, windows, draws, neighbors, rho)
    return origin


def naive(made, sizes, patch, stride, neighbors, images=3, guess=None, rho=0, seed=1):
    """The same by loops over images, windows, sources, shifts and cells, with all features stored."""
    def resized(maps, size):
        return F.interpolate(maps, size, mode="bilinear", align_corners=False)

    everything = made.book[made.codes.long()].transpose(1, 2).unflatten(2, made.size)
    total = len(everything)
    state = None if guess is None else resized(guess.transpose(1, 2).unflatten(2, made.size), sizes[0])
    for number, (height, width) in enumerate(sizes):
        maps = resized(everything, (height, width))
        masked = number == 0 and guess is None
        state = torch.zeros(images, maps.shape[1], height, width).double() if state is None else resized(state, (height, width))
        tops, lefts = (
            [y for y in range(side - patch + 1) if y % stride == 0 or y == side - patch] for side in (height, width)
        )
        draws = uniform(len(state), len(tops) * len(lefts), 2, seed=seed + number)
        origin = torch.full((len(state), height, width), -1)
        for g in range(len(state)):
            known, window = torch.zeros(height, width, dtype=torch.bool), 0
            for top in tops:
                for left in lefts:
                    box = [(y, x) for y in range(top, top + patch) for x in range(left, left + patch)]
                    compared = [cell for cell in box if known[cell] or not masked]
                    choice, first = float(draws[g, window, 0]), int(draws[g, window, 1] * total)
                    window += 1
                    if not compared:
                        chosen = (int(choice * total), 0, 0)
                    else:
                        ranked = []
                        for dy in range(-rho, rho + 1):
                            for dx in range(-rho, rho + 1):
                                if 0 <= top + dy <= height - patch and 0 <= left + dx <= width - patch:
                                    for b in range(total):
                                        distance = sum(
                                            float((state[g, :, y, x] - maps[b, :, y + dy, x + dx]).square().sum())
                                            for y, x in compared
                                        )
                                        rank = (dy * dy + dx * dx, dy, dx, (b - first) % total)
                                        ranked.append((round(distance, 9), rank, (b, dy, dx)))
                        ranked.sort()
                        chosen = ranked[int(choice * min(neighbors, len(ranked)))][2]
                    b, dy, dx = chosen
                    for y, x in box:
                        if not known[y, x]:
                            state[g, :, y, x] = maps[b, :, y + dy, x + dx]
                            origin[g, y, x] = b * height * width + (y + dy) * width + x + dx
                            known[y, x] = True
    return origin.flatten(1)


CASES = {
    "one scale": dict(sizes=[(8, 8)], patch=4, stride=2, neighbors=3),
    "a patch that leaves a rest": dict(sizes=[(8, 7)], patch=3, stride=2, neighbors=2),
    "scales": dict(sizes=[(5, 5), (6, 6), (8, 8)], patch=4, stride=2, neighbors=3),
    "all sources": dict(sizes=[(8, 8)], patch=3, stride=1, neighbors=20),
    "unaligned": dict(sizes=[(8, 8)], patch=3, stride=2, neighbors=3, rho=1),
    "unaligned scales": dict(sizes=[(6, 6), (8, 8)], patch=3, stride=2, neighbors=4, rho=2),
}


@pytest.mark.parametrize("reference", [False, True], ids=["masked", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_naive_loops(case, reference):
    settings = CASES[case]
    made = sources(images=20 if "rho" not in settings else 6, size=settings["sizes"][-1])
    guess = uniform(2, made.size[0] * made.size[1], 6) * 2 - 1 if reference else None
    result = synthesize(made, images=2, guess=guess, **settings)
    if settings["neighbors"] == len(made):  # the order of all does not matter, the choice is uniform: other draws, same law
        assert result.min() >= 0
        return
    assert torch.equal(result, naive(made, images=2, guess=guess, **settings))


@pytest.mark.parametrize("codes", [2, 3])
def test_ties_are_broken_in_the_same_order(codes):
    made, settings = sources(codes=codes, size=(6, 6)), dict(sizes=[(6, 6)], patch=3, stride=2, neighbors=3)
    assert torch.equal(synthesize(made, images=2, **settings), naive(made, images=2, **settings))


def test_equally_near_sources_are_taken_equally_often():
    """All sources equal: every one is as likely as the others, in every window."""
    made = LatentSources(torch.zeros(10, 6, 6, dtype=torch.int16), torch.randn(3, 2))
    origin = synthesize(made, [(6, 6)], 2, 2, 1, images=400) // 36
    counts = torch.stack([(origin == b).sum(0) for b in range(10)]).double() / 400
    assert (counts - 0.1).abs().max() < 0.08


# --- plan, sizes, projection ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch, stride, number", [(2, 1, 15), (4, 2, 7), (6, 2, 6), (8, 3, 4)])
def test_windows_of_the_paper_write_every_cell_once(patch, stride, number):
    windows = plan_windows((16, 16), patch, stride)
    assert len(windows) == number**2
    written = torch.cat([window.written for window in windows])
    assert torch.equal(written.sort().values, torch.arange(256))
    known: set[int] = set()
    for window in windows:
        assert set(window.compared.tolist()) <= known and not set(window.written.tolist()) & known
        known |= set(window.written.tolist())
        inside = {(window.top + y) * 16 + window.left + x for y in range(patch) for x in range(patch)}
        assert set(window.compared.tolist()) | set(window.written.tolist()) == inside
    interior = windows[number + 1]
    assert len(interior.written) == stride**2
    assert interior.written.max() == (interior.top + patch - 1) * 16 + interior.left + patch - 1
    if (patch, stride) == (6, 2):
        assert sum(len(window.compared) for window in windows) == 1040
    assert all(len(w.compared) == patch**2 for w in plan_windows((16, 16), patch, stride, masked=False))


def test_known_cells_are_compared_and_never_written():
    known = torch.rand(9, 11, generator=torch.Generator().manual_seed(0)) > 0.3
    windows = plan_windows((9, 11), 4, 2, known)
    written = torch.cat([window.written for window in windows])
    assert torch.equal(written.sort().values, (~known).flatten().nonzero()[:, 0])
    assert plan_windows((9, 11), 4, 2, torch.ones(9, 11, dtype=torch.bool)) == []


def test_sizes_of_the_paper():
    assert latent_sizes((16, 16), 5) == [(10, 10), (11, 11), (13, 13), (14, 14), (16, 16)]
    assert latent_sizes((8, 8), 4) == [(5, 5), (6, 6), (7, 7), (8, 8)]
    assert latent_sizes((16, 12), 1) == [(16, 12)]


def test_projection_is_the_principal_axes_of_all_latents():
    """Against the decomposition of the latents themselves."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(50, 12, generator=generator, dtype=torch.float64) * torch.arange(1, 13)
    codes = torch.randint(0, 30, (7, 4, 5), generator=generator, dtype=torch.int16)
    book = project_codebook(codes, codebook, 5)
    latents = codebook[codes.flatten().long()]
    axes = torch.linalg.svd(latents - latents.mean(0), full_matrices=False).Vh[:5]
    expected = (codebook - latents.mean(0)) @ axes.T
    torch.testing.assert_close(book @ book.T, expected @ expected.T)  # up to the axes' signs
    assert book[codes.flatten().long()].mean(0).abs().max() < 1e-12
    assert project_codebook(codes, codebook, 99).shape == (50, 12)
    # The nearest row of the projected code book gives every code back, although most of the latent is lost.
    assert torch.equal(torch.cdist(book, book).argmin(1), torch.arange(50))


def test_projection_and_interpolation_commute():
    made = sources(size=(8, 6))
    full = made.book[made.codes.long()]
    for size in ((5, 4), (7, 6), (8, 6), (11, 9)):
        expected = interpolate(full, made.size, size)
        images, cells = torch.arange(len(made)).unsqueeze(1), torch.arange(size[0] * size[1])
        torch.testing.assert_close(made.at(size).features(images, cells), expected)
        query = uniform(4, 7, 6)
        some = torch.tensor([0, 1, 5, 6, 7, 10, 11])
        distances = (query.unsqueeze(1) - expected[:, some]).square().sum((2, 3))
        torch.testing.assert_close(made.at(size).distances(query, some), distances)


# --- properties of the paper's method ---------------------------------------------------------------------------------


def test_one_neighbor_continues_the_first_source():
    """L1, and L3 with five scales: with sources that share no code of a cell, the nearest to a source's patch is the source."""
    codes = torch.arange(20, dtype=torch.int16).view(20, 1, 1).expand(20, 16, 16)
    made = LatentSources(codes, torch.randn(20, 8))
    for patch, stride in ((2, 1), (4, 2), (6, 2), (8, 3)):
        for sizes in ([(16, 16)], latent_sizes((16, 16), 5)):
            origin = synthesize(made, sizes, patch, stride, 1, images=5) // 256
            assert (origin == origin[:, :1]).all() and len(origin[:, 0].unique()) > 1


def test_a_source_as_reference_returns_it():
    """L2."""
    made = sources()
    guess = made.book[made.codes[3:5].long()]
    origin = synthesize(made, [(8, 8)], 4, 2, 1, guess=guess)
    assert torch.equal(origin // 64, torch.tensor([[3], [4]]).expand(2, 64))
    assert torch.equal(made.codes_of(origin), made.codes[3:5].long())


def test_other_numbers_of_the_sources_change_the_origin_alone():
    """L12: with a reference, as otherwise the first window's source is drawn by its number."""
    made, order = sources(), torch.randperm(20, generator=torch.Generator().manual_seed(2))
    other = LatentSources(made.codes[order].view(20, 8, 8), made.book)
    guess = uniform(3, 64, 6) * 2 - 1
    first, second = (synthesize(given, [(8, 8)], 4, 2, 3, guess=guess) for given in (made, other))
    assert torch.equal(made.codes_of(first), other.codes_of(second)) and not torch.equal(first, second)
    assert torch.equal(order[second // 64], first // 64)


@pytest.mark.parametrize("sizes", [[(8, 8)], [(5, 5), (6, 6), (8, 8)]])
def test_every_code_is_that_of_its_source_at_the_same_cell(sizes):
    """L4, L5, L7."""
    made = sources()
    origin = synthesize(made, sizes, 4, 2, 3, images=4)
    assert torch.equal(origin % 64, torch.arange(64).expand(4, 64))
    assert torch.equal(made.codes_of(origin), made.codes[origin // 64, torch.arange(64)].long())
    assert (verbatim_scores(made.codes_of(origin).view(4, 8, 8), made) < 1).all()
    single = LatentSources(made.codes[:1].view(1, 8, 8), made.book)
    assert (synthesize(single, sizes, 4, 2, 1, images=2) // 64 == 0).all()


def test_single_cells_are_independent_and_uniform():
    """L8: windows of one cell compare nothing."""
    origin = synthesize(sources(images=4), [(8, 8)], 1, 1, 2, images=2000) // 64
    counts = torch.stack([(origin == b).sum(0) for b in range(4)]).double()
    assert ((counts - 500).square() / 500).sum(0).mean() == pytest.approx(3, abs=1)  # chi-square with 3 degrees of freedom


def test_the_second_window_keeps_the_source_once_in_k():
    """L9: of k nearest sources, equally likely, the first one is the source itself."""
    made = sources(images=100, codes=500)
    origin = synthesize(made, [(8, 8)], 4, 2, 3, images=600) // 64
    assert (origin[:, 4] == origin[:, 0]).double().mean() == pytest.approx(1 / 3, abs=0.06)


def test_results_do_not_depend_on_the_other_images():
    made = sources(dtype=torch.float32)
    for sizes in ([(8, 8)], [(5, 5), (8, 8)]):
        windows = {size: plan_windows(size, 4, 2, masked=size == sizes[0]) for size in sizes}

        def run(rows, sizes=sizes, windows=windows):
            features = torch.zeros(len(rows), sizes[0][0] * sizes[0][1], 6)
            for number, size in enumerate(sizes):
                features = features if not number else interpolate(features, sizes[number - 1], size)
                draws = uniform(9, len(windows[size]), 2, seed=number).float()[rows]
                origin = compose(made.at(size), features, windows[size], draws, 3)
            return origin

        together = run(list(range(9)))
        assert torch.equal(torch.cat([run([0]), run([1, 2, 3]), run([4, 5, 6, 7, 8])]), together)


def test_shifts_stay_inside_and_begin_with_none():
    window = plan_windows((8, 8), 4, 2)[0]
    assert shifts_inside(window, (8, 8), 0) == [(0, 0)]
    assert shifts_inside(window, (8, 8), 1) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    made = sources(images=5)
    origin = synthesize(made, [(8, 8)], 4, 2, 3, images=3, rho=2)
    assert torch.equal(made.codes_of(origin), made.codes.flatten()[origin].long())
    assert (origin % 64 != torch.arange(64)).any()


def test_verbatim_score_is_the_largest_share_of_a_source():
    made = sources(images=6)
    codes = made.codes[:2].clone()
    codes[1, :16] = made.codes[3, :16] + 1
    expected = max(float((codes[1] == row).double().mean()) for row in made.codes)
    assert verbatim_scores(codes.view(2, 8, 8), made).tolist() == pytest.approx([1.0, expected])
