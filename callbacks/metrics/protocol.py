"""When are two measurements comparable? The fields that decide it, their hash, and what differs."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CODE_VERSION = 2  # of the definitions in this folder; rises when the same images would give another number
DECISIVE = (
    "backbone",
    "backbone_fingerprint",
    "weights_sha256",
    "input_size",
    "resize",
    "lowpass",
    "perceptual",
    "image_size",
    "num_real",
    "num_generated",
    "reference",
    "seed",
    "sampling_seeds",
    "chunk",
    "crops",
    "kernel_distance",
    "neighbours",
    "code_version",
)


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """SHA-256 over the decisive fields. Names of files, notes and versions of packages do not change it."""
    decisive = {key: protocol.get(key) for key in DECISIVE}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def compatible(card_a: Mapping[str, Any], card_b: Mapping[str, Any]) -> list[str]:
    """What keeps the numbers of two cards (contents of metrics.json) from being compared, one line each; empty if nothing.

    A card without a hash, from before there was one, is not comparable; nor is one whose fields do not give its hash.
    """
    protocols = card_a["protocol"], card_b["protocol"]
    lines = []
    for card, protocol in zip((card_a, card_b), protocols, strict=True):
        name = card.get("run_name") or card.get("checkpoint") or "a card"
        if "hash" not in protocol:
            lines.append(f"{name} has no protocol hash: measure it again")
        elif protocol["hash"] != protocol_hash(protocol):
            lines.append(f"{name} was changed after it was measured: its protocol does not give its hash")
    pairs = ((key, *(protocol.get(key) for protocol in protocols)) for key in DECISIVE)
    return lines + [f"{key}: {_short(a)} against {_short(b)}" for key, a, b in pairs if a != b]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return f"{text[:13]}…" if isinstance(value, str) and len(value) == 64 else text
