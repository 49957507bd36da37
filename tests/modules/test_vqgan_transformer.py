"""The transformer over codes: causality, cache, window, likelihood, holes."""

import functools
import math
import tempfile
from pathlib import Path

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy

import train
from core.errors import UserError
from datamodules.synthetic import SyntheticDataModule
from modules.base import sampling_mode
from modules.networks.code_transformer import CodeTransformer
from modules.networks.pixelcnn import draw
from modules.vqgan import VQGAN
from modules.vqgan_transformer import VQGANTransformer, unigram_nats
from tests.modules.test_vqgan import SIZES

MODEL = {"num_codes": 16, "downsampling": 2, "layers": 2, "width": 16, "heads": 2}


@functools.cache
def tokenizer_file() -> str:
    """Path of a random autoencoder for 16 × 16 pixels, the same in every process; its decoder shows its codes."""
    path = Path(tempfile.mkdtemp(prefix="tokenizer")) / "vqgan.pt"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = VQGAN([16, 16], **SIZES)
        torch.nn.init.normal_(module.quantize.embedding.weight, std=0.3)
    torch.save(module.export(), path)
    return str(path)


JOINED_BATCH = "compared in this file: its codes are of 32 bits, the comparison for all needs 64"
TINY = [
    "datamodule.num_images=5",
    "datamodule.image_size=[16,16]",
    "datamodule.batch_size=2",
    "datamodule.samples_per_epoch=4",
    "module.epochs=2",
    "module.top_k=8",
    f"module.tokenizer_checkpoint={tokenizer_file()}",
    *(f"module.{key}={value}" for key, value in MODEL.items()),
]
# Codes, tokens above, head, positions, blocks, last norm: 2 V C + K C + P C + n (12 C² + 13 C) + 2 C.
PARAMETERS = {"vqgan_transformer": 2 * 257 * 128 + 256 * 128 + 256 * 128 + 4 * (12 * 128**2 + 13 * 128) + 2 * 128}


def network(grid=(4, 5), **changes) -> CodeTransformer:
    """With large weights, so that every code matters."""
    torch.manual_seed(0)
    net = CodeTransformer(**({"num_codes": 7, "grid": grid, "layers": 2, "width": 16, "heads": 2, "above": True} | changes))
    for parameter in net.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return net.eval()


def build(**changes) -> VQGANTransformer:
    torch.manual_seed(0)
    settings = {"image_size": [16, 16], "tokenizer_checkpoint": tokenizer_file(), "epochs": 1, **MODEL}
    return VQGANTransformer(**(settings | changes))


def fit(module, trainer=None, **data):
    lightning.seed_everything(0, verbose=False)
    settings = {"accelerator": "cpu", "max_epochs": -1, "logger": False, "enable_checkpointing": False,
                "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    lightning.Trainer(**(settings | (trainer or {}))).fit(
        module, SyntheticDataModule([16, 16], **({"batch_size": 2, "samples_per_epoch": 8, "num_images": 4} | data))
    )
    return module.eval()


# --- network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocabulary", "positions", "layers", "width", "heads", "millions"),
    [
        (1024, 512, 24, 1664, 16, 802.2),
        (1024, 512, 24, 1024, 16, 304.9),
        (1024, 257, 12, 768, 12, 86.8),
        (1024, 257, 8, 512, 8, 26.4),
    ],
)
def test_published_sizes(vocabulary, positions, layers, width, heads, millions):
    with torch.device("meta"):
        net = CodeTransformer(vocabulary, (16, 16), 0, layers, width, heads, positions=positions)
    count = sum(parameter.numel() for parameter in net.parameters())
    formula = 2 * vocabulary * width + positions * width + layers * (12 * width**2 + 13 * width) + 2 * width
    assert count == formula and count / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_first_loss_is_that_of_a_uniform_distribution():
    torch.manual_seed(0)
    net = CodeTransformer(255, (6, 6), 1, 2, 256, 4)
    codes = torch.randint(255, (8, 6, 6))
    assert float(-net.log_prob(codes).mean()) == pytest.approx(math.log(256) + 2e-4 * 256, abs=0.05)


@pytest.mark.parametrize("above", [True, False])
def test_a_logit_depends_on_all_codes_before_it_and_on_no_other(above):
    net = network(above=above)
    codes = torch.randint(7, (1, 4, 5))
    logits = net(codes).flatten(2)
    for t in range(20):
        changed = codes.clone()
        changed.view(-1)[t] = (changed.view(-1)[t] + 1) % 7
        differs = (net(changed).flatten(2) != logits).any(1)[0]
        assert not differs[: t + 1].any() and differs[t + 1 :].all()


