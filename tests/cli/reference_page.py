"""The key reference of the documentation, from the constructors and docstrings of the classes and from configs/.

    python -m tests.cli.reference_page    # renews docs/reference.md
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cli.loader import load_config, nodes
from cli.reference import Key, key_table

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs/reference.md"
PAGE = """# Keys

Every key of every configuration with its type and its value, by the object that it belongs to. `python train.py CONFIG --help`
shows those of one configuration. Keys of tasks are in [tasks](tasks.md).

This page is generated: `python -m tests.cli.reference_page`.

"""


class Configuration(NamedTuple):
    """The rows of a YAML file by key, and the class of each of its objects."""

    name: str
    rows: dict[str, Key]
    classes: dict[str, str]


def configurations() -> list[Configuration]:
    found = []
    for path in sorted(ROOT.glob("configs/*.yaml")):
        if path.name != "base.yaml":
            config = load_config([str(path), "run_name=NAME"])
            classes = {key: node.class_path for key, node in nodes(config)}
            found.append(Configuration(path.stem, {row.key: row for row in key_table(config)}, classes))
    return found


def page() -> str:
    """docs/reference.md: the keys of all configurations, then for each method its own and those that it sets otherwise."""
    every = configurations()
    shared = {key: row for key, row in every[0].rows.items() if not key.startswith("module.")}
    usual = {key: [c.rows[key].default for c in every if key in c.rows] for key in shared}
    same = {key for key, values in usual.items() if values == [values[0]] * len(every)}
    parts = [PAGE, "## All configurations\n"]
    groups: dict[str, list[str]] = {}
    for key, row in shared.items():
        groups.setdefault(key.rpartition(".")[0], []).append(_line(row, row.default if key in same else "see the method"))
    for group, lines in groups.items():
        parts += [f"### {group or 'Top level'}\n", *([f"`{every[0].classes[group]}`\n"] if group else []), *_table(lines)]
    for class_path in dict.fromkeys(sorted(c.classes["module"] for c in every)):
        members = [c for c in every if c.classes["module"] == class_path]
        keys = dict.fromkeys(key for c in members for key in c.rows if key not in same)
        names = ", ".join(f"[{c.name}](../configs/{c.name}.yaml)" for c in members)
        lines = [_line(next(c.rows[key] for c in members if key in c.rows), _values(key, members)) for key in keys]
        parts += [f"## {class_path.rpartition('.')[2]}\n", f"`{class_path}` in {names}\n", *_table(lines)]
    return "\n".join(parts)


def _values(key: str, members: list[Configuration]) -> str:
    """The value of a key, where files differ for each of them."""
    values = {c.name: c.rows[key].default for c in members if key in c.rows}
    return values[members[0].name] if len({*values.values()}) == 1 else "; ".join(f"{n}: {v}" for n, v in values.items())


def _table(lines: list[str]) -> Iterator[str]:
    yield from ("| key | type | value | meaning |", "|---|---|---|---|", *lines, "")


def _line(row: Key, value: str) -> str:
    cells = (f"`{row.key}`", row.type, value, row.description)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
