"""When are two measurements comparable? The fields that decide it, and their hash."""

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
    "pairs",
    "code_version",
)


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """SHA-256 over the decisive fields. Names of files, notes and versions of packages do not change it."""
    decisive = {key: protocol.get(key) for key in DECISIVE}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
