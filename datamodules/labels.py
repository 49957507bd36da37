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
            raise UserError(f"labels=folder: in no class folder of {folder}: {shorten(outside)}")
        values = [name.split("/")[0] for name in files]
    else:
        values = _csv_column(*labels.rsplit(":", 1), folder, files)
    indices = {name: index for index, name in enumerate(sorted(set(values)))}
    return [indices[value] for value in values], list(indices)


def read_attributes(file: str, folder: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """The columns of a CSV file, but for the one of the names: each one's values in the order of `files`.

    Rows of further files are allowed. UserError names files without a row or with several.
    """
    rows, columns, key = _read_rows("attributes", file, folder)
    _check_rows("attributes", file, folder, [row[key] for row in rows], files, complete=False)
    by_name = {row[key]: row for row in rows}
    chosen = [by_name[normalize("NFC", name)] for name in files]
    return {column: [row[column] or "" for row in chosen] for column in columns if column != key}


def _csv_column(path: str, column: str, folder: Path, files: Sequence[str]) -> list[str]:
    rows, columns, key = _read_rows("labels", path, folder)
    if column not in columns:
        hint = nearest_hint(column, columns) or f" It has: {', '.join(columns)}."
        raise UserError(f"labels: {path} has no column {column!r}.{hint}")
    _check_rows("labels", path, folder, [row[key] for row in rows], files)
    values = {row[key]: row[column] or "" for row in rows}
    if empty := [name for name in files if not values[normalize("NFC", name)]]:
        rank_zero_warn(f"labels: {len(empty)} images have no value in the column {column}; they form a class of their own")
    return [values[normalize("NFC", name)] for name in files]


def _read_rows(setting: str, path: str, folder: Path) -> tuple[list[dict[str, str]], list[str], str]:
    """Rows and columns of a CSV file, and the column with the names of files, in composed Unicode."""
    try:
        text = read_content(folder / Path(path).expanduser()).decode("utf-8-sig")
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{setting}: cannot read {path} beside the images in {folder}: {error}") from None
    reader = csv.DictReader(io.StringIO(text))
    columns = list(reader.fieldnames or ())
    key = next((name for name in NAME_COLUMNS if name in columns), columns[0] if columns else "")
    return [{**row, key: normalize("NFC", row[key] or "")} for row in reader], columns, key


def _check_rows(
    setting: str, path: str, folder: Path, rows: Sequence[str], files: Sequence[str], complete: bool = True
) -> None:
    """UserError unless each of `files` has one row, and if `complete` each row a file."""
    counts, names = Counter(rows), dict.fromkeys(normalize("NFC", name) for name in files)
    problems = {
        "images without a row": [name for name in names if name not in counts],
        "rows without an image": [name for name in counts if name not in names] if complete else [],
        "images with several rows": [name for name, count in counts.items() if count > 1 and (complete or name in names)],
    }
    if errors := [f"{problem}: {shorten(culprits)}" for problem, culprits in problems.items() if culprits]:
        raise UserError(f"{setting}: {path} does not fit the images in {folder}; {'; '.join(errors)}")
