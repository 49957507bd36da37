"""What is to be said about image files that were read: what is done to them, and which are copies of each other."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from datamodules.copies import Look, look_at, near_copies
from datamodules.decode import Treatment
from datamodules.folder import ImageFolder, shorten

TOO_SMALL = 4.0  # enlarged more than this, a picture is blur
MAX_CUT = 0.5  # a warning if less of a picture's area is left
QUICK_LIMIT = 1000  # images; about a second
STEPS = {
    "rotated": "turned as its EXIF orientation says",
    "transparent": "its transparency laid over white",
    "palette": "its palette resolved",
    "cmyk": "CMYK turned into RGB without its colour profile",
    "deep": "16-bit or float values scaled to 8 bits",
    "grey": "grey in all three channels",
    "animated": "its first frame only",
    "extension": "read as what it is, not as its name ends",
}


@dataclass(frozen=True)
class Finding:
    """Something about one or several files ("set/name"). Levels: error (training would be wrong), warning, note."""

    level: str
    kind: str
    files: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.kind}: {shorten(self.files)}: {self.text}"


@dataclass(frozen=True)
class Picture:
    """One file of a set; without a treatment it cannot be read, without a look it was not looked at."""

    place: str
    digest: str
    treatment: Treatment | None = None
    look: Look | None = None


def findings_of(pictures: Sequence[Picture]) -> list[Finding]:
    """All that shows in what was read: what is done to each picture, and copies within and between the sets."""
    found, same = [], defaultdict(list)
    for picture in pictures:
        if picture.treatment:
            found += _treated(picture.place, picture.treatment)
            same[picture.digest or picture.place].append(picture)
        if picture.look and not picture.look.colours.any():
            found.append(Finding("warning", "blank", (picture.place,), "one colour all over"))
    found += [_copies("duplicate", group, "the same file") for group in same.values() if len(group) > 1]
    seen = [group[0] for group in same.values() if group[0].look]
    for i, j, mirrored in near_copies([picture.look for picture in seen if picture.look]):
        text = "nearly the same picture" + ", mirrored" * mirrored
        found.append(_copies("near-duplicate", [seen[i], seen[j]], text))
    return found


def quick_check(sets: Mapping[str, ImageFolder]) -> list[Finding]:
    """Errors and warnings about sets that a data module has read, in bounded time; those it gave itself are left out.

    Looks are compared up to QUICK_LIMIT images in memory; what is not in memory is judged by its headers alone.
    """
    unique: dict[ImageFolder, str] = {}
    for key, images in sets.items():
        if images.treatments:
            unique.setdefault(images, key)  # one set may have two names
    total = sum(len(images.files) for images in unique)
    pictures = []
    for images, key in unique.items():
        for position, (name, treatment) in enumerate(zip(images.files, images.treatments, strict=True)):
            in_memory = images.pixels is not None
            look = look_at(images.pixels[position]) if in_memory and total <= QUICK_LIMIT else None
            digest = images.digests[position] if in_memory else ""
            pictures.append(Picture(f"{key}/{name}", digest, treatment, look))
    found = [finding for finding in findings_of(pictures) if finding.level != "note" and finding.kind != "enlarged"]
    return [own for finding in found for own in (_within(finding) if finding.kind == "duplicate" else [finding])]


def brief(findings: Iterable[Finding]) -> list[str]:
    """One line for each level and kind."""
    groups = defaultdict(list)
    for finding in findings:
        groups[finding.level, finding.kind].append(f"{' = '.join(finding.files)} ({finding.text})")
    return [f"{kind}: {shorten(lines, 5)}" for (_, kind), lines in groups.items()]


def _treated(place: str, treatment: Treatment) -> list[Finding]:
    found = [Finding("note", step, (place,), STEPS[step]) for step in treatment.steps]
    kept, enlargement = treatment.kept, treatment.enlargement
    if enlargement > TOO_SMALL:
        found.append(Finding("error", "too small", (place,), f"enlarged {enlargement:.3g} times: {TOO_SMALL:g} at most"))
    elif enlargement > 1:
        found.append(Finding("warning", "enlarged", (place,), f"enlarged {enlargement:.3g} times"))
    if kept < 0.995:
        level = "warning" if kept < MAX_CUT else "note"
        found.append(Finding(level, "cropped", (place,), f"{kept:.0%} of it is used, the rest is cut away"))
    return found


def _copies(kind: str, pictures: Sequence[Picture], text: str) -> Finding:
    places = tuple(picture.place for picture in pictures)
    keys = _sets(places)
    leak = kind == "duplicate" and "reference" in keys and len(keys) > 1
    return Finding("error" if leak else "warning", kind, places, text + " is trained on and measured against" * leak)


def _within(copies: Finding) -> list[Finding]:
    """Those of equal files that lie in one set; between sets they were told of when the sets were read."""
    groups = [tuple(place for place in copies.files if _sets([place]) == {key}) for key in sorted(_sets(copies.files))]
    return [Finding("warning", copies.kind, group, "the same file") for group in groups if len(group) > 1]


def _sets(places: Iterable[str]) -> set[str]:
    return {place.split("/")[0] for place in places}
