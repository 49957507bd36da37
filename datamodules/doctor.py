"""Looks through folders of images before they are trained on.

    python -m datamodules.doctor FOLDER [SIDE [REFERENCE]] [key=value …]

    python -m datamodules.doctor photos/birds
    python -m datamodules.doctor photos/birds photos/others image_size=[72,96] out=report.json
    python -m datamodules.doctor faces.zip reference=heldout recursive=true

FOLDER holds the images to learn from, SIDE unlabelled ones (with subfolders), REFERENCE those to measure against (with
subfolders): folders, zip files or single files. image=…, side=…, reference=… name them, too.

    image_size   [height, width] of the training; without it a fitting one is proposed and used
    recursive    true: also the subfolders of FOLDER, as SourceDataModule reads them; false by default
    out          file for the report as JSON

Every file is read by the code that reads it in training. Exit status 1: training or its measurements would be wrong;
2: a mistake in these words; 0: neither, though there may be warnings.
"""

import difflib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image, UnidentifiedImageError

from core.errors import UserError
from datamodules.copies import look_at
from datamodules.decode import decode, probe
from datamodules.findings import STEPS, Finding, Picture, findings_of
from datamodules.folder import (
    UNREAD_ENDINGS,
    check_place,
    fingerprint_of,
    read_content,
    sha256,
    survey,
    visible_files,
)
from datamodules.image_files import ENDINGS

SETS = ("image", "side", "reference")
KEYS = (*SETS, "image_size", "recursive", "out")
MAX_LINES = 10  # printed of one kind; the JSON has all


def examine(roots: Mapping[str, str], image_size: Sequence[int] | None = None, recursive: bool = False) -> dict[str, Any]:
    """The report on the sets named by SETS, as plain containers.

    Keys: `wrong` (whether training would be), `image_size` ([H, W]; `proposed`: whether it was not given), `sets`
    (root, number, fingerprint or null, files with what is done to each), `findings` (level, kind, files, text).
    Raises FileNotFoundError or ValueError for a root without images.
    """
    surveyed = {key: survey(root, recursive or key != "image", key) for key, root in roots.items()}
    size = tuple(image_size or propose_size([folder / name for folder, names, _ in surveyed.values() for name in names]))
    pictures, findings, sets = [], [], {}
    for key, (folder, names, others) in surveyed.items():
        own = [_read(key, folder, name, size, findings) for name in names]
        findings += _left_out(key, folder, roots[key], names, others)
        if key == "side" and len(names) < 2:
            findings.append(Finding("error", "too few", (key,), "at least two, one to train on and one held out"))
        whole = all(picture.treatment for picture in own)
        pictures += own
        sets[key] = {
            "root": str(folder),
            "number": len(names),
            "fingerprint": fingerprint_of(names, [picture.digest for picture in own]) if whole else None,
            "files": {name: _as_json(picture, size) for name, picture in zip(names, own, strict=True)},
        }
    findings += findings_of(pictures)
    wrong = any(finding.level == "error" for finding in findings)
    head = {"wrong": wrong, "image_size": list(size), "proposed": image_size is None}
    return head | {"sets": sets, "findings": [asdict(finding) for finding in findings]}


