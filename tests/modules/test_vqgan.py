"""VQGAN: networks, quantizer, losses, files, against independent computations."""

import math
import sys
import types
from collections import OrderedDict
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import Subset

import evaluate
from core.errors import UserError
from datamodules.image_datamodule import ImageDataModule
from datamodules.synthetic import SyntheticDataModule
from modules.losses.perceptual import PerceptualLoss
from modules.networks.patch_discriminator import PatchDiscriminator
from modules.networks.quantizer import VectorQuantizer
from modules.networks.vqgan_autoencoder import AttnBlock, Downsample
from modules.ops.codes import code_usage
from modules.tokenizer import load_vqgan
from modules.vqgan import VQGAN

STARTER = Path(__file__).parents[2] / "datamodules/starter"
SIZES = {
    "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "z_channels": 8, "embed_dim": 8, "num_codes": 16,
    "disc_layers": 1, "disc_channels": 8,
}  # fmt: skip
SMALL = {"image_size": [64, 64], "ch": 64, "num_res_blocks": 1, "num_codes": 512, "embed_dim": 64}
NANO = {
    "image_size": [32, 32], "ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "z_channels": 32,
    "num_codes": 64, "embed_dim": 16,
}  # fmt: skip
JOINED_BATCH = "compared in this file: its code statistics are of 32 bits, the comparison for all needs 64"
TINY = [
    "datamodule.num_images=5",
    "datamodule.image_size=[16,16]",
    "datamodule.batch_size=2",
    "datamodule.samples_per_epoch=4",
    "module.epochs=2",
    "module.bypass=1",
    "module.revive_every=2",
    "module.perceptual_start=2",
    "module.disc_start=2",
    *(f"module.{key}={value}".replace(" ", "") for key, value in SIZES.items()),
]
AUTOENCODER, DISCRIMINATOR = 72_141_699, 2_765_633  # of the released model for faces at 256 pixels
PARAMETERS = {"vqgan": 902_189, "vqgan_256": AUTOENCODER + DISCRIMINATOR}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build(**changes) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(**({"image_size": [16, 16], "epochs": 1, **SIZES} | changes))


def fit(module, batch_size=2, iterations=4, callbacks=(), **trainer):
    lightning.seed_everything(0, verbose=False)
    settings = {"accelerator": "cpu", "max_epochs": -1, "logger": False, "enable_checkpointing": False,
                "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    size, samples = list(module.image_size), batch_size * iterations
    data = SyntheticDataModule(size, num_images=4, batch_size=batch_size, samples_per_epoch=samples)
    lightning.Trainer(**(settings | trainer), callbacks=list(callbacks)).fit(module, data)
    return module


# --- networks ---------------------------------------------------------------------------------------------------------


def test_the_released_architecture_has_the_published_numbers_of_parameters():
    with torch.device("meta"):
        module = VQGAN([256, 256])
    assert count(module.encoder) == 29_298_176 and count(module.decoder) == 42_449_795
    assert count(module) - count(module.discriminator) == AUTOENCODER and count(module.discriminator) == DISCRIMINATOR
    assert len(module.encoder.state_dict()) == 144 and len(module.decoder.state_dict()) == 194
    assert len(module.autoencoder_state()) == 343 and module.downsampling == 16 and module.grid == (16, 16)


@pytest.mark.parametrize(
    ("settings", "millions"),
    [
        ({"num_codes": 16384}, 76.07),
        ({"num_codes": 16384, "z_channels": 8, "embed_dim": 8}, 69.59),  # latent-diffusion, f = 16
        ({"num_codes": 256, "z_channels": 4, "embed_dim": 4, "ch_mult": [1, 2, 2, 4], "attn_resolutions": [32]}, 67.65),
        ({"ch": 64, "z_channels": 128, "embed_dim": 64}, 18.04),
        ({**SMALL, "ch_mult": [1, 2, 2, 4], "attn_resolutions": [8], "z_channels": 128}, 13.34),
        ({**SMALL, "ch_mult": [1, 2, 4], "z_channels": 128}, 12.16),
        ({**SMALL, "image_size": [32, 32], "ch_mult": [1, 2, 2], "attn_resolutions": [8], "z_channels": 64,
          "num_codes": 256, "embed_dim": 32}, 4.13),
        (NANO, 0.815),
    ],
)  # fmt: skip
def test_variants_have_the_published_numbers_of_parameters(settings, millions):
    with torch.device("meta"):
        module = VQGAN(**({"image_size": [256, 256]} | settings))
    digits = 3 if millions < 1 else 2
    assert round((count(module) - count(module.discriminator)) / 1e6, digits) == millions


@pytest.mark.parametrize(("layers", "parameters", "side"), [(3, 2_765_633, 30), (2, 663_361, 62), (1, 136_513, 126)])
def test_discriminators_have_the_published_sizes(layers, parameters, side):
    network = PatchDiscriminator(layers)
    assert count(network) == parameters
    assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 1, side, side)


