"""Errors, warnings and notes about image files: how they are decoded, and which are copies of each other."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Finding:
    """A statement about files ("set/name"). Levels: error (training would be wrong), warning, note."""

    level: str
    kind: str
    files: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.kind}: {shorten(self.files)}: {self.text}"


@dataclass(frozen=True)
class ImageFinding:
    """One file of a set. An unreadable one has no treatment; one that is not compared has no perceptual hash."""

    name: str  # set/file
    digest: str
    treatment: Treatment | None = None
    hash: PerceptualHash | None = None


def findings_of(images: Sequence[ImageFinding]) -> list[Finding]:
    """How each image is decoded as far as that is worth a line, and copies within and between the sets."""
    findings, by_digest = [], defaultdict(list)
    for image in images:
        if image.treatment:
            findings += _of_treatment(image.name, image.treatment)
            by_digest[image.digest or image.name].append(image)
        if image.hash and not image.hash.colors.any():
            findings.append(Finding("warning", "blank", (image.name,), "one color all over"))
    findings += [_copies("duplicate", group, "the same file") for group in by_digest.values() if len(group) > 1]
    hashed = [group[0] for group in by_digest.values() if group[0].hash]
    for i, j, mirrored in near_copies([image.hash for image in hashed if image.hash]):
        findings.append(_copies("near-duplicate", [hashed[i], hashed[j]], "nearly the same image" + ", mirrored" * mirrored))
    return findings


def quick_check(sets: Mapping[str, ImageFolder]) -> list[Finding]:
    """Errors and warnings about sets that a data module has read, in bounded time, without those that it has reported.

    Perceptual hashes are compared for up to MAX_COMPARED images in memory; others are judged by their headers alone.
    """
    unique: dict[ImageFolder, str] = {}
    for key, images in sets.items():
        if images.treatments:
            unique.setdefault(images, key)  # one set may have two names
    compared = sum(len(images.files) for images in unique) <= MAX_COMPARED
    rows = []
    for images, key in unique.items():
        in_memory = images.pixels is not None
        for position, (name, treatment) in enumerate(zip(images.files, images.treatments, strict=True)):
            digest = images.digests[position] if in_memory else ""
            hashed = perceptual_hash(images.bytes_of(position)) if in_memory and compared else None
            rows.append(ImageFinding(f"{key}/{name}", digest, treatment, hashed))
    findings = [finding for finding in findings_of(rows) if finding.level != "note" and finding.kind != "enlarged"]
    return [part for finding in findings for part in (_within(finding) if finding.kind == "duplicate" else [finding])]


def summarize(findings: Iterable[Finding]) -> list[str]:
    """One line for each level and kind."""
    groups = defaultdict(list)
    for finding in findings:
        groups[finding.level, finding.kind].append(f"{' = '.join(finding.files)} ({finding.text})")
    return [f"{kind}: {shorten(lines, 5)}" for (_, kind), lines in groups.items()]


def _of_treatment(name: str, treatment: Treatment) -> list[Finding]:
    findings = [Finding("note", step, (name,), STEPS[step]) for step in treatment.steps]
    used, enlargement = treatment.used_share, treatment.enlargement
    if enlargement > MAX_ENLARGEMENT:
        text = f"enlarged {enlargement:.3g} times: {MAX_ENLARGEMENT:g} at most"
        findings.append(Finding("error", "too small", (name,), text))
    elif enlargement > 1:
        findings.append(Finding("warning", "enlarged", (name,), f"enlarged {enlargement:.3g} times"))
    if used < 0.995:
        level = "warning" if used < MIN_USED_SHARE else "note"
        findings.append(Finding(level, "cropped", (name,), f"{used:.0%} of it is used, the rest is cropped"))
    if treatment.value_range and treatment.value_range[1] < MIN_WHITE:
        low, high = treatment.value_range
        text = f"its values are {low:g} to {high:g} of 65535, so it is nearly black: rescale it if its white is darker"
        findings.append(Finding("warning", "bit depth", (name,), text))
    return findings


def _copies(kind: str, images: Sequence[ImageFinding], text: str) -> Finding:
    names = tuple(image.name for image in images)
    keys = _sets(names)
    leak = kind == "duplicate" and "reference" in keys and len(keys) > 1
    return Finding("error" if leak else "warning", kind, names, text + " is trained on and measured against" * leak)


def _within(copies: Finding) -> list[Finding]:
    """Equal files of one set each; those of different sets are reported when the sets are read."""
    groups = [tuple(name for name in copies.files if _sets([name]) == {key}) for key in sorted(_sets(copies.files))]
    return [Finding("warning", copies.kind, group, "the same file") for group in groups if len(group) > 1]


def _sets(names: Iterable[str]) -> set[str]:
    return {name.split("/")[0] for name in names}
