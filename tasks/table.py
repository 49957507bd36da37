"""The tasks page of the documentation and README's table of tasks, from the tasks and the protocols.

    python -m tasks.table    # renews docs/tasks.md and the table in README.md
"""

import inspect
import json
import re
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from modules import capabilities
from tasks.base import Task

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- tasks: renewed by python -m tasks.table -->", "<!-- end of tasks -->"
PAGE = """# Tasks

What a trained checkpoint can be used for. All keys of a task, with their defaults, are in `configs/tasks/TASK.yaml`;
options that only some methods have are set by `task.options.NAME=VALUE`. Results and `TASK.json` (checkpoint, settings, list of
files) go to `out`, by default `tasks/TASK` in the run folder; the next call of the same task there replaces its earlier files.
This page is generated: `python -m tasks.table`.
"""


class Row(NamedTuple):
    """A task: its name, class and example, and the methods that can do it with the defaults of their options."""

    name: str
    task: type[Task]
    example: str
    options: dict[str, dict[str, inspect.Parameter]]


def rows() -> list[Row]:
    """All tasks of one model, in the order of their names."""
    found = []
    for file in sorted(ROOT.glob("configs/tasks/*.yaml")):
        text = file.read_text(encoding="utf-8")
        module, name = re.search(r"class_path: (\S+)\.(\w+)", text).groups()
        if module.startswith("tasks."):
            task = getattr(import_module(module), name)
            able = capabilities.methods(task.capability)
            example = re.search(r"^#   python (evaluate.py CHECKPOINT .*)$", text, re.MULTILINE)[1]
            options = {method.__name__: capabilities.options(method, task.capability) for method in able}
            found.append(Row(file.stem, task, example, options))
    return found


def readme_table() -> str:
    """A line for each task: what it does, an example, the methods."""
    every = len(capabilities.methods())
    lines = ["| task | keys, for example | methods |", "|---|---|---|"]
    for row in rows():
        keys = re.search(r"\.yaml (.*) out=", row.example)[1]
        methods = "all" if len(row.options) == every else ", ".join(row.options)
        lines.append(f"| [{row.name}](docs/tasks.md#{row.name}) – {_title(row)} | `{keys}` | {methods} |")
    return "\n".join(lines)


def page() -> str:
    """docs/tasks.md: for each task what it writes, its keys, and the methods with their options."""
    parts = [PAGE]
    for row in rows():
        text = inspect.getdoc(row.task).replace("Args:\n", "Keys:\n\n")
        keys = re.sub(r"^    (\w[\w, ]*): ", r"- `\1`: ", text, flags=re.MULTILINE)
        parts += [f"## {row.name}\n", f"{_title(row)}\n", keys.replace("\n        ", "\n  ")]
        parts += [f"\n```\npython {row.example}\n```\n", "| method | options |", "|---|---|"]
        parts += [f"| {method} | {_options(options)} |" for method, options in row.options.items()]
        parts.append("")
    return "\n".join(parts)


def renewed(readme: str) -> str:
    """The text of README.md with the current table between its markers."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{readme_table()}\n{END}{rest.split(END)[1]}"


def _title(row: Row) -> str:
    return inspect.getdoc(import_module(row.task.__module__))


def _options(options: dict[str, inspect.Parameter]) -> str:
    return ", ".join(f"`{name}={json.dumps(parameter.default)}`" for name, parameter in options.items()) or "–"


if __name__ == "__main__":
    (ROOT / "docs/tasks.md").write_text(page(), encoding="utf-8")
    README = ROOT / "README.md"
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