def test_downsampling_pads_right_and_bottom_only():
    layer, x = Downsample(4), torch.randn(1, 4, 6, 8)
    padded = torch.zeros(1, 4, 7, 9)
    padded[..., :6, :8] = x
    assert torch.equal(layer(x), F.conv2d(padded, layer.conv.weight, layer.conv.bias, stride=2))


def test_attention_is_softmax_over_all_positions():
    block, x = AttnBlock(32).double(), torch.randn(2, 32, 3, 4, dtype=torch.float64)
    h = block.norm(x)
    q, k, v = (layer(h).flatten(2) for layer in (block.q, block.k, block.v))
    weights = torch.softmax(torch.einsum("nci,ncj->nij", q, k) / math.sqrt(32), dim=2)
    expected = x + block.proj_out(torch.einsum("nij,ncj->nci", weights, v).view(x.shape))
    assert torch.allclose(block(x), expected, atol=1e-10)


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_images_of_other_sizes_keep_them(unshuffle):
    module = build(unshuffle=unshuffle).eval()
    f = 2 * unshuffle
    assert module.encode(torch.zeros(2, 3, 4 * f, 7 * f)).shape == (2, 4, 7) and module.downsampling == f
    assert module.decode(torch.zeros(2, 4, 7, dtype=torch.long)).shape == (2, 3, 4 * f, 7 * f)
    images = module.reconstruct(torch.rand(2, 3, 19, 22))
    assert images.shape == (2, 3, 19, 22) and images.abs().max() <= 1 and not images.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"), [({"image_size": [18, 15]}, "multiples of 2"), ({"ch": 48}, "multiples of 32")]
)
def test_impossible_sizes_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build(**settings)


# --- quantizer --------------------------------------------------------------------------------------------------------


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    network = VectorQuantizer(12, 3)
    nn.init.normal_(network.embedding.weight)
    return network


def test_codes_are_the_nearest_entries(quantizer):
    latents = torch.randn(2, 3, 4, 5)
    differences = latents.double()[:, None] - quantizer.embedding.weight.double()[None, :, :, None, None]
    assert torch.equal(quantizer.codes(latents), differences.square().sum(2).argmin(1))
    codes = torch.randint(12, (2, 4, 5))
    assert torch.equal(quantizer.codes(quantizer.lookup(codes)), codes)


def test_gradients_pass_straight_through(quantizer):
    latents = torch.randn(2, 3, 4, 5, requires_grad=True)
    quantized = quantizer(latents)[0]
    assert torch.allclose(quantized, quantizer.lookup(quantizer.codes(latents)), atol=1e-6)
    values = torch.randn(2, 3, 4, 5)
    (quantized * values).sum().backward()
    assert torch.equal(latents.grad, values) and quantizer.embedding.weight.grad is None


