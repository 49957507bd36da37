import torch

from modules.fsgan import FSGAN
from tests.modules.style_source import TINY, build, fit, moved, networks, source_model  # noqa: F401

PARAMETERS = {"fsgan": 411_304, "fsgan_256": 88_958_022}


def test_number_of_trained_parameters():
    with torch.device("meta"):
        module = FSGAN(image_size=[256, 256], iterations=1)
    numbers = [sum(parameter.numel() for parameter in parameters) for parameters in (module.trained_g(), module.trained_d())]
    assert numbers == [5_376 + 4_096, 6_273] and sum(numbers) == 15_745


def ready() -> FSGAN:
    module = build(FSGAN)
    module.load_state_dict(module.convert(networks(source_model())))
    module.enter_stage(0)
    return module


def test_multipliers_of_1_give_the_source_s_weights_and_images():
    module, source = ready(), source_model()
    for name, layer in (("convs.2", module.generator.convs[2].conv), ("mapping_layers.1", module.generator.mapping_layers[1])):
        original = layer.parametrizations.weight.original
        with torch.autocast("cpu", torch.bfloat16):  # which must not round the product
            weight = layer.weight
        for composed in (weight, layer.weight):
            assert float((composed - original).abs().max()) <= 1e-5 * float(original.abs().max()), name
    z, images = torch.randn(2, 8), torch.randn(2, 3, 16, 16)
    assert torch.allclose(module.generator(z, None).images, source.generator_ema(z, None).images, atol=1e-3)
    assert torch.allclose(module.discriminator(images).logits, source.discriminator(images).logits, atol=1e-3)


def test_a_multiplier_scales_one_singular_value():
    module = ready()
    layer = module.generator.convs[2].conv
    before = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    with torch.no_grad():
        layer.parametrizations.weight[0].multipliers[0] *= 3
    after = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    expected = torch.cat([3 * before[:1], before[1:]]).sort(descending=True)[0]
    assert torch.allclose(after, expected, rtol=1e-4)


def test_only_multipliers_move():
    start, module = ready(), fit(build(FSGAN))
    assert not moved(dict(start.named_parameters()), dict(module.named_parameters())) - {
        name for name, _ in module.named_parameters() if name.endswith("multipliers")
    }
    trained = {name for name, _ in module.named_parameters() if name.endswith("multipliers") and "_ema" not in name}
    assert trained <= moved(dict(start.named_parameters()), dict(module.named_parameters()))
    buffers = {name: b for name, b in start.named_buffers() if name.endswith((".left", ".right"))}
    assert not moved(buffers, dict(module.named_buffers()))


def test_the_average_is_one_of_the_generator_s_course():
    """With the singular vectors of the source's average in the source's own generator, it would be neither's."""
    start = build(FSGAN, source_from="raw")
    start.load_state_dict(start.convert(networks(source_model())))
    module = fit(build(FSGAN, source_from="raw", ema_decay=0.5))
    names = [name for name, _ in module.generator.named_parameters()]
    state = module.state_dict()
    for name in names:
        first, last, mean = start.state_dict()[f"generator.{name}"], state[f"generator.{name}"], state[f"generator_ema.{name}"]
        if name.endswith("multipliers"):
            assert not torch.equal(mean, last) and float((mean - last).abs().max()) < 0.1
        else:
            assert torch.equal(first, last) and torch.allclose(mean, first, atol=1e-6), name
    vectors = [name for name, _ in module.generator.named_buffers() if name.endswith((".left", ".right"))]
    assert vectors and all(torch.equal(state[f"generator.{name}"], state[f"generator_ema.{name}"]) for name in vectors)
