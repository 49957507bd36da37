import json

import pytest

from metrics.protocol import DECISIVE, protocol_hash


def protocol(name: str = "a", **changes: object) -> dict:
    fields = {"backbone": "rand_cnn", "num_real": 5, "num_generated": 100, "reference": "0" * 64, "crops": {"size": [8, 8]}}
    return fields | {"notes": [name], "versions": {"torch": name}, "reference_names": [f"{name}.png"]} | changes


def test_equal_protocols_have_equal_hashes_whatever_is_told_besides() -> None:
    assert protocol_hash(protocol("a")) == protocol_hash(protocol("b"))
    assert protocol_hash(json.loads(json.dumps(protocol("a")))) == protocol_hash(protocol("b"))  # as read from the file
    assert protocol_hash(dict(reversed(protocol("a").items()))) == protocol_hash(protocol("a"))


@pytest.mark.parametrize("key", DECISIVE)
def test_every_decisive_field_changes_the_hash(key: str) -> None:
    assert protocol_hash(protocol(**{key: "changed"})) != protocol_hash(protocol())
