"""Checks P1-P7 and P10 of the prior: causality, exact cached sampling, likelihood, capacity."""

import itertools
import math
import time

import pytest
import torch
from torch.nn import functional as F

from modules.networks.pixelcnn import GatedPixelCNN, draw


def build(num_codes: int = 7, seed: int = 0, contrast: float = 30.0, **keywords) -> GatedPixelCNN:
    """A small float64 network whose logits differ clearly from one another, as a trained one's do."""
    torch.manual_seed(seed)
    network = GatedPixelCNN(num_codes, **({"width": 8, "num_layers": 3, "head": 16} | keywords)).double().eval()
    with torch.no_grad():
        network.head[-1].weight.mul_(contrast)
    return network


def naive_sample(network, num, size, temperature=1.0, top_k=None, known=None, mask=None) -> torch.Tensor:
    """One whole forward pass per cell; codes by walking through the probabilities, most likely ones kept by a sort."""
    uniform = torch.rand(num, *size)
    codes = torch.zeros(num, *size, dtype=torch.int64) if known is None else torch.where(mask, 0, known)
    for i, j in itertools.product(range(size[0]), range(size[1])):
        with torch.no_grad():
            logits = network(codes)[:, :, i, j] / temperature
        for n in range(num):
            if mask is not None and not mask[n, i, j]:
                continue
            kept = sorted(range(network.num_codes), key=lambda k, n=n: -logits[n, k].item())[:top_k]
            weights = [math.exp(logits[n, k]) if k in kept else 0.0 for k in range(network.num_codes)]
            rest = uniform[n, i, j].item() * sum(weights)
            for k, weight in enumerate(weights):
                rest -= weight
                if rest < 0:
                    codes[n, i, j] = k
                    break
    return codes


@pytest.mark.parametrize(
    ("size", "layers", "first_kernel", "kernel"), [((5, 7), 3, 7, 3), ((7, 3), 1, 3, 5), ((6, 9), 1, 3, 3)]
)
def test_every_position_sees_exactly_the_past_within_reach(size, layers, first_kernel, kernel):
    """Jacobian from embeddings to logits: zero from the position itself on, non-zero before it (no blind spot)."""
    network = build(num_layers=layers, first_kernel=first_kernel, kernel=kernel)
    height, width = size
    reach = first_kernel // 2 + layers * (kernel // 2)
    embedded = torch.randn(1, height, width, 8, dtype=torch.float64, requires_grad=True)
    network.embedding.forward = lambda codes: embedded
    totals = network(torch.zeros(1, height, width, dtype=torch.int64))[0].sum(0)
    for i, j in itertools.product(range(height), range(width)):
        (gradient,) = torch.autograd.grad(totals[i, j], embedded, retain_graph=True)
        seen = gradient[0].abs().sum(2) > 0
        expected = torch.zeros_like(seen)
        for y, x in itertools.product(range(height), range(width)):
            expected[y, x] = (y, x) < (i, j) and i - y <= reach and abs(j - x) <= reach
        assert torch.equal(seen, expected), f"position {(i, j)}"


def test_changing_a_code_leaves_logits_up_to_it_bit_identical():
    network = build().float()
    codes = torch.randint(7, (1, 4, 6))
    before = network(codes).flatten(2)
    for position in range(24):
        changed = codes.flatten(1).clone()
        changed[0, position] = (changed[0, position] + 1) % 7
        after = network(changed.view(1, 4, 6)).flatten(2)
        assert torch.equal(after[..., : position + 1], before[..., : position + 1])
        assert position == 23 or not torch.equal(after[..., position + 1], before[..., position + 1])