@pytest.mark.parametrize(("legacy", "ratio"), [(True, 4.0), (False, 0.25)])
def test_weights_of_the_two_terms(legacy, ratio):
    """One vector with a code of its own: the gradients of both are opposite, up to the weights 1 and beta."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(1, 3, beta=0.25, legacy=legacy)
    latents = torch.randn(1, 3, 1, 1, requires_grad=True)
    quantizer(latents)[2].backward()
    assert torch.allclose(latents.grad.flatten(), -ratio * quantizer.embedding.weight.grad[0], rtol=1e-5)


def test_the_average_code_book_against_numpy():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(6, 2, ema=True)
    nn.init.normal_(quantizer.embedding.weight)
    quantizer.sums.copy_(quantizer.embedding.weight)
    assert not list(quantizer.parameters())
    usage, sums = np.ones(6), quantizer.embedding.weight.double().numpy().copy()
    for _ in range(3):
        latents = torch.randn(2, 2, 3, 3)
        codes = quantizer(latents)[1]
        quantizer.update(latents, codes, lambda values: values)
        rows, flat = latents.permute(0, 2, 3, 1).reshape(-1, 2).double().numpy(), codes.flatten().numpy()
        usage = 0.99 * usage + 0.01 * np.array([(flat == k).sum() for k in range(6)])
        sums = 0.99 * sums + 0.01 * np.stack([rows[flat == k].sum(0) for k in range(6)])
        entries = sums / ((usage + 1e-5) / (usage.sum() + 6e-5) * usage.sum())[:, None]
        assert np.allclose(quantizer.embedding.weight.numpy(), entries, atol=1e-5)


def test_a_replaced_entry_survives_the_next_update():
    quantizer = VectorQuantizer(6, 2, ema=True)
    entry = torch.tensor([[5.0, -5.0]])
    quantizer.replace(torch.tensor([3]), entry, 10.0)
    latents = torch.zeros(1, 2, 2, 2)
    quantizer.update(latents, quantizer.codes(latents), lambda values: values)
    assert torch.allclose(quantizer.embedding.weight[3], entry[0], rtol=1e-3)


# --- training ---------------------------------------------------------------------------------------------------------


class Watch(lightning.Callback):
    """Calls `function(module)` after each iteration."""

    def __init__(self, function):
        self.function = function

    def on_train_batch_end(self, trainer, module, *_):
        self.function(module)


def test_the_discriminator_is_untouched_before_disc_start():
    module, states = build(disc_start=2), []
    fit(module, callbacks=[Watch(lambda m: states.append({k: v.clone() for k, v in m.discriminator.state_dict().items()}))])
    initial = build(disc_start=2).discriminator.state_dict()
    equal = [all(torch.equal(state[key], initial[key]) for key in initial) for state in states]
    assert equal == [True, True, False, False]
    first, second = ([p.clone() for p in fit(build(disc_start=start), iterations=2).encoder.parameters()] for start in (2, 9))
    assert all(map(torch.equal, first, second))


def test_the_adaptive_weight_gives_both_terms_the_same_gradient(monkeypatch):
    """Up to `disc_weight`, with which the loss takes it."""
    module, ratios = build(disc_start=0, perceptual="rand_cnn", disc_weight=0.7), []
    module.discriminator.main[-1].weight.data *= 1000  # so that the 1e-4 in the denominator is nothing
    plain = VQGAN._adaptive_weight

    def compare(self, nll, fooling):
        weight = plain(self, nll, fooling)
        norms = [torch.autograd.grad(t, self.decoder.conv_out.weight, retain_graph=True)[0].norm() for t in (nll, fooling)]
        ratios.append(float(weight * norms[1] / norms[0]))
        return weight

    monkeypatch.setattr(VQGAN, "_adaptive_weight", compare)
    fit(module, iterations=2)
    assert ratios == pytest.approx([1, 1], rel=1e-3)
    logged = {key.removeprefix("train/"): float(value) for key, value in module.trainer.callback_metrics.items()}
    terms = logged["reconstruction"] + logged["perceptual"] + logged["codebook"]
    assert logged["g_loss"] == pytest.approx(terms + 0.7 * logged["adaptive_weight"] * logged["adversarial"], rel=1e-5)


def test_warm_up_without_quantization_then_k_means():
    module, seen = build(bypass=2, ema=True), []
    initial = module.codebook.clone()
    assert not module.quantizes
    fit(module, callbacks=[Watch(lambda m: seen.append((m.quantizes, m.codebook.clone())))])
    assert [quantizes for quantizes, _ in seen] == [False, False, True, True]  # the callback runs before the iteration counts
    assert torch.equal(seen[0][1], initial) and not torch.equal(seen[1][1], initial)
    assert seen[1][1].std() > 1 / 16 and torch.allclose(seen[2][1], seen[1][1], atol=0.5)


@pytest.mark.parametrize("ema", [False, True])
def test_the_code_book_changes_in_training_alone(ema):
    module, images = fit(build(ema=ema)).eval(), torch.randn(4, 3, 16, 16)
    before = {name: value.clone() for name, value in module.quantize.state_dict().items()}
    module.encode(images), module.reconstruct(images)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.validate(module, SyntheticDataModule([16, 16], num_images=4, batch_size=2), verbose=False)
    assert all(torch.equal(value, before[name]) for name, value in module.quantize.state_dict().items())
    fit(module.train())
    assert not torch.equal(module.quantize.embedding.weight, before["embedding.weight"])


def test_dead_codes_come_back():
    """All entries but one far away from every vector."""
    module = build(revive_every=2, ema=True, lr=1e-6)
    with torch.no_grad():
        module.quantize.embedding.weight[1:] += 100
        module.quantize.sums.copy_(module.quantize.embedding.weight)
        module.quantize.usage[1:] = 1e-3
    images = torch.randn(4, 3, 16, 16)
    assert code_usage(module.eval().encode(images), 16)[0] == 1 / 16
    fit(module, iterations=2)
    assert code_usage(module.eval().encode(images), 16)[0] > 1 / 4


@pytest.mark.parametrize(
    ("settings", "iterations", "most"),
    [
        ({"z_channels": 32, "embed_dim": 16, "num_codes": 64, "bypass": 30, "lr": 2e-3}, 60, 0.16),
        pytest.param(NANO | {"bypass": 100, "lr": 1e-3}, 400, 0.08, marks=pytest.mark.slow),
    ],
)
def test_four_images_are_learned_by_heart(settings, iterations, most):
    module, losses = build(**settings, betas=[0.9, 0.99]), []
    watch = Watch(lambda m: losses.append(float(m.trainer.callback_metrics["train/reconstruction"])))
    fit(module, batch_size=4, iterations=iterations, callbacks=[watch])
    assert losses[-1] < most < losses[0]


def test_two_processes_train_as_one_with_the_joined_batch(tmp_path):
    """K-means, averages, revival, adaptive weight and discriminator included; up to rounding."""
    from tests.contract.runs import RankStates, read  # imports the tests of all methods

    settings = {"ema": True, "bypass": 1, "revive_every": 2, "perceptual": "rand_cnn", "perceptual_start": 2, "disc_start": 2,
                "disc_norm": "spectral", "lr": 1e-3}  # fmt: skip
    joined = fit(build(**settings), batch_size=4).state_dict()
    two = DDPStrategy(start_method="fork", process_group_backend="gloo")
    fit(build(**settings), batch_size=2, iterations=8, strategy=two, devices=2, callbacks=[RankStates(tmp_path)])
    first, second = (read(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in joined)
    # Not the weights themselves: a bias before the norm of single channels has no gradient but rounding, which Adam magnifies.
    images, codes = torch.rand(4, 3, 16, 16) * 2 - 1, torch.randint(16, (4, 8, 8))
    results = []
    for state in (build(**settings).state_dict(), joined, first):
        module = build(**settings).eval()
        module.load_state_dict(state)
        with torch.no_grad():
            latents = module.quant_conv(module.encoder(images))
            results.append((latents, module.decode(codes), module.codebook, module.discriminator(images)))
    for initial, one, two in zip(*results, strict=True):
        assert (one - two).abs().max() < 0.02 * (one - initial).abs().max()


# --- perceptual loss --------------------------------------------------------------------------------------------------


def test_the_perceptual_loss_is_the_distance_of_the_metrics_with_gradients():
    loss = PerceptualLoss("rand_cnn")
    first, second = (torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8) for _ in range(2))
    rows = [loss.distance(images) for images in (first, second)]
    images, references = (images.float() / 127.5 - 1 for images in (first, second))
    assert torch.allclose(loss(images, references), (rows[0] - rows[1]).square().sum(1), rtol=1e-4)
    images.requires_grad_()
    loss(images, references).sum().backward()
    assert images.grad.isfinite().all() and images.grad.abs().sum() > 0
    assert loss(references, references).abs().max() == 0
    black = torch.full((1, 3, 16, 16), -1.0, requires_grad=True)  # features of length 0
    loss(black, references[:1, :, :16, :16]).sum().backward()
    assert black.grad.isfinite().all()


def test_the_perceptual_loss_of_a_file_is_lpips_of_images_in_their_own_range(tmp_path):
    from tests.metrics.test_perceptual_distance import lpips_pair

    path, package = lpips_pair("alex", tmp_path)
    images, references = torch.rand(2, 3, 3, 64, 64) * 2 - 1
    values = PerceptualLoss(str(path))(images, references)
    with torch.no_grad():
        assert values.tolist() == pytest.approx(package(images, references).flatten().tolist(), rel=1e-4)


@pytest.mark.parametrize(("perceptual", "name"), [(None, "none"), ("rand_cnn", "pd_rand_cnn")])
def test_a_run_names_its_perceptual_term(perceptual, name, caplog):
    with caplog.at_level("INFO"):
        fit(build(perceptual=perceptual), iterations=1)
    assert any(message.startswith(f"VQGAN: perceptual term {name}") for message in caplog.messages)


def test_an_unknown_perceptual_network_is_refused():
    with pytest.raises((UserError, FileNotFoundError), match="vgg_17"):
        PerceptualLoss("vgg_17")


# --- files ------------------------------------------------------------------------------------------------------------


def public(module: VQGAN, prefix: str = "", **more) -> dict:
    """The state dict of a public file with the autoencoder of `module`."""
    state = OrderedDict((prefix + key, value) for key, value in module.autoencoder_state().items())
    state[f"{prefix}loss.discriminator.main.0.weight"] = torch.zeros(4, 3, 4, 4)
    state[f"{prefix}loss.perceptual_loss.lin0.model.1.weight"] = torch.zeros(1, 4, 1, 1)
    return state | more


@pytest.fixture
def old_lightning(monkeypatch):
    """A stand-in of the classes that old checkpoints mention; it is gone when the file is read."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = kind
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name) if name != module.__name__ else module)
    return kind


