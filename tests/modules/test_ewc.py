import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

from modules.ewc import EWC
from modules.tgan import TGAN
from tests.modules.style_source import TINY, build, differing, fit, networks, source_model  # noqa: F401

GPU = ["module.fisher_samples=3"]
PARAMETERS = {"ewc": 410_207, "ewc_256": 88_932_805}


def ready(**changes) -> EWC:
    module = build(EWC, fisher_samples=3, **changes)
    module.load_state_dict(module.convert(networks(source_model())))
    module.enter_stage(0)
    return module


def test_penalty_and_its_gradient_are_0_at_the_source_and_quadratic_around_it():
    module = ready(weight_ewc=7.0)
    penalty = module.generator_terms()["ewc"]
    gradients = torch.autograd.grad(penalty, list(module.generator.parameters()))
    assert penalty == 0 and not any(gradient.any() for gradient in gradients)
    names = [name for name, _ in module.generator.named_parameters()]
    index = names.index("convs.1.conv.weight")
    fisher = module.get_buffer(f"fisher_{index}")
    position = tuple(torch.nonzero(fisher == fisher.max())[0].tolist())
    with torch.no_grad():
        module.generator.convs[1].conv.weight[position] += 0.5
    assert module.generator_terms()["ewc"].item() == pytest.approx(7 * fisher.max().item() * 0.25, rel=1e-4)


def test_fisher_information_equals_that_of_vmap():
    module = ready()
    found = module.fisher_information(5)
    net, parameters = module.generator, dict(module.generator.named_parameters())
    generator = torch.Generator().manual_seed(0)
    latents = torch.cat([torch.randn(1, 8, generator=generator) for _ in range(5)])

    def log_probability(values, z):
        images = functional_call(net, values, (z[None], None)).images
        return F.logsigmoid(module.discriminator(images).logits).sum()

    each = vmap(grad(log_probability), (None, 0))({k: v.detach() for k, v in parameters.items()}, latents)
    for name, square in zip(parameters, found, strict=True):
        assert (square >= 0).all() and square.isfinite().all()
        assert torch.allclose(square, each[name].square().mean(0), rtol=1e-3, atol=1e-7), name
    assert sum(float(square.sum()) for square in found) > 0


def test_weight_0_is_tgan_bit_for_bit():
    assert not differing(fit(build(EWC, weight_ewc=0.0, fisher_samples=2)), fit(build(TGAN)))


def test_larger_weights_stay_nearer_to_the_source():
    source, distances = source_model(), []
    for weight in (0.0, 1.0, 1e6):
        module = fit(build(EWC, weight_ewc=weight, fisher_samples=4, fisher_scale="mean1"))
        net, anchor = module.generator.state_dict(), source.generator_ema.state_dict()
        distances.append(sum(float((net[k] - anchor[k]).square().sum()) for k in net if "w_mean" not in k))
    assert distances[2] < distances[1] < distances[0]


def test_mean_1_divides_by_the_mean():
    module = ready(fisher_scale="mean1")
    fishers = [module.get_buffer(f"fisher_{i}") for i in range(len(list(module.generator.parameters())))]
    assert torch.cat([fisher.flatten() for fisher in fishers]).mean().item() == pytest.approx(1, rel=1e-4)