@pytest.mark.parametrize("keywords", [{}, {"first_kernel": 3, "kernel": 5, "num_layers": 2}])
@pytest.mark.parametrize("size", [(4, 6), (6, 3), (1, 5), (5, 1)])
def test_scan_equals_forward(keywords, size):
    """In training mode without dropout."""
    network = build(**keywords)
    codes = torch.randint(7, (2, *size))
    logits = torch.empty(2, 7, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = network(codes)
        network.train()
        for i, j, values in network._scan(codes, [size[1]] * size[0]):
            logits[:, :, i, j] = values
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "top_k": 3}])
def test_sample_equals_naive_loop(options):
    network = build()
    torch.manual_seed(1)
    fast = network.sample(3, (4, 6), **options)
    torch.manual_seed(1)
    assert torch.equal(fast, naive_sample(network, 3, (4, 6), **options))
    assert len(fast.unique()) > 1


def test_known_cells_are_kept_and_are_context():
    network = build()
    known = torch.randint(7, (3, 5, 6))
    mask = torch.zeros(3, 5, 6, dtype=torch.bool)
    mask[:, 1:3, 2:5] = True
    mask[1, 4, 0] = True
    torch.manual_seed(2)
    hidden = torch.where(mask, -1, known)  # what lies under the mask is not read
    codes = network.sample(3, (5, 6), known=hidden, mask=mask)
    torch.manual_seed(2)
    assert torch.equal(codes, naive_sample(network, 3, (5, 6), known=known, mask=mask))
    assert torch.equal(codes[~mask], known[~mask])
    shared = network.sample(3, (5, 6), known=known[:1], mask=mask[:1])
    assert torch.equal(shared[:, ~mask[0]], known[:1, ~mask[0]].expand(3, -1))
    assert torch.equal(network.sample(3, (5, 6), known=known, mask=torch.zeros_like(mask)), known)


def test_sample_has_no_dropout_no_gradient_and_does_not_depend_on_chunks():
    network = build(dropout=0.5)
    torch.manual_seed(3)
    together = network.sample(5, (3, 4))
    torch.manual_seed(3)
    network.train()
    assert torch.equal(torch.cat([network.sample(2, (3, 4)), network.sample(3, (3, 4))]), together)
    assert network.training and together.dtype == torch.int64 and not together.requires_grad


def test_more_codes_than_there_are_cannot_be_kept():
    with pytest.raises(ValueError, match="top_k=8: allowed are 1 to 7"):
        build().sample(2, (3, 3), top_k=8)


def test_draw_follows_the_softmax():
    logits = torch.tensor([0.3, -2.0, 1.0, 0.9])
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    for temperature, top_k, kept in ((1.0, None, [0, 1, 2, 3]), (0.5, 2, [2, 3]), (1.0, 1, [2])):
        codes = draw(logits.expand(10_000, 4), uniform, temperature, top_k)
        weights = [math.exp(logits[k] / temperature) if k in kept else 0.0 for k in range(4)]
        shares = torch.bincount(codes, minlength=4) / 10_000
        torch.testing.assert_close(shares, torch.tensor(weights) / sum(weights), rtol=0, atol=3e-4)
    tied = draw(torch.zeros(10_000, 9), uniform, 1.0, 4)
    assert len(tied.unique()) == 4, "ties must not add codes"
    assert draw(logits[None], torch.tensor([1 - 2**-24]), 1.0, None).item() == 3


def test_positions_are_read_by_their_bias_alone():
    codes, network = torch.zeros(1, 20, 20, dtype=torch.int64), build(num_layers=1)
    with_positions = network(codes)[0, :, 10, 9:12]
    for layer in network.layers:
        layer.position_bias.weight.data.zero_()
    without = network(codes)[0, :, 10, 9:12]
    torch.testing.assert_close(without[:, 0], without[:, 2])  # far from all borders, equal context
    assert (with_positions[:, 0] - with_positions[:, 2]).abs().max() > 1e-3


