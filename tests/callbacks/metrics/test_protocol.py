import json

import pytest

from callbacks.metrics.protocol import DECISIVE, compatible, protocol_hash


def card(name: str = "a", **changes: object) -> dict:
    protocol = {"backbone": "rand_cnn", "num_real": 5, "num_generated": 100, "reference": "0" * 64, "crops": {"size": [8, 8]}}
    protocol |= {"notes": [name], "versions": {"torch": name}, "reference_names": [f"{name}.png"]} | changes
    return {"run_name": name, "metrics": {}, "protocol": protocol | {"hash": protocol_hash(protocol)}}


def test_equal_protocols_are_compatible_whatever_is_told_besides() -> None:
    assert compatible(card("a"), card("b")) == []
    assert card("a")["protocol"]["hash"] == card("b")["protocol"]["hash"]
    assert compatible(json.loads(json.dumps(card("a"))), card("b")) == []  # as read from the file


@pytest.mark.parametrize("key", DECISIVE)
def test_every_decisive_field_is_told(key: str) -> None:
    other = card("b", **{key: "changed"})
    assert other["protocol"]["hash"] != card()["protocol"]["hash"]
    (line,) = compatible(card(), other)
    assert line.startswith(f"{key}: ") and line.endswith('against "changed"')


def test_long_hashes_are_shortened() -> None:
    assert compatible(card(), card("b", reference="1" * 64)) == ['reference: "000000000000… against "111111111111…']


def test_missing_and_forged_hashes_are_told() -> None:
    old, forged = card("old"), card("forged")
    del old["protocol"]["hash"]
    forged["protocol"]["num_generated"] = 50
    assert compatible(old, card()) == ["old has no protocol hash: measure it again"]
    lines = compatible(card(), forged)
    assert lines[0].startswith("forged was changed") and lines[1] == "num_generated: 100 against 50"