def test_likelihoods_add_up_to_one():
    net = network((2, 2), num_codes=3, num_tokens=0)
    maps = torch.cartesian_prod(*[torch.arange(3)] * 4).view(81, 2, 2)
    assert float(net.log_prob(maps).sum((1, 2)).exp().sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("above", [True, False])
def test_cached_logits_equal_those_of_a_whole_pass(above):
    net, codes = network(above=above), torch.randint(7, (3, 4, 5))
    labels = torch.zeros(3, dtype=torch.long)
    whole, logits_of = net(codes, labels).flatten(2), net._cached_logits(3)
    for t in range(20):
        logits = logits_of(codes, net.first_tokens(3, labels, codes.device), *divmod(t, 5))
        assert torch.allclose(logits, whole[:, :, t], atol=1e-4)


def test_several_positions_enter_an_empty_cache_only():
    net, codes = network(), torch.randint(7, (1, 4, 5))
    cache = net.empty_cache(1)
    net.steps(codes.flatten(1)[:, :3], codes.flatten(1), 0, cache)
    with pytest.raises(ValueError, match="empty cache"):
        net.steps(codes.flatten(1)[:, 3:5], codes.flatten(1), 3, cache)


def test_the_window_draws_what_the_cache_draws():
    net = network()
    for settings in ({}, {"top_k": 3, "temperature": 0.8}, {"top_p": 0.7}):
        torch.manual_seed(5)
        cached = net.sample(4, **settings)
        torch.manual_seed(5)
        assert torch.equal(net.sample(4, sliding=True, **settings), cached)
    assert net.sample(2, (6, 9)).shape == (2, 6, 9)
    with pytest.raises(UserError, match="smaller than that of training"):
        net.sample(1, (3, 9))


def test_a_window_is_the_crop_around_the_cell():
    """Cell (6, 4) of an 8 × 9 map: rows 4 to 7 and columns 2 to 6, the cell at (2, 2)."""
    net, codes = network(), torch.randint(7, (1, 8, 9))
    crop = codes[:, 4:8, 2:7]
    expected = net(crop)[..., 2, 2]
    assert torch.allclose(net._window_logits(codes, net.first_tokens(1, None, codes.device), 6, 4), expected, atol=1e-5)


def test_a_class_is_a_token():
    net = network(num_tokens=3)
    codes = torch.randint(7, (2, 4, 5))
    first, second = (net(codes, torch.tensor([label, label])) for label in (0, 2))
    assert not torch.allclose(first, second) and torch.equal(net(codes), first)
    assert net.sample(50, labels=torch.arange(50) % 3).max() < 7  # never a token


def test_decay_groups_are_all_parameters_and_linear_weights_decay():
    net = network()
    decayed, rest = (group["params"] for group in net.parameter_groups(0.1))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert len(decayed) + len(rest) == len(names) == len({*map(id, decayed), *map(id, rest)})
    assert {names[id(p)].rsplit(".", 2)[-2] for p in decayed} == {"key", "query", "value", "proj", "0", "2", "head"}
    assert all(p.dim() == 2 for p in decayed) and {"pos_emb", "tok_emb.weight"} <= {names[id(p)] for p in rest}


# --- draws ------------------------------------------------------------------------------------------------------------


def test_filters_of_draws():
    torch.manual_seed(0)
    logits, uniform = torch.randn(4000, 6)[:1].expand(4000, 6), torch.rand(4000)
    order, shares = logits[0].argsort(descending=True), logits[0].softmax(0)
    assert (draw(logits, uniform, 1.0, 1) == order[0]).all()
    assert torch.equal(draw(logits, uniform, 1.0, 6), draw(logits, uniform, 1.0, None))
    assert set(draw(logits, uniform, 1.0, 3).tolist()) == set(order[:3].tolist())
    least = next(n for n in range(1, 7) if shares[order[:n]].sum() >= 0.6)
    assert set(draw(logits, uniform, 1.0, None, 0.6).tolist()) == set(order[:least].tolist())
    assert len(set(draw(torch.zeros(4000, 6), uniform, 1.0, 2).tolist())) == 2  # exactly k, also with ties
    counts = torch.bincount(draw(logits, uniform, 1.0, None), minlength=6) / 4000
    assert (counts - shares).abs().max() < 0.03


# --- module -----------------------------------------------------------------------------------------------------------


def test_it_learns_the_codes_of_eight_images_by_heart():
    module = fit(build(width=64, lr=3e-3, warmup=5, heads=4), samples_per_epoch=8 * 150, batch_size=8, num_images=8)
    assert float(module.trainer.callback_metrics["train/g_loss"]) < 0.05
    codes = module.tokenizer.encode(_data(8).sets()["image"].stack())
    with sampling_mode(module, 0, range(8)):
        drawn = module.sample_codes(8, module.grid, top_k=1)
    assert (drawn[:, None] == codes[None]).float().mean((2, 3)).max(1).values.min() > 0.95


def test_codes_are_replaced_in_the_inputs_alone(monkeypatch):
    """`keep`: half of them by random ones of 16, targets never."""
    module, pairs, plain = build(keep=0.5), [], CodeTransformer.forward
    monkeypatch.setattr(CodeTransformer, "forward", lambda *a: pairs.append((a[1], a[3])) or plain(*a))
    fit(module)
    targets, inputs = map(torch.cat, zip(*pairs[:4], strict=True))
    known = module.tokenizer.encode(_data().sets()["image"].stack())
    assert all((row == known).flatten(1).all(1).any() for row in targets)
    assert (inputs == targets).double().mean() == pytest.approx(0.5 + 0.5 / 16, abs=0.06)


def _data(num_images=4):
    data = SyntheticDataModule([16, 16], num_images=num_images)
    data.setup()
    return data


def test_two_processes_train_as_one_with_the_joined_batch(tmp_path):
    from tests.contract.runs import RankStates, read  # imports the tests of all methods

    joined = fit(build(), batch_size=4, samples_per_epoch=16).state_dict()
    two = DDPStrategy(start_method="fork", process_group_backend="gloo")
    fit(build(), {"strategy": two, "devices": 2, "callbacks": [RankStates(tmp_path)]}, samples_per_epoch=16)
    first, second = (read(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in joined)
    assert max((first[key] - joined[key]).abs().max() for key in joined) < 1e-5


def test_the_tokenizer_is_frozen_and_part_of_the_file(tmp_path):
    module = fit(build())
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    checkpoint |= {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "epoch": 0}
    rebuilt = VQGANTransformer.from_checkpoint(checkpoint)
    expected = torch.load(tokenizer_file(), weights_only=True)["state_dict"]
    for model in (module, rebuilt):
        assert all(torch.equal(model.tokenizer.state_dict()[key], value) for key, value in expected.items())
        assert not any(parameter.requires_grad for parameter in model.tokenizer.parameters())
    assert rebuilt.tokenizer.identity() == module.tokenizer.identity()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("datamodule.image_size=[32,32]", "module.image_size is [32, 32]; expected [16, 16], the autoencoder's"),
        ("module.num_codes=32", "module.num_codes is 32; expected 16, the autoencoder's"),
        ("module.downsampling=4", "module.downsampling is 4; expected 2, the autoencoder's"),
        ("module.tokenizer_checkpoint=nowhere.pt", "module.tokenizer_checkpoint=nowhere.pt: no such file"),
    ],
)
def test_another_tokenizer_is_refused_and_nothing_is_written(key, message, tmp_path, capsys):
    synthetic = "datamodule.class_path=datamodules.synthetic.SyntheticDataModule"
    arguments = ["configs/vqgan_transformer.yaml", synthetic, *TINY, key]
    assert train.main([*arguments, "logger.wandb=null", "trainer.accelerator=cpu", f"run_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error and not (tmp_path / "run").exists()


def test_the_transformer_of_a_public_file(tmp_path):
    source = build(start_token=False, positions=80)
    state = {f"transformer.{key}": torch.randn(value.shape) for key, value in source.transformer.state_dict().items()}
    state["transformer.blocks.0.attn.mask"] = torch.ones(1, 1, 80, 80)
    torch.save({"state_dict": {**state, "first_stage_model.quant_conv.bias": torch.zeros(1)}}, tmp_path / "public.ckpt")
    module = build(start_token=False, positions=80, source_checkpoint=str(tmp_path / "public.ckpt"))
    module.start_from_source()
    assert all(torch.equal(state[f"transformer.{key}"], value) for key, value in module.transformer.state_dict().items())
    with pytest.raises(UserError, match=r"module\.source_checkpoint=.*of another shape: pos_emb"):
        build(start_token=False, source_checkpoint=str(tmp_path / "public.ckpt")).start_from_source()
    with pytest.raises(UserError, match="holds no transformer"):
        build(source_checkpoint=tokenizer_file()).start_from_source()


@pytest.fixture(scope="module")
def trained():
    return fit(build())


def test_images_are_of_any_size_from_that_of_training_on(trained):
    assert trained.sample(1, (17, 20)).shape == (1, 3, 17, 20)
    with pytest.raises(UserError, match=r"size is \[8, 16\]; expected at least \[16, 16\], the size of training"):
        trained.sample(1, (8, 16))


def test_known_codes_stay_and_holes_are_drawn(trained):
    image, mask = torch.rand(1, 3, 16, 16) * 2 - 1, torch.zeros(1, 1, 16, 16)
    mask[..., 8:, :] = 1  # the lower half
    codes = trained.tokenizer.encode(image)
    with sampling_mode(trained, 0, range(3)):
        fills = trained.inpaint(image, mask, 3, temperature=2.0)
    with sampling_mode(trained, 0, range(3)):
        hole = F.max_pool2d(mask, 2)[:, 0] > 0
        known, holes = codes.expand(3, -1, -1), hole.expand(3, -1, -1)
        filled = trained.sample_codes(3, trained.grid, temperature=2.0, known=known, mask=holes)
    assert torch.equal(filled[:, :4], known[:, :4]) and filled.unique(dim=0).shape[0] == 3
    assert torch.allclose(fills, trained.tokenizer.decode(filled), atol=1e-5)
    with sampling_mode(trained, 0, range(1)):
        empty = trained.inpaint(image, torch.zeros_like(mask), 1)
    assert torch.allclose(empty, trained.reconstruct(image), atol=1e-5)
    assert trained.inpaint(image[..., :13, :], mask[..., :13, :], 2, candidates=2).shape == (2, 3, 13, 16)


def test_the_candidate_is_chosen_by_the_known_codes(trained):
    image, mask = torch.rand(1, 3, 16, 16) * 2 - 1, torch.zeros(1, 1, 16, 16)
    mask[..., 4:8, 4:8] = 1
    draws, plain = {}, trained.sample_codes
    trained.sample_codes = lambda *a, **k: draws.setdefault("codes", plain(*a, **k))
    try:
        fill = trained.inpaint(image, mask, 1, candidates=4, temperature=3.0)
    finally:
        del trained.sample_codes
    known = (F.max_pool2d(mask, 2)[:, 0] == 0).expand(4, -1, -1)
    scores = torch.stack([trained.transformer.log_prob(row[None])[0][known[0]].sum() for row in draws["codes"]])
    assert torch.allclose(fill, trained.tokenizer.decode(draws["codes"][scores.argmax()][None]), atol=1e-5)


def test_classes_are_learned_and_chosen(monkeypatch):
    with pytest.raises(UserError, match="datamodule.labels"):
        build(num_classes=2).check_data(_data().sets())
    module = build(num_classes=2)
    module.start_from_source()
    module.eval()
    assert module.sample(2, label=1).shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match="label is 2; the model has 2 classes"):
        module.sample(1, label=2)


def test_unigram_of_each_position_by_counting():
    train, heldout = torch.randint(3, (20, 2, 2)), torch.randint(3, (5, 2, 2))
    total = 0.0
    for row in heldout:
        for i in range(2):
            for j in range(2):
                count = sum(int(other[i, j] == row[i, j]) for other in train) + 1
                total -= math.log(count / (20 + 3))
    assert unigram_nats(train, heldout, 3) == pytest.approx(total / 20, rel=1e-5)


def test_random_blocks_are_copied_from_their_places(trained, monkeypatch):
    decoded = []
    monkeypatch.setattr(trained.tokenizer, "decode", lambda codes: decoded.append(codes) or codes)
    images, codes = trained.baselines(6), trained.tokenizer.encode(_data().sets()["image"].stack())
    assert torch.equal(images["reconstructions"], codes) and len(images["random_4x4"]) == 6
    for row in images["random_4x4"]:
        for i in (slice(4), slice(4, 8)):
            assert all(any(torch.equal(row[i, j], other[i, j]) for other in codes) for j in (slice(4), slice(4, 8)))