@pytest.mark.parametrize("num_codes", [16, 256])
def test_initial_loss_is_uniform_and_gates_are_alive(num_codes):
    torch.manual_seed(0)
    network = GatedPixelCNN(num_codes).eval()
    gated = []
    for layer in network.layers:
        layer.register_forward_hook(lambda _, __, outputs: gated.append(outputs[2].square().mean().sqrt().item()))
    codes = torch.randint(num_codes, (2, 16, 20))
    loss = F.cross_entropy(network(codes), codes)
    assert abs(loss.item() - math.log(num_codes)) < 0.05
    assert all(0.2 < rms < 0.7 for rms in gated), gated
    loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_probabilities_of_all_maps_sum_to_one():
    network = build(num_codes=3, contrast=200.0)
    maps = torch.tensor(list(itertools.product(range(3), repeat=4))).view(81, 2, 2)
    with torch.no_grad():
        probabilities = network.log_prob(maps).exp()
    assert probabilities.max() > 2 / 81  # far from uniform, so that a leak would show
    torch.testing.assert_close(probabilities.sum().item(), 1.0, rtol=0, atol=1e-10)


def test_overfits_one_grid_and_reproduces_it():
    torch.manual_seed(0)
    network = GatedPixelCNN(16, width=24, num_layers=4, head=48, dropout=0.0)
    grid = torch.randint(16, (1, 8, 8))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        F.cross_entropy(network(grid), grid).backward()
        optimizer.step()
    bits = -network.log_prob(grid).item() / 64 / math.log(2)
    assert bits < 0.05
    assert torch.equal(network.sample(1, (8, 8), top_k=1), grid)


@pytest.mark.parametrize(
    ("codes", "width", "layers", "kernel", "millions"),
    [(64, 64, 6, 3, 0.79), (256, 96, 8, 3, 2.22), (512, 128, 14, 3, 6.18)],
)
def test_parameter_table(codes, width, layers, kernel, millions):
    network = GatedPixelCNN(codes, width, layers, kernel=kernel, head=2 * width)
    unused = width * (width + 1)  # the table counts an output of the last horizontal layer that nothing reads
    positions = 8 * width * (layers + 1)  # and no positions
    assert (sum(p.numel() for p in network.parameters()) + unused - positions) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.slow
def test_learns_a_noisy_sum_to_its_entropy():
    """Each code is left + up modulo K, replaced by a uniform one with probability 0.1."""
    torch.manual_seed(0)
    num_codes, noise = 6, 0.1

    def process(num: int) -> torch.Tensor:
        maps = torch.zeros(num, 9, 9, dtype=torch.int64)
        random, replaced = torch.randint(num_codes, maps.shape), torch.rand(maps.shape) < noise
        for i, j in itertools.product(range(1, 9), range(1, 9)):
            total = (maps[:, i - 1, j] + maps[:, i, j - 1]) % num_codes
            maps[:, i, j] = torch.where(replaced[:, i, j], random[:, i, j], total)
        return maps[:, 1:, 1:]

    hit = 1 - noise + noise / num_codes
    entropy = -hit * math.log2(hit) - (1 - hit) * math.log2(noise / num_codes)
    network = GatedPixelCNN(num_codes, width=32, num_layers=3, first_kernel=3, head=64, dropout=0.0)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    for _ in range(500):
        maps = process(64)
        optimizer.zero_grad()
        F.cross_entropy(network(maps), maps).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        bits = -network.log_prob(process(500)).mean().item() / 64 / math.log(2)
    assert entropy - 0.03 < bits < entropy + 0.05
    samples = F.pad(network.sample(200, (8, 8)), (1, 0, 1, 0))
    right = samples[:, 1:, 1:] == (samples[:, :-1, 1:] + samples[:, 1:, :-1]) % num_codes
    assert right.float().mean().item() == pytest.approx(hit, abs=0.03)


@pytest.mark.slow
def test_cached_sampling_is_ten_times_cheaper_than_forward_passes():
    """CPU seconds of this process, 24×32 codes; the naive loop needs one forward pass per code."""
    network = GatedPixelCNN(256).eval()
    codes = network.sample(4, (2, 2))
    codes = torch.zeros(4, 24, 32, dtype=torch.int64)
    with torch.no_grad():
        network(codes)
        start = time.process_time()
        for _ in range(3):
            network(codes)
    naive = (time.process_time() - start) / 3 * 24 * 32
    start = time.process_time()
    network.sample(4, (24, 32))
    assert naive / (time.process_time() - start) > 10
