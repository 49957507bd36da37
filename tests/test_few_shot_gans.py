"""The command of DISP's tables: its trainings are valid, its claims need three seeds and both judges."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from cli.build import build
from cli.loader import load_config
from tests.benchmarks import few_shot_gans
from tests.benchmarks.few_shot_gans import SETTINGS, Trial, emoji, measured, overrides_of, table, trials


def test_whole_rounds_of_all_settings():
    rows = list(trials("few_shot", 3))
    assert len(rows) == 60 and len({row.label for row in rows}) == 60
    assert {row.seed for row in rows[:6]} == {0} and {row.setting for row in rows} == SETTINGS.keys()
    assert {row.images for row in rows[:30]} == {"adventurer"} and all(row.prior for row in rows[1::2])
    assert len(list(trials("limited", 3))) == 3 * 3 * 2 * 2


@pytest.mark.parametrize("trial", [*list(trials("few_shot", 1))[:10], *list(trials("limited", 1))[:4]], ids=lambda t: t.label)
def test_each_training_is_a_valid_configuration(trial, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    config = load_config(overrides_of(trial, tmp_path, tmp_path / "run"))
    assert (config.module.condition is not None) == trial.prior and config.datamodule.labels is None
    assert ("sngan_faces32" in str(config.module.source_checkpoint)) == (trial.setting in ("TransferGAN", "FreezeD"))
    assert config.module.augment == {"DiffAugment": "diffaugment", "ADA": "ada"}.get(trial.setting, "none")
    assert bool(config.module.freeze_blocks) == (trial.setting == "FreezeD")


@pytest.mark.parametrize("name", ["sngan_128", "stylegan2_256", "disp_biggan"])
def test_the_paper_s_network_for_published_sizes(name):
    config = load_config([f"configs/{name}.yaml", "configs/few_shot/disp_vgg16.yaml", "module.condition.weights=vgg16.pth"])
    condition = config.module.condition
    assert (config.run_name, condition.extractor, condition.embedding) == ("disp_vgg16", "vgg16_fc2", 256)


@pytest.mark.parametrize("name", ["sngan", "disp_sngan"])
def test_both_networks_begin_at_the_source_that_comes_with_the_project(name):
    module = build(load_config([f"configs/{name}.yaml", "configs/few_shot/freezed.yaml"]).module)
    module.start_from_source()
    source, state = torch.load("weights/sngan_faces32.pt", weights_only=True), module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in source.items() if key.split(".")[0] != "generator")
    assert len(list(module.frozen())) == 2 and module.source_sha256.startswith("82106b02")


def test_a_training_is_made_once_and_measured_by_the_judges_that_are_missing(tmp_path, monkeypatch):
    calls = []

    def measurement(file: Path, root: Path, heldout: Path, judges: list[str]) -> dict:
        calls.append(judges)
        return {"iterations": 1, "judges": {Path(judge).stem: {"kd": 1.0} for judge in judges}}

    def train(*arguments: str) -> float:
        calls.append("train")
        (tmp_path / trial.label).mkdir()
        return 60.0

    monkeypatch.setattr(few_shot_gans, "measurement", measurement)
    monkeypatch.setattr(few_shot_gans, "call", train)
    trial = Trial("adventurer", "ADA", True, 0)
    first = measured(trial, tmp_path, tmp_path, ["a.pth"], [])
    assert first["cpu_minutes"] == 1 and first["judges"] == {"a": {"kd": 1.0}}
    both = measured(trial, tmp_path, tmp_path, ["a.pth", "b.pth"], [])
    assert list(both["judges"]) == ["a", "b"] and calls == ["train", ["a.pth"], ["b.pth"]]
    assert measured(trial, tmp_path, tmp_path, ["b.pth"], [])["judges"].keys() == {"b"} and len(calls) == 3


def test_held_out_tiles_are_of_all_classes(tmp_path, monkeypatch):
    """The classes are in sheets of their own, one after the other."""
    monkeypatch.setattr(few_shot_gans, "HELDOUT", 8)
    for number in range(4):
        Image.new("RGB", (800, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.csv").write_text("\n".join(["index,split", *(f"{index},test" for index in range(20 + number))]))
    _, test = emoji(tmp_path, tmp_path / "out", 10)
    assert [Image.open(file).getpixel((5, 5))[0] for file in sorted(test.iterdir())] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_tiles_are_cut_once_by_share(tmp_path):
    sheet = Image.new("RGB", (800, 32))
    for tile in range(25):
        sheet.paste((tile, 0, 0), (32 * tile, 0, 32 * tile + 32, 32))
    sheet.save(tmp_path / "a.png")
    lines = [f"{index},{'test' if index > 19 else 'train'}" for index in range(25)]
    (tmp_path / "a.csv").write_text("\n".join(["index,split", *lines]))
    train, test = emoji(tmp_path, tmp_path / "out", 10)
    reds = [[Image.open(file).getpixel((5, 5))[0] for file in sorted(folder.iterdir())] for folder in (train, test)]
    assert reds == [[0, 10], [20, 21, 22, 23, 24]]


def rows(better: list[bool]) -> list[dict]:
    """Two judges; the second one agrees with the first where True."""

    def row(prior: bool, seed: int, agrees: bool) -> dict:
        values = {"kd": 1.0 - prior * 0.5, "precision": 0.5, "recall": 0.5, "novelty": 1.0}
        other = values | {"kd": 1.0 - prior * (0.5 if agrees else -0.5)}
        trial = Trial("adventurer", "scratch", prior, seed)._asdict()
        judges = {name: known | {"kd_copies": -1.0, "kd_split_half": 0.5} for name, known in (("one", values), ("two", other))}
        found = {"prior_match": 0.3, "pixel_spread_over_priors": 0.4, "pixel_spread_over_z": 0.2} if prior else {}
        return {"trial": trial, "nearest_psnr_max": 20.0, "diagnostics": found, "judges": judges}

    return [row(prior, seed, agrees) for seed, agrees in enumerate(better) for prior in (False, True)]


@pytest.mark.parametrize(
    ("better", "claim"),
    [([True] * 3, "helps"), ([True, True, False], "helps"), ([True, False, False], "no claim"), ([True] * 2, "no claim")],
)
def test_a_claim_needs_both_judges_in_two_of_three_seeds(better, claim):
    text = table(rows(better))
    assert f"all judges better in {sum(better)}, worse in 0 of {len(better)} seeds: {claim}" in text
    assert f"| adventurer | scratch | yes | {len(better)} | 0.5 ± 0 |" in text and "| 0.3 ± 0 | 2 ± 0 |" in text
    assert "kd of copies of the training images -1, of one half of the held-out images against the other 0.5" in text
    assert "kd with DISP / without, by seed: one 0.50" in text
