import pytest
import torch
from torch import nn

from modules.losses.adversarial import nonsaturating_d, nonsaturating_g, wasserstein_d, wasserstein_g
from modules.losses.penalties import gradient_penalty, path_lengths, r1_penalty
from modules.losses.structure import continuity_loss, ssim_loss
from modules.ops.images import luma


def test_wasserstein_signs():
    real, fake = torch.tensor([3.0, 5.0]), torch.tensor([1.0])
    assert wasserstein_d(real, fake) == -3 and wasserstein_g(fake) == -1


def linear_critic(weight):
    layer = nn.Conv2d(3, 1, 1, bias=False)
    layer.weight.data = torch.tensor(weight).view(1, 3, 1, 1)
    return layer


@pytest.mark.parametrize(("weight", "expected"), [([1.0, 0.0, 0.0], 0.0), ([0.0, 3.0, 4.0], 16.0)])
def test_pixel_penalty_of_a_linear_critic(weight, expected):
    """The gradient at every pixel is the weight, so the penalty is (|w| - 1)^2 exactly."""
    penalty = gradient_penalty(linear_critic(weight), torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5))
    assert penalty.item() == pytest.approx(expected, abs=1e-5)


def test_penalty_reaches_the_weights_as_finite_differences_say():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 1, 3)).double()
    reals, fakes = torch.randn(2, 2, 3, 8, 8)

    def value():
        torch.manual_seed(1)
        return gradient_penalty(lambda x: critic(x.double()), reals, fakes)

    value().backward()
    weight = critic[0].weight
    expected, step = weight.grad[1, 2, 0, 1].item(), 1e-4
    with torch.no_grad():
        weight[1, 2, 0, 1] += step
    up = value().item()
    with torch.no_grad():
        weight[1, 2, 0, 1] -= 2 * step
    # float32 inside the penalty limits the difference quotient
    assert (up - value().item()) / (2 * step) == pytest.approx(expected, rel=2e-2, abs=1e-4)


def test_ssim_equals_the_formula_window_by_window():
    torch.manual_seed(0)
    images, references = (torch.rand(2, 1, 3, 16, 18) * 2 - 1).double()
    x, y = luma(images)[0, 0], luma(references)[0, 0]
    offsets = torch.arange(-5, 6).double()
    weights = torch.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for i in range(16 - 10):
        for j in range(18 - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            cov = (weights * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = 0.02**2, 0.06**2
            ssim = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
            values.append(ssim / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    assert ssim_loss(images, references).item() == pytest.approx(1 - torch.stack(values).mean().item(), abs=1e-9)


def test_ssim_of_equal_images_is_zero_and_it_has_a_gradient():
    images = torch.rand(1, 3, 24, 24) * 2 - 1
    assert ssim_loss(images, images).abs() < 1e-6
    other = torch.zeros(1, 3, 24, 24, requires_grad=True)
    loss = ssim_loss(other, images)
    loss.backward()
    assert loss > 0 and other.grad.abs().sum() > 0


def test_ssim_window_shrinks_to_small_images():
    assert ssim_loss(torch.rand(1, 3, 6, 9), torch.rand(1, 3, 6, 9)).isfinite()


def test_ssim_ignores_color_of_equal_luma():
    gray = torch.rand(1, 1, 16, 16).expand(-1, 3, -1, -1) - 0.5
    tint = torch.tensor([0.114, 0.0, -0.299]).view(1, 3, 1, 1)  # adds nothing to the luma
    assert ssim_loss(gray + tint, gray).abs() < 1e-5


def test_continuity_by_hand():
    # columns differ by 1 and 2 (mean 1.5), rows by 3 and 4 (mean 3.5)
    assert continuity_loss(torch.tensor([[[[0.0, 1.0], [3.0, 5.0]]]])) == pytest.approx(1.5 + 3.5)
    assert continuity_loss(torch.ones(1, 2, 4, 5)) == 0 and continuity_loss(torch.ones(1, 2, 1, 1)) == 0


def test_nonsaturating_losses_are_cross_entropies():
    real, fake = torch.randn(6), torch.randn(4)
    entropy = nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones, torch.zeros
    assert torch.allclose(nonsaturating_d(real, fake), entropy(real, ones(6)) + entropy(fake, zeros(4)))
    assert torch.allclose(nonsaturating_g(fake), entropy(fake, ones(4)))


def test_r1_of_a_linear_critic_is_the_squared_norm_of_its_weights():
    weight = torch.randn(3, 4, 5)
    penalty = r1_penalty(lambda images: (images * weight).sum((1, 2, 3))[:, None], torch.randn(2, 3, 4, 5))
    assert penalty.item() == pytest.approx(weight.square().sum().item(), rel=1e-5)


def test_r1_of_a_map_of_logits_is_that_of_its_mean():
    weight = torch.randn(1, 3, 1, 1)
    penalty = r1_penalty(lambda images: nn.functional.conv2d(images, weight), torch.randn(2, 3, 4, 5))
    assert penalty.item() == pytest.approx(weight.square().sum().item() / 20, rel=1e-5)


def lengths(synthesize, latents):
    torch.manual_seed(3)
    return path_lengths(synthesize, latents).detach()


def test_path_lengths_of_a_linear_generator():
    """Image A w of the sum of two layers' latents: J^T y is A^T y in each layer, so that their mean is that of one."""
    matrix, latents = torch.randn(3 * 8 * 4, 5), torch.randn(2, 2, 5)
    found = lengths(lambda w: (w.sum(1) @ matrix.T).view(-1, 3, 8, 4), latents)
    torch.manual_seed(3)
    noise = torch.randn(2, 3, 8, 4).flatten(1) / 32**0.5
    assert torch.allclose(found, (noise @ matrix).norm(dim=1), rtol=1e-5)
    assert torch.allclose(lengths(lambda w: 7 * (w.sum(1) @ matrix.T).view(-1, 3, 8, 4), latents), 7 * found, rtol=1e-5)


def test_path_length_is_0_where_latents_do_not_matter():
    image = torch.randn(2, 3, 4, 4, requires_grad=True)
    assert torch.equal(lengths(lambda w: image + 0 * w.sum(), torch.randn(2, 2, 5)), torch.zeros(2))


def test_gradient_of_path_lengths_is_that_of_finite_differences():
    parameter, latents = torch.tensor(0.7, requires_grad=True), torch.randn(2, 2, 3)

    def value(p):
        torch.manual_seed(1)
        return path_lengths(lambda w: (p * w.sum((1, 2))).tanh().view(-1, 1, 1, 1).expand(-1, 3, 4, 4), latents).mean()

    value(parameter).backward()
    expected = (value(parameter.detach() + 1e-2) - value(parameter.detach() - 1e-2)) / 2e-2
    assert parameter.grad.item() == pytest.approx(expected.item(), rel=1e-2)
