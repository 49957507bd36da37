import torch
from torch import nn

from modules.networks.patch_gan import PatchCritic, ResidualGenerator


def test_residual_generator_starts_as_the_identity_and_keeps_any_size():
    network = ResidualGenerator(8, 3)
    images = torch.rand(2, 3, 13, 10) * 2 - 1
    assert torch.equal(network(images), images)
    nn.init.normal_(network.body[-1].weight)
    assert network(images).shape == images.shape and not torch.equal(network(images), images)


def test_residual_is_bounded_and_the_sum_is_not_squashed():
    network = ResidualGenerator(8, 3)
    nn.init.constant_(network.body[-1].bias, 100.0)
    assert torch.equal(network(torch.full((1, 3, 9, 9), 0.9)), torch.full((1, 3, 9, 9), 1.9))


def test_critic_scores_patches_of_side_two_depth_plus_three():
    critic = PatchCritic(8, 4).eval()
    images = torch.rand(1, 3, 25, 25, requires_grad=True)
    scores = critic(images)
    assert scores.shape == (1, 1, 25, 25)
    scores[0, 0, 12, 12].backward()
    rows = (images.grad.abs().sum((0, 1)) > 0).any(1).nonzero().flatten()
    assert (rows.max() - rows.min() + 1).item() == 2 * 4 + 3


def test_a_score_does_not_depend_on_the_rest_of_the_batch():
    critic = PatchCritic(8, 3)
    critic.train()
    images = torch.rand(3, 3, 12, 12)
    critic(images)
    critic.eval()
    assert torch.allclose(critic(images)[:1], critic(images[:1]), atol=1e-6)


def test_spectral_norm_bounds_hidden_layers():
    critic = PatchCritic(8, 3)
    for _ in range(50):
        critic(torch.rand(1, 3, 8, 8))
    for layer in critic.body[:-1]:
        if isinstance(layer, nn.Conv2d):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2) < 1.05
