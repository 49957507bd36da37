"""Examines folders of images before a training.

    python -m datamodules.doctor FOLDER [SIDE [REFERENCE]] [key=value …]

    python -m datamodules.doctor photos/birds
    python -m datamodules.doctor photos/birds photos/others image_size=[72,96] out=report.json
    python -m datamodules.doctor faces.zip reference=heldout recursive=true

FOLDER contains the training images, SIDE unlabelled ones (with subfolders), REFERENCE those to measure against (with
subfolders): folders, zip files or single files. image=…, side=…, reference=… name them, too.

    image_size   [height, width] of the training; without it a fitting one is proposed and used
    recursive    true: also the subfolders of FOLDER, as with labels=folder; false by default
    out          file for the report as JSON

Every file is read by the code of the training. Exit status 1: training or its measurements would be wrong; 2: a mistake in
the command; 0: neither, though there may be warnings.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image, UnidentifiedImageError
from pydantic import TypeAdapter, ValidationError

from core.errors import UserError, nearest_hint, report_user_errors
from core.files import atomic_write
from core.types import ImageSize
from datamodules.archive import read_content
from datamodules.decode import decode, probe
from datamodules.findings import STEPS, Finding, ImageFinding, findings_of, perceptual_hash, summarize
from datamodules.fingerprints import fingerprint_of, sha256
from datamodules.listing import LEFT_OUT, check_file_name, list_files, printable

SETS = ("image", "side", "reference")
TYPES = {"image_size": (ImageSize, "[height,width], two positive whole numbers"), "recursive": (bool, "true or false")}
KEYS = (*SETS, *TYPES, "out")
CAUSES = {
    UnidentifiedImageError: "not an image",
    Image.DecompressionBombError: "too large",
    Image.DecompressionBombWarning: "too large",
}


def examine(roots: Mapping[str, str], image_size: Sequence[int] | None = None, recursive: bool = False) -> dict[str, Any]:
    """The report on the sets named by SETS, as plain containers; UserError for a root without images."""
    listings = {key: list_files(root, recursive or key != "image", key) for key, root in roots.items()}
    size = tuple(image_size or propose_size([listed.folder / name for listed in listings.values() for name in listed.images]))
    findings, rows, sets = [], [], {}
    for key, listed in listings.items():
        images = [_read(key, listed.folder, name, size, findings) for name in listed.images]
        for reason, names in listed.left_out.items():
            level = "warning" if reason in LEFT_OUT else "note"
            findings += [Finding(level, reason, (f"{key}/{name}",), LEFT_OUT.get(reason, "left out")) for name in names]
        if key == "side" and len(images) < 2:
            findings.append(Finding("error", "too few", (key,), "at least two are needed, one to train on and one held out"))
        readable = all(image.treatment for image in images)
        rows += images
        sets[key] = {
            "root": str(listed.folder),
            "number": len(images),
            "fingerprint": fingerprint_of(listed.images, [image.digest for image in images]) if readable else None,
            "files": {name: _as_json(image) for name, image in zip(listed.images, images, strict=True)},
        }
    findings += findings_of(rows)
    wrong = any(finding.level == "error" for finding in findings)
    head = {"wrong": wrong, "image_size": list(size), "proposed": image_size is None}
    return head | {"sets": sets, "findings": [finding._asdict() for finding in findings]}


def propose_size(files: Sequence[Path]) -> tuple[int, int]:
    """(height, width) in multiples of 4: the median aspect ratio of `files`, the longer one at most 256 pixels, and small
    enough for all, but for those less than half as large as most."""
    shapes = []
    for file in files:
        with suppress(UserError):  # the report gives the reason
            check_file_name(file.parent, file.name)
            shapes.append(probe(file, (1, 1)).shape)
    shapes = shapes or [(256, 256)]
    aspect = median(height / width for height, width in shapes)
    fits = [min(height / aspect, width) for height, width in shapes]
    width = min(256 / max(1.0, aspect), *(fit for fit in fits if fit >= median(fits) / 2))
    return max(4, int(width * aspect + 1e-6) // 4 * 4), max(4, int(width) // 4 * 4)


def print_report(report: Mapping[str, Any]) -> None:
    size = "×".join(map(str, report["image_size"]))
    lines = [f"image_size {size}" + f", proposed: image_size={report['image_size']}" * report["proposed"]]
    for key, images in report["sets"].items():
        fingerprint = f", fingerprint {images['fingerprint'][:16]}" if images["fingerprint"] else ""
        lines.append(f"{key}: {images['number']} image(s) in {images['root']}{fingerprint}")
        lines += [f"  {name}: {entry['plan']}" for name, entry in images["files"].items()]
    findings = {level: [Finding(**f) for f in report["findings"] if f["level"] == level] for level in ("error", "warning")}
    lines += [f"{level}: {line}" for level, group in findings.items() for line in summarize(group)]
    verdict = "training would be wrong" if report["wrong"] else "training can begin"
    lines.append(f"{len(findings['error'])} error(s), {len(findings['warning'])} warning(s): {verdict}.")
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name may have characters that the terminal has not
    for line in lines:
        print("".join(c if c.isprintable() else repr(c)[1:-1] for c in printable(line)))


def main(arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(__doc__.strip())
        return 0
    with report_user_errors() as errors:
        options = _parsed(arguments)
        out = options.pop("out", None)
        report = examine({key: options.pop(key) for key in SETS if key in options}, **options)
        print_report(report)
        if out:
            with atomic_write(out) as file:
                file.write(json.dumps(report, indent=1).encode() + b"\n")
        return int(report["wrong"])
    return errors.exit_code


def _parsed(arguments: Iterable[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    positions = iter(SETS)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or Path(argument).exists():
            key, value = next(positions, ""), argument
        if not key:
            raise UserError(f"{argument}: at most three folders, {', '.join(SETS)}")
        if key not in KEYS:
            raise UserError(f"{key}: no such key.{nearest_hint(key, KEYS)} Keys: {', '.join(KEYS)}.")
        if key in options:
            raise UserError(f"{key}: given twice, {options[key]} and {value}")
        kind, expected = TYPES.get(key, (None, ""))
        try:
            options[key] = TypeAdapter(kind).validate_json(value, strict=True) if kind else value
        except ValidationError:
            raise UserError(f"{key}: expected {expected}, got {value!r}") from None
    if "image" not in options:
        raise UserError("no folder given, such as datamodules/starter/landscapes; --help explains")
    return options


def _read(key: str, folder: Path, name: str, size: tuple[int, int], findings: list[Finding]) -> ImageFinding:
    image, digest = f"{key}/{name}", ""
    try:
        check_file_name(folder, name)
        data = read_content(folder / name)
        digest = sha256(data)
        pixels, treatment = decode(data, folder / name, size)
    except UserError as error:
        kind = {"": "not read", sha256(b""): "empty"}.get(digest) or CAUSES.get(type(error.__cause__), "damaged")
        findings.append(Finding("error", kind, (image,), str(error)))
        return ImageFinding(image, digest)
    return ImageFinding(image, digest, treatment, perceptual_hash(pixels))


def _as_json(image: ImageFinding) -> dict[str, Any]:
    treatment = image.treatment
    if treatment is None:
        return {"sha256": image.digest, "plan": "cannot be read, see below"}
    (height, width), (left, top, right, bottom) = treatment.shape, treatment.box
    part = f"the middle {bottom - top:.0f}×{right - left:.0f} scaled by {treatment.enlargement:.3g}"
    plan = "; ".join([f"{treatment.format} {height}×{width}", part, *(STEPS[step] for step in treatment.steps)])
    return {"sha256": image.digest, "plan": plan, **treatment._asdict()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
