"""When are two measurements comparable? The protocol of a measurement, and the hash of the fields that decide it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from metrics.backbones.backbone import Backbone
from metrics.features import crop_size
from metrics.kernel import FULL_SAMPLE, SUBSETS
from metrics.manifold import NEIGHBORS
from metrics.perceptual_distance import PerceptualDistance
from metrics.perceptual_diversity import CLUSTER, PAIRS
from metrics.results import versions

CODE_VERSION = 3  # of the definitions in this folder; rises when the same model and images would give another number
DECISIVE = (
    "backbone", "backbone_fingerprint", "weights_sha256", "input_size", "resize", "lowpass", "perceptual", "image_size",
    "num_real", "num_generated", "reference", "seed", "sampling_seeds", "max_reference", "crops", "kernel_distance",
    "neighbors", "pairs", "code_version", "realism",
)  # fmt: skip


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """SHA-256 over the decisive fields. Names of files, notes and versions of packages do not change it."""
    decisive = {key: protocol.get(key) for key in DECISIVE if key != "realism" or key in protocol}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def measurement_protocol(
    backbone: Backbone | None, perceptual: PerceptualDistance | None, size: Sequence[int], crops: Mapping[str, int],
    settings: Mapping[str, Any], notes: list[str],
) -> dict[str, Any]:  # fmt: skip
    """Protocol of comparing samples of `size` (height, width), with the hash of what decides; `settings` are further fields."""
    caution = backbone and backbone.caution()
    protocol = {
        **(backbone.protocol() if backbone else {"backbone": None, "resize": None}),
        "perceptual": perceptual.protocol(*size) if perceptual else None,
        "image_size": list(size),
        **settings,
        "crops": {**crops, "size": list(crop_size(*size))},
        "kernel_distance": f"all pairs up to {FULL_SAMPLE} rows on a side, else {SUBSETS} subsets of {FULL_SAMPLE}",
        "neighbors": NEIGHBORS,
        "pairs": {"all": PAIRS, "cluster": CLUSTER},
        "code_version": CODE_VERSION,
        "sampling": "evaluation mode, the weights of the checkpoint, image i drawn from (seed, i) alone, set k from seed + k",
        "features": "whole images: the last layer after global pooling; sifid: maps at the original size",
        "versions": versions(),
        "notes": notes + [caution] * bool(caution),
    }
    return protocol | {"hash": protocol_hash(protocol)}