def save(state: dict, path, kind) -> str:
    instance = kind()
    instance.best = np.float64(0.5)
    checkpoint = {
        "epoch": 3, "global_step": 7, "pytorch-lightning_version": "1.0.8", "state_dict": state, "lr_schedulers": [],
        "callbacks": {kind: {"best_model_score": torch.tensor(1.0), "object": instance}}, "optimizer_states": [],
    }  # fmt: skip
    torch.save(checkpoint, path)
    return str(path)


PUBLIC = {"num_res_blocks": 1, "image_size": [256, 256], "attn_resolutions": [128]}


@pytest.mark.parametrize("layout", ["first stage", "transformer", "averages", "half"])
def test_public_files_load_completely(layout, tmp_path, old_lightning):
    module = build(**PUBLIC).eval()
    prefix = "first_stage_model." if layout == "transformer" else ""
    state = public(module, prefix)
    if layout == "transformer":
        state["transformer.tok_emb.weight"] = torch.zeros(16, 8)
    if layout == "averages":
        averages = {f"model_ema.{key.replace('.', '')}": value for key, value in module.autoencoder_state().items()}
        state = {key: torch.full_like(value, 9.0) for key, value in state.items()} | averages
        state["model_ema.num_updates"] = torch.tensor(5)
    if layout == "half":
        module.half().float()
        state = {key: value.half() for key, value in public(module).items()}
    loaded = load_vqgan(save(state, tmp_path / "public.ckpt", old_lightning))
    assert loaded.identity() == module.identity() and loaded.quantizes and loaded.image_size == (256, 256)
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded.encode(images), module.encode(images))
    assert not any(p.requires_grad for p in loaded.parameters()) and not hasattr(loaded, "discriminator")


