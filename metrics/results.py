"""The card of a measurement: its values with all that is needed to compare or repeat them."""

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from metrics.features import crop_size
from metrics.kernel import FULL_SAMPLE, SUBSETS
from metrics.manifold import NEIGHBOURS
from metrics.perceptual_diversity import CLUSTER, PAIRS
from metrics.protocol import CODE_VERSION, protocol_hash

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics")
REQUIRED = ("backbone", "num_real", "num_generated", "resize")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part in a measurement."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def finite(values: Mapping[str, float], notes: list[str]) -> dict[str, float | None]:
    """Plain floats; one that is not finite becomes None, and a note says so."""
    plain = {key: float(value) for key, value in values.items()}
    notes += [f"{key} is not finite ({value}) and left out" for key, value in plain.items() if not math.isfinite(value)]
    return {key: value if math.isfinite(value) else None for key, value in plain.items()}


def protocol_of(measure: Any, reference: Any, sets: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """How the callback `measure` compared the reference (its `images`) with samples, with the hash of what decides."""
    size = reference.images.shape[-2:]
    images = sets.get("tile", sets.get("image"))  # of a tiling its parts are the reference
    backbone, perceptual = measure.backbone, measure.perceptual
    caution = backbone and backbone.caution()
    protocol = {
        **(backbone.protocol() if backbone else {"backbone": None, "resize": None}),
        "perceptual": perceptual.protocol(*size) if perceptual else None,
        "image_size": list(size),
        "num_real": len(reference.images),
        "num_generated": measure.num_images,
        "reference": images.fingerprint if images else None,
        "reference_names": images.originals().names if images else None,
        "seed": measure.seed,
        "sampling_seeds": measure.sampling_seeds,
        "chunk": measure.chunk,
        "crops": {"reference": measure.crops, "samples": measure.sample_crops, "size": list(crop_size(*size))},
        "kernel_distance": f"all pairs up to {FULL_SAMPLE} rows on a side, else {SUBSETS} subsets of {FULL_SAMPLE}",
        "neighbours": NEIGHBOURS,
        "pairs": {"all": PAIRS, "cluster": CLUSTER},
        "code_version": CODE_VERSION,
        "sampling": "evaluation mode, the weights of the checkpoint, chunk c after manual_seed(seed + c)",
        "features": "whole images: the last layer after global pooling; sifid: maps at native size",
        "versions": versions(),
        "notes": notes + [caution] * bool(caution),
    }
    return protocol | {"hash": protocol_hash(protocol)}


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Writes `card` as sorted JSON. ValueError if its protocol lacks what makes the numbers comparable."""
    missing = [key for key in REQUIRED if key not in card["protocol"]]
    if missing:
        raise UserError(f"a measurement without {', '.join(missing)} in its protocol means nothing and is not written")
    text = json.dumps(card, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def format_card(card: Mapping[str, Any]) -> str:
    """A table for people: the metrics, the anchors beside the distances, the diagnostics, the notes."""
    sets = {"samples": card["metrics"], **card["anchors"]}
    shared = sorted({key for values in card["anchors"].values() for key in values})
    lines = []
    if shared:
        width = max(map(len, sets))
        lines += ["distance to the training images" + "".join(f"  {key}" for key in shared)]
        for name, values in sets.items():
            cells = (_number(values.get(key)).rjust(len(key)) for key in shared)
            lines += [f"  {name.ljust(width)}".ljust(31) + "".join(f"  {cell}" for cell in cells)]
    intervals = card.get("intervals", {})
    for title, values in [("samples", card["metrics"]), ("model", card["diagnostics"])]:
        rest = {key: value for key, value in sorted(values.items()) if key not in shared or key in intervals}
        lines += [title] if rest else []
        lines += [f"  {key.ljust(32)} {_number(value)}{_range(intervals.get(key))}" for key, value in rest.items()]
    lines += [f"verdict: {card['verdict']['line']}"] if card.get("verdict") else []
    return "\n".join(lines + [f"note: {note}" for note in card["protocol"]["notes"]])


def _range(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"  (95 %: {_number(interval[0])} to {_number(interval[1])})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
