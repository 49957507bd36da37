import math

import pytest
import torch
import torch.nn.functional as F

from modules.losses.structure import ssim_loss
from modules.networks.vqvae import VectorQuantizer, VQGenerator
from modules.ops.positions import coordinate_map


def generator(**changes):
    torch.manual_seed(0)
    settings = {"num_codes": 20, "code_dim": 6, "position_weight": 4.0, "width": 8, "encoder_depth": 2, "decoder_depth": 2}
    return VQGenerator(**(settings | changes))


def straight_through(vq, images):
    placed = vq.quantizer.add_coordinates(vq.encode(images))
    entries = vq.quantizer.lookup(vq.quantizer.indices(placed))
    return placed, entries, placed + (entries - placed).detach()


def test_codes_are_indices_on_the_grid_and_a_code_finds_itself():
    vq = generator()
    codes = vq.codes(torch.rand(2, 3, 9, 11) * 2 - 1)
    assert codes.shape == (2, 9, 11) and codes.dtype == torch.long and 0 <= codes.min() and codes.max() < 20
    wanted = torch.arange(20).view(1, 4, 5)
    assert torch.equal(vq.quantizer.indices(vq.quantizer.lookup(wanted)), wanted)


@pytest.mark.parametrize("weight", [1, 3, 16])
def test_literal_repetition_of_coordinates_gives_the_same_codes(weight):
    """The paper concatenates the coordinates lambda_pos times; we append them once times sqrt(lambda_pos)."""
    torch.manual_seed(1)
    quantizer = VectorQuantizer(30, 5, weight)
    features = torch.randn(2, 5, 6, 7)
    positions = coordinate_map(6, 7, features).expand(2, -1, -1, -1)
    stored = quantizer.codebook[:, 5:] / math.sqrt(weight)
    literal_codes = torch.cat([quantizer.codebook[:, :5], *[stored] * weight], dim=1)
    literal = torch.cat([features, *[positions] * weight], dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    expected = torch.cdist(literal.double(), literal_codes.double()).argmin(1).view(2, 6, 7)
    assert torch.equal(quantizer.indices(quantizer.add_coordinates(features)), expected)


def test_without_position_weight_codes_move_with_the_image():
    vq = generator(position_weight=0.0)
    image = torch.rand(1, 3, 20, 20) * 2 - 1
    moved = torch.roll(image, (2, 3), (2, 3))
    a, b = vq.codes(image)[0], vq.codes(moved)[0]
    assert torch.equal(a[4:-6, 4:-7], b[6:-4, 7:-4])


def test_with_an_enormous_position_weight_codes_depend_on_position_only():
    vq = generator(position_weight=1e8, num_codes=12)
    vq.quantizer.initialize(vq.quantizer.add_coordinates(vq.encode(torch.rand(1, 3, 8, 8))), torch.Generator().manual_seed(0))
    a, b = vq.codes(torch.rand(2, 3, 8, 8) * 2 - 1)
    assert torch.equal(a, b) and len(a.unique()) > 6


def test_straight_through_gradient_is_the_identity():
    vq = generator()
    placed, _, passed = straight_through(vq, torch.rand(1, 3, 6, 6))
    weights = torch.randn_like(passed)
    (gradient,) = torch.autograd.grad((passed * weights).sum(), placed)
    assert torch.equal(gradient, weights)


def test_beta_acts_on_the_encoder_and_not_on_the_code_book():
    gradients = {}
    for beta in (0.25, 2.0):
        vq = generator()
        placed, entries, _ = straight_through(vq, torch.rand(1, 3, 6, 6))
        (F.mse_loss(entries, placed.detach()) + beta * F.mse_loss(placed, entries.detach())).backward()
        gradients[beta] = vq.quantizer.codebook.grad, vq.encoder[0].weight.grad
    assert torch.equal(gradients[0.25][0], gradients[2.0][0])
    assert torch.allclose(gradients[0.25][1] * 8, gradients[2.0][1])


def test_terms_on_side_images_do_not_reach_the_code_book():
    vq = generator()
    side = torch.rand(1, 3, 12, 12)
    _, _, passed = straight_through(vq, side)
    ssim_loss(vq.decode_entries(passed), side).backward()
    assert vq.quantizer.codebook.grad is None
    assert vq.encoder[0].weight.grad.abs().sum() > 0


def test_revival_moves_only_dead_codes_and_onto_given_features():
    vq = generator(num_codes=40)
    placed = vq.quantizer.add_coordinates(vq.encode(torch.rand(2, 3, 10, 10) * 2 - 1)).detach()
    used = vq.quantizer.indices(placed).unique()
    before = vq.quantizer.codebook.detach().clone()
    revived = vq.quantizer.revive(placed, torch.Generator().manual_seed(0))
    after = vq.quantizer.codebook.detach()
    assert revived == 40 - len(used) > 0
    assert torch.equal(after[used], before[used])
    rows = placed.permute(0, 2, 3, 1).flatten(0, 2)
    moved = after[[k for k in range(40) if k not in used.tolist()]]
    assert torch.cdist(moved, rows).amin(1).max() < 1e-3
    assert len(vq.quantizer.indices(placed).unique()) > len(used)


def test_features_have_unit_energy_at_every_position():
    features = generator().encode(torch.rand(1, 3, 7, 5) * 2 - 1)
    assert torch.allclose(features.square().mean(1), torch.ones(1, 7, 5), atol=1e-4)


def test_reach_is_the_encoders_receptive_field():
    vq = generator(encoder_depth=3)
    image = torch.rand(1, 3, 21, 21, requires_grad=True)
    vq.encode(image)[0, :, 10, 10].abs().sum().backward()
    touched = image.grad.abs().sum((0, 1)) > 0
    rows = touched.any(1).nonzero().flatten()
    assert vq.encoder_reach == 4 and rows.min() == 10 - 4 and rows.max() == 10 + 4
