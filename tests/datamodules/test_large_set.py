"""A set that does not fit into `max_memory_gib` is trained on within little memory."""

from pathlib import Path

import pytest

from tests.benchmarks.large_set import measure


@pytest.mark.slow
def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """1,500 images of 256×256 take 295 MB decoded and 1,180 MB as floats; 300 MB are Lightning, the network and a batch."""
    results = measure(1500, tmp_path, max_memory_gib=0.1, iterations=10)
    for result in results:
        assert result["images"] == 1500 and result["peak_mb"] - result["imports_mb"] < 300
        assert result["peak_worker_mb"] < result["peak_mb"] + 100
    assert list((tmp_path / "cache").rglob("*.json"))
