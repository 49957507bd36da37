"""Errors, warnings and notes about image files: how they are decoded, and which are copies of each other."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from datamodules.copies import PerceptualHash, near_copies, perceptual_hash
from datamodules.decode import Treatment
from datamodules.folder import ImageFolder
from datamodules.listing import shorten

MAX_ENLARGEMENT = 4.0  # beyond it an image is blur
MIN_USED_SHARE = 0.5  # a warning if less of an image's area is used
MIN_WHITE = 65535 / 8  # of 16 bits; a darker image is probably one of fewer bits
MAX_COMPARED = 1000  # images in the quick check; about a second
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


def findings_of(images: Iterable[ImageFinding]) -> list[Finding]:
    """How each image is decoded as far as that is worth a line, and copies within and between the sets."""
    findings, by_digest = [], defaultdict(list)
    for image in images:
        if image.treatment:
            findings += _of_image(image.name, image.treatment, image.hash)
            by_digest[image.digest or image.name].append(image)
    findings += [_copies("duplicate", group, "the same file") for group in by_digest.values() if len(group) > 1]
    hashed = [group[0] for group in by_digest.values() if group[0].hash]
    for i, j, mirrored in near_copies([image.hash for image in hashed if image.hash]):
        findings.append(_copies("near-duplicate", [hashed[i], hashed[j]], "nearly the same image" + ", mirrored" * mirrored))
    return findings


def quick_check(sets: Mapping[str, ImageFolder]) -> list[Finding]:
    """Errors and warnings about sets that a data module has read, in bounded time, without those that it has reported.

    Perceptual hashes are compared for up to MAX_COMPARED images in memory; others are judged by their headers alone.
    """
    compared = sum(len(images.files) for images in sets.values()) <= MAX_COMPARED
    rows, first_set = [], {}
    for key, images in sets.items():
        for position, treatment in enumerate(images.treatments):
            name, digest, hashed = f"{key}/{images.files[position]}", "", None
            if images.pixels is not None:
                digest = images.digests[position]
                hashed = perceptual_hash(images.pixels[position]) if compared else None
            if first_set.setdefault(digest or name, key) == key:  # the data module has reported files of several sets
                rows.append(ImageFinding(name, digest, treatment, hashed))
    return [finding for finding in findings_of(rows) if finding.level != "note" and finding.kind != "enlarged"]


def summarize(findings: Iterable[Finding]) -> list[str]:
    """One line for each level and kind."""
    groups = defaultdict(list)
    for finding in findings:
        groups[finding.level, finding.kind].append(f"{' = '.join(finding.files)} ({finding.text})")
    return [f"{kind}: {shorten(lines, 5)}" for (_, kind), lines in groups.items()]


def _of_image(name: str, treatment: Treatment, hashed: PerceptualHash | None) -> list[Finding]:
    used, factor = treatment.used_share, treatment.enlargement
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