def test_missing_and_left_over_tensors_are_listed(tmp_path, old_lightning):
    state = public(build(**PUBLIC), **{"depth_model.weight": torch.zeros(1)})
    del state["decoder.mid.attn_1.q.bias"]
    path = save(state, tmp_path / "public.ckpt", old_lightning)
    with pytest.raises(UserError, match=r"missing: decoder\.mid\.attn_1\.q\.bias; unexpected: depth_model\.weight"):
        load_vqgan(path)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_file_never_runs_code(tmp_path):
    torch.save({"state_dict": public(build(**PUBLIC)), "callbacks": Evil(str(tmp_path / "written"))}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"would run code \((_?io|builtins)\.open\)"):
        load_vqgan(str(tmp_path / "evil.ckpt"))
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "file.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="not a checkpoint"):
        load_vqgan(str(tmp_path / "file.ckpt"))


def test_evaluate_says_what_a_public_file_is(tmp_path, old_lightning, capsys):
    path = save(public(build(**PUBLIC)), tmp_path / "public.ckpt", old_lightning)
    assert evaluate.main([path]) != 0
    message = " ".join(capsys.readouterr().err.split())
    assert "an autoencoder of VQGAN" in message and "downsampling 2, 16 codes of 8 numbers" in message
    assert "datamodule.root=" in message


