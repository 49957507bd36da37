"""Errors, warnings and notes about image files: how they are decoded, and which are copies of each other.

Copies may be recompressed, rescaled, brighter or darker, mirrored, but not shifted or cropped by more than a few per cent: a
perceptual hash of 64 bits and the colors of 16×16 cells have to agree.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from datamodules.decode import Treatment
from datamodules.folder import ImageFolder
from datamodules.listing import shorten

MAX_ENLARGEMENT = 4.0  # beyond it an image is blur
MIN_USED_SHARE = 0.5  # a warning if less of an image's area is used
MIN_WHITE = 65535 / 8  # of 16 bits; a darker image is probably one of fewer bits
MAX_COMPARED = 1000  # images in the quick check; about a second
MAX_BITS = 10  # of 64 that differ; copies of photographs differ in fewer, different photographs in 14 or more
MIN_CORRELATION = 0.99  # of 16×16 colors: drawings in one style have similar hashes but not similar colors
STEPS = {
    "rotated": "rotated to its EXIF orientation",
    "metadata": "its invalid EXIF data are ignored",
    "transparent": "its transparency laid over white",
    "palette": "its palette resolved",
    "cmyk": "CMYK converted to RGB without its color profile",
    "deep": "16-bit or float values scaled to 8 bits",
    "gray": "gray in all three channels",
    "animated": "its first frame only",
    "extension": "read by its content, which is not what its name ends in",
}


class PerceptualHash(NamedTuple):
    """Perceptual hash of an image and of its mirror image."""

    bits: np.ndarray  # ±1 [2, 64]
    colors: np.ndarray  # centered, of length 1 [2, 768]


class Finding(NamedTuple):
    """A statement about files ("set/name"). Levels: error (training would be wrong), warning, note."""

    level: str
    kind: str
    files: tuple[str, ...]
    text: str


class ImageFinding(NamedTuple):
    """One file of a set. An unreadable one has no treatment; one that is not compared has no perceptual hash."""

    name: str  # set/file
    digest: str
    treatment: Treatment | None = None
    hash: PerceptualHash | None = None


def perceptual_hash(pixels: Tensor) -> PerceptualHash:
    image = to_pil_image(pixels)
    both = (image, ImageOps.mirror(image))
    bits = np.stack([np.where(imagehash.phash(view).hash.flatten(), 1, -1) for view in both])
    colors = np.stack([np.asarray(view.resize((16, 16), Image.Resampling.BOX), dtype=np.float32) for view in both])
    colors = (colors - colors.mean(axis=(1, 2), keepdims=True)).reshape(2, -1)
    return PerceptualHash(np.float32(bits), colors / np.maximum(np.linalg.norm(colors, axis=1, keepdims=True), 1e-6))


def near_copies(hashes: Sequence[PerceptualHash]) -> Iterator[tuple[int, int, bool]]:
    """Pairs i < j of hashes of the same image, and whether one is mirrored."""
    bits, colors = (np.stack(part) for part in zip(*hashes, strict=True)) if hashes else ((), ())
    for i in range(len(hashes)):
        alike = (bits[i + 1 :] @ bits[i, 0] >= 64 - 2 * MAX_BITS) & (colors[i + 1 :] @ colors[i, 0] >= MIN_CORRELATION)
        yield from ((i, i + 1 + j, not alike[j, 0]) for j in np.flatnonzero(alike.any(axis=1)).tolist())


def findings_of(images: Iterable[ImageFinding]) -> list[Finding]:
    findings, by_digest = [], defaultdict(list)
    for image in images:
        if image.treatment:
            findings += _of_image(image.name, image.treatment, image.hash)
            by_digest[image.digest].append(image)
    findings += [_copies("duplicate", group, "the same file") for group in by_digest.values() if len(group) > 1]
    hashed = [group[0] for group in by_digest.values() if group[0].hash]
    for i, j, mirrored in near_copies([image.hash for image in hashed]):
        findings.append(_copies("near-duplicate", [hashed[i], hashed[j]], "nearly the same image" + ", mirrored" * mirrored))
    return findings


def quick_check(sets: Mapping[str, ImageFolder]) -> list[Finding]:
    """Errors and warnings about sets that a data module has read, without those that it has reported, in bounded time:
    of more than MAX_COMPARED images, or images that are not in memory, no perceptual hashes are compared."""
    compared = sum(len(images.files) for images in sets.values()) <= MAX_COMPARED
    rows, first_set = [], {}
    for key, images in sets.items():
        for position, treatment in enumerate(images.treatments):
            hashed = perceptual_hash(images.pixels[position]) if compared and images.pixels is not None else None
            digest = images.digests[position]
            if first_set.setdefault(digest, key) == key:  # the data module has reported files of several sets
                rows.append(ImageFinding(f"{key}/{images.files[position]}", digest, treatment, hashed))
    return [finding for finding in findings_of(rows) if finding.level != "note" and finding.kind != "enlarged"]


def summarize(findings: Iterable[Finding]) -> list[str]:
    groups = defaultdict(list)
    for finding in findings:
        groups[finding.level, finding.kind].append(f"{' = '.join(finding.files)} ({finding.text})")
    return [f"{kind}: {shorten(lines, 5)}" for (_, kind), lines in groups.items()]


def _of_image(name: str, treatment: Treatment, hashed: PerceptualHash | None) -> list[Finding]:
    (height, width), (left, top, right, bottom), factor = treatment.shape, treatment.box, treatment.enlargement
    used = (right - left) * (bottom - top) / (height * width)
    low, high = treatment.value_range or (0, 65535)
    nearly_black = f"its values are {low:g} to {high:g} of 65535, so it is nearly black: rescale it if its white is darker"
    checks = [
        ("error", "too small", factor > MAX_ENLARGEMENT, f"enlarged {factor:.3g} times: {MAX_ENLARGEMENT:g} at most"),
        ("warning", "enlarged", 1 < factor <= MAX_ENLARGEMENT, f"enlarged {factor:.3g} times"),
        ("warning", "cropped", used < MIN_USED_SHARE, f"{used:.0%} of it is used, the rest is cropped"),
        ("note", "cropped", MIN_USED_SHARE <= used < 0.995, f"{used:.0%} of it is used, the rest is cropped"),
        ("warning", "bit depth", high < MIN_WHITE, nearly_black),
        ("warning", "blank", hashed and not hashed.colors.any(), "one color all over"),
        *(("note", step, True, STEPS[step]) for step in treatment.steps),
    ]
    return [Finding(level, kind, (name,), text) for level, kind, applies, text in checks if applies]


def _copies(kind: str, images: Sequence[ImageFinding], text: str) -> Finding:
    names = tuple(image.name for image in images)
    sets = {name.split("/")[0] for name in names}
    leak = kind == "duplicate" and "reference" in sets and len(sets) > 1
    return Finding("error" if leak else "warning", kind, names, text + " is trained on and measured against" * leak)
