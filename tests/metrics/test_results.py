import json
import math
from pathlib import Path

from metrics.results import finite, format_measurement, versions, write_measurement

PROTOCOL = {"backbone": "rand_cnn", "num_real": 3, "num_generated": 8, "resize": "bicubic", "notes": ["a word"]}


def results() -> dict:
    return {
        "metrics": {"kd_rand_cnn": 0.0123456, "nearest_psnr_max": 17.25},
        "reference_points": {"split_half": {}, "copies": {"kd_rand_cnn": -0.5}},
        "diagnostics": {"codes_used": None},
        "protocol": dict(PROTOCOL),
    }


def test_results_are_sorted_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_measurement(path, results())
    assert json.loads(path.read_text()) == results()
    assert path.read_text().index('"diagnostics"') < path.read_text().index('"reference_points"')


def test_values_that_are_not_finite_become_none_with_a_reason() -> None:
    notes: list[str] = []
    assert finite({"a": 1, "b": math.inf, "c": math.nan}, notes) == {"a": 1.0, "b": None, "c": None}
    assert [note.split()[0] for note in notes] == ["b", "c"]


def test_table_shows_every_number() -> None:
    table = format_measurement(results())
    for text in ("kd_rand_cnn", "0.01235", "-0.5", "nearest_psnr_max", "17.25", "split_half", "codes_used", "a word"):
        assert text in table


def test_versions_name_the_packages() -> None:
    assert {"python", "torch", "lightning", "torchmetrics", "torchvision"} <= versions().keys()
