"""The command of DISP's tables: its trainings are valid, its claims need three seeds and both judges."""


import pytest
from PIL import Image

from cli.loader import load_config
from tests.benchmarks.few_shot_gans import SETTINGS, Trial, emoji, table, trials, words_of


def test_whole_rounds_of_all_settings():
    rows = list(trials("few_shot", 3))
    assert len(rows) == 60 and len({row.label for row in rows}) == 60
    assert {row.seed for row in rows[:20]} == {0} and {row.setting for row in rows} == SETTINGS.keys()
    assert len(list(trials("limited", 3))) == 3 * 3 * 2 * 2


@pytest.mark.parametrize("trial", [*list(trials("few_shot", 1))[:10], *list(trials("limited", 1))[:4]], ids=lambda t: t.label)
def test_each_training_is_a_valid_configuration(trial, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    config = load_config(words_of(trial, tmp_path, tmp_path / "run", tmp_path / "source.ckpt"))
    assert (config.module.condition is not None) == trial.prior and config.datamodule.labels is None
    assert ("source" in str(config.module.source_checkpoint)) == (trial.setting in ("TransferGAN", "FreezeD"))


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
        return {"trial": trial, "nearest_psnr_max": 20.0, "judges": {"one": values, "two": other}}

    return [row(prior, seed, agrees) for seed, agrees in enumerate(better) for prior in (False, True)]


@pytest.mark.parametrize(
    ("better", "claim"),
    [([True] * 3, "helps"), ([True, True, False], "helps"), ([True, False, False], "no claim"), ([True] * 2, "no claim")],
)
def test_a_claim_needs_both_judges_in_two_of_three_seeds(better, claim):
    text = table(rows(better))
    assert f"all judges better in {sum(better)}, worse in 0 of {len(better)} seeds: {claim}" in text
    assert f"| adventurer | scratch | yes | {len(better)} | 0.5 |" in text