def propose_size(files: Sequence[Path]) -> tuple[int, int]:
    """(height, width) in multiples of 4: the median aspect ratio of `files`, the longer one at most 256 pixels.

    Small enough for all, but for those less than half as large as most; the report lists them as enlarged.
    """
    shapes = []
    for file in files:
        try:
            check_place(file.parent, file.name)
            shapes.append(probe(file, (1, 1), read_content(file)).shown)
        except ValueError:
            continue  # the report says why
    shapes = shapes or [(256, 256)]
    aspect = median(height / width for height, width in shapes)
    fits = [min(height / aspect, width) for height, width in shapes]
    width = min(256 / max(1.0, aspect), *(fit for fit in fits if fit >= median(fits) / 2))
    return max(4, int(width * aspect + 1e-6) // 4 * 4), max(4, int(width) // 4 * 4)


def print_report(report: Mapping[str, Any]) -> None:
    """For people: what is done to each file, then errors and warnings, then the verdict."""
    size = "×".join(map(str, report["image_size"]))
    lines = [f"image_size {size}, proposed: image_size={report['image_size']}" if report["proposed"] else f"image_size {size}"]
    for key, content in report["sets"].items():
        fingerprint = f", fingerprint {content['fingerprint'][:16]}" if content["fingerprint"] else ""
        lines.append(f"{key}: {content['number']} image(s) in {content['root']}{fingerprint}")
        lines += [f"  {name}: {entry['plan']}" for name, entry in content["files"].items()]
    findings = [Finding(**finding) for finding in report["findings"]]
    lines += [line for level in ("error", "warning") for line in _lines(findings, level)]
    number = Counter(finding.level for finding in findings)
    verdict = "training would be wrong" if report["wrong"] else "training can begin"
    lines.append(f"{number['error']} error(s), {number['warning']} warning(s): {verdict}.")
    for line in lines:  # a file name need not be Unicode, nor free of control characters
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
        print(shown.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8"))


def _lines(findings: Iterable[Finding], level: str) -> Iterable[str]:
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.level == level:
            kinds.setdefault(finding.kind, []).append(finding)
    for kind, own in kinds.items():
        yield from (str(finding) for finding in own[:MAX_LINES])
        if len(own) > MAX_LINES:
            yield f"{level}: {kind}: and {len(own) - MAX_LINES} more; out=FILE.json lists all"


def main(arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(__doc__.strip())
        return 0
    try:
        words = _parsed(arguments)
        out = words.pop("out", None)
        roots = {key: words.pop(key) for key in SETS if key in words}
        report = examine(roots, **words)
        print_report(report)
        if out:
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            Path(out).write_text(json.dumps(report, indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(report["wrong"])


def _parsed(arguments: Iterable[str]) -> dict[str, Any]:
    words: dict[str, Any] = {}
    positions = iter(SETS)
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or Path(word).exists():
            key, value = next(positions, ""), word
            if not key:
                raise UserError(f"{word}: at most three folders, {', '.join(SETS)}")
        elif key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, 1)
            hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(KEYS)}."
            raise UserError(f"{key}: no such key. {hint}")
        if key in words:
            raise UserError(f"{key}: given twice, {words[key]} and {value}")
        words[key] = _value(key, value)
    if "image" not in words:
        raise UserError("no folder given, such as datamodules/starter/landscapes; --help explains")
    return words


def _value(key: str, text: str) -> Any:
    if key not in ("image_size", "recursive"):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if key == "recursive" and isinstance(value, bool):
        return value
    if key == "image_size" and isinstance(value, list) and len(value) == 2:
        if all(type(number) is int and number > 0 for number in value):
            return value
    expected = "true or false" if key == "recursive" else "[height,width], two positive whole numbers"
    raise UserError(f"{key}: expected {expected}, got {text!r}")


def _read(key: str, folder: Path, name: str, size: tuple[int, int], findings: list[Finding]) -> Picture:
    place, digest = f"{key}/{name}", ""
    try:
        check_place(folder, name)
        data = read_content(folder / name)
        digest = sha256(data)
        pixels, treatment = decode(data, folder / name, size)
    except ValueError as error:
        findings.append(Finding("error", _kind(error, digest), (place,), str(error)))
        return Picture(place, digest)
    return Picture(place, digest, treatment, look_at(pixels))


def _kind(error: ValueError, digest: str) -> str:
    if not digest:
        return "not read"
    if digest == sha256(b""):
        return "empty"
    causes = {UnidentifiedImageError: "not an image", Image.DecompressionBombError: "too large"}
    causes[Image.DecompressionBombWarning] = "too large"
    return causes.get(type(error.__cause__), "damaged")


def _left_out(key: str, folder: Path, root: str, names: Sequence[str], others: Sequence[str]) -> list[Finding]:
    found = []
    for name in others:
        if name.lower().endswith(UNREAD_ENDINGS):
            found.append(Finding("warning", "unread format", (f"{key}/{name}",), "left out, its format is not read"))
            continue
        try:
            kind = probe(folder / name, (1, 1), read_content(folder / name)).format
        except ValueError:
            found.append(Finding("note", "left out", (f"{key}/{name}",), "not an image"))
        else:
            text = f"left out because of its name, but it is a {kind} image: rename it"
            found.append(Finding("warning", "unlisted", (f"{key}/{name}",), text))
    if [Path(root).name] != list(names):  # else it is a single file
        deeper = sorted(set(visible_files(folder, recursive=True)) - {*names, *others})
        deeper = [f"{key}/{name}" for name in deeper if name.lower().endswith(ENDINGS)]
        if deeper:
            found.append(Finding("warning", "subfolder", tuple(deeper), "left out, subfolders are not searched"))
    return found


def _as_json(picture: Picture, size: tuple[int, int]) -> dict[str, Any]:
    treatment = picture.treatment
    if treatment is None:
        return {"sha256": picture.digest, "plan": "cannot be read, see below"}
    left, top, right, bottom = treatment.box
    (height, width), factor = treatment.shown, treatment.enlargement
    part = "all of it" if treatment.kept >= 0.995 else f"the middle {bottom - top:.0f}×{right - left:.0f}"
    change = "kept as it is" if factor == 1 else f"{'enlarged' if factor > 1 else 'shrunk'} to {size[0]}×{size[1]}"
    steps = [STEPS[step] for step in treatment.steps]
    plan = "; ".join([f"{treatment.format} {height}×{width}, {part}, {change}", *steps])
    return {"sha256": picture.digest, "plan": plan, **treatment._asdict()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