def test_fine_tuning_begins_with_the_source(tmp_path, old_lightning):
    source = build(**PUBLIC)
    path = save(public(source), tmp_path / "public.ckpt", old_lightning)
    module, seen = build(source_checkpoint=path, attn_resolutions=[8], lr=1e-12), []
    fit(module, iterations=1, callbacks=[Watch(lambda m: seen.append(m.encoder.conv_in.weight.clone()))])
    assert torch.allclose(seen[0], source.encoder.conv_in.weight, atol=1e-6) and module.source_sha256
    with pytest.raises(UserError, match=r"module\.num_codes is 32, the source's 16"):
        fit(build(source_checkpoint=path, attn_resolutions=[8], num_codes=32))
    with pytest.raises(UserError, match=r"module\.attn_resolutions is \[\], the source's \[8\]"):
        fit(build(source_checkpoint=path))


def test_an_export_is_the_same_autoencoder(tmp_path):
    module = build(ema=True, bypass=3).eval()
    module.iteration = 4
    torch.save(module.export(), tmp_path / "export.pt")
    loaded = load_vqgan(str(tmp_path / "export.pt"))
    whole = VQGAN.from_checkpoint(torch.load(tmp_path / "export.pt", weights_only=True))
    assert loaded.identity() == whole.identity() == module.identity() and whole.quantizes and loaded.quantizes
    assert build(ema=True, num_codes=17).identity() != module.identity()


def test_the_shipped_autoencoder_reaches_its_figures():
    """On the 200 held-out faces: 22.5 dB, at most 0.5 below 200 training faces, 90 % of the codes, perplexity 0.6 K."""
    path = Path(__file__).parents[2] / "weights/vqgan_faces64.pt"
    module = load_vqgan(str(path))
    assert path.stat().st_size <= 4 * 2**20 and module.quantize.num_codes == 256 and module.codebook.shape == (256, 32)
    data = ImageDataModule(str(STARTER / "faces64.zip"), [64, 64], heldout_root=str(STARTER / "faces64_heldout.zip"))
    data.setup()
    sets = data.sets()
    numbers = module.diagnostics({**sets, "image": Subset(sets["image"], range(0, 2000, 10))})
    assert len(sets["image_heldout"]) == 200 and numbers["psnr_heldout"] >= 22.5 and abs(numbers["psnr_gap"]) <= 0.5
    assert numbers["codes_used"] >= 0.9 and numbers["code_perplexity"] >= 0.6 * 256
