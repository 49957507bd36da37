"""Class labels of image files, from their folders or from a column of a CSV file, and tables of attributes."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from core.errors import UserError, nearest_hint
from datamodules.archive import read_content
from datamodules.listing import shorten

NAME_COLUMNS = ("file", "image")  # where there is neither, the first column has the file names


def read_labels(labels: str, folder: Path, files: Sequence[str]) -> tuple[list[int], list[str]]:
    """The class index of each of `files`, and the names of the classes, sorted; UserError if rows and files do not match.

    `labels` is `folder` (the first folder in a file's name is its class), or `FILE.csv:COLUMN`, with a path relative to
    `folder` or absolute.
    """
    if labels == "folder":
        if outside := [name for name in files if "/" not in name]:
            raise UserError(f"labels=folder: {folder} contains images outside of class folders: {shorten(outside)}")
        values = [name.split("/")[0] for name in files]
    else:
        file, _, column = labels.rpartition(":")
        columns = read_attributes(file, folder, files, "labels", complete=True)
        if column not in columns:
            hint = nearest_hint(column, columns) or f" It has: {', '.join(columns)}."
            raise UserError(f"labels: {file} has no column {column!r}.{hint}")
        values = columns[column]
        if empty := values.count(""):
            rank_zero_warn(f"labels: {empty} images have no value in the column {column}; they form a class of their own")
    indices = {name: index for index, name in enumerate(sorted(set(values)))}
    return [indices[value] for value in values], list(indices)


def read_attributes(
    file: str, folder: Path, files: Sequence[str], setting: str = "attributes", complete: bool = False
) -> dict[str, list[str]]:
    """The columns of a CSV file, but for the one of the names: each one's values in the order of `files`.

    UserError names files without a row or with several, and if `complete` rows without a file.
    """
    try:
        text = read_content(folder / Path(file).expanduser()).decode("utf-8-sig")
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{setting}: cannot read {file} beside the images in {folder}: {error}") from None
    reader = csv.DictReader(io.StringIO(text))
    columns = list(reader.fieldnames or ())
    key = next((name for name in NAME_COLUMNS if name in columns), columns[0] if columns else "")
    rows = [(normalize("NFC", row[key] or ""), row) for row in reader]
    counts, names = Counter(name for name, _ in rows), [normalize("NFC", name) for name in files]
    problems = {
        "images without a row": [name for name in names if name not in counts],
        "rows without an image": sorted(counts.keys() - names) if complete else [],
        "images with several rows": [name for name in names if counts[name] > 1],
    }
    if errors := [f"{problem}: {shorten(images)}" for problem, images in problems.items() if images]:
        raise UserError(f"{setting}: {file} does not fit the images in {folder}; {'; '.join(errors)}")
    by_name = dict(rows)
    return {column: [by_name[name][column] or "" for name in names] for column in columns if column != key}
