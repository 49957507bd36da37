"""The keys of a configuration for readers: type, value in effect and one line of explanation each, from the source."""

import ast
import re
from fnmatch import fnmatch
from inspect import Parameter, cleandoc
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from cli.loader import FOLDER, TOP_LEVEL, nodes
from cli.schema import OWN, class_at, describe, signature_of

INJECTED = ("logger", "callbacks", "plugins")  # what train.py gives to the trainer
COMMENTED_LINE = re.compile(r"(\s*)(\w+):[^#]*(?:#\s*(.*))?")
ENTRY = re.compile(r"    (\*{0,2}\w[\w, *]*):\s*(.*)")  # of an Args section: names and the first line of their text
INLINE = re.compile(r"`(\w+)`: ([^;`]+)")


class Key(NamedTuple):
    """A row of the reference; `default` is the value in effect, as in YAML."""

    key: str
    type: str
    default: str
    description: str


def key_table(config: DictConfig) -> list[Key]:
    """Every key of a configuration that `cli.loader` has loaded, those of the top level first, then object by object."""
    config = OmegaConf.to_container(config)
    comments = yaml_comments(FOLDER / "base.yaml")
    scalars = [key for key in TOP_LEVEL if TOP_LEVEL[key] not in (dict, dict | None) and key in config]
    rows = [Key(key, describe(TOP_LEVEL[key]), in_yaml(config[key]), comments.get(key, "")) for key in scalars]
    for key, node in nodes(config):
        explanations = descriptions(node["class_path"])
        for name, parameter in signature_of(node["class_path"]).items():
            if parameter.kind is parameter.VAR_KEYWORD or (key == "trainer" and name in INJECTED):
                continue
            optional = " or null" if parameter.default is None and not describe(parameter.annotation).endswith("null") else ""
            value = node.get(name, parameter.default)
            text = explanations.get(name) or next((t for pattern, t in explanations.items() if fnmatch(name, pattern)), "")
            comment = comments.get(f"{key}.{name}", "")
            text = text or comment if node["class_path"].startswith(OWN) else comment or text
            rows.append(Key(f"{key}.{name}", describe(parameter.annotation) + optional, in_yaml(value), text))
    return rows


def help_text(config: DictConfig) -> str:
    classes, lines, heading = dict(nodes(config)), [], ""
    for row in key_table(config):
        group, _, name = row.key.rpartition(".")
        if group != heading:
            heading = group
            lines.append(f"\n{group}  ({classes[group]['class_path']})")
        kind, text = (shorten(text, 100, placeholder=" …") for text in (row.type, row.description))
        lines.append(f"  {f'{name}: {kind} = {row.default}':<60} {text}".rstrip())
    return "\n".join(lines).strip("\n")


def in_yaml(value: Any) -> str:
    if value is Parameter.empty or value == "???":
        return "required"
    value = list(value) if isinstance(value, tuple) else value
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def descriptions(class_path: str) -> dict[str, str]:
    """The first sentence about each argument, by name or pattern (`weight_*`), in the docstrings of a class and its bases."""
    _, node, bases = class_at(class_path)
    constructors = [member for member in node.body if isinstance(member, ast.FunctionDef) and member.name == "__init__"]
    found: dict[str, str] = {}
    for documented in (node, *constructors):
        section = re.split(r"^Args:\n", cleandoc(ast.get_docstring(documented) or ""), maxsplit=1, flags=re.M)[1:]
        for entry in re.split(r"\n(?=    \S)", section[0].split("\n\n")[0]) if section else ():
            if match := ENTRY.match(entry):
                text = " ".join(f"{match[2]}{entry[match.end():]}".split())
                names = [name.strip("* ") if "_" not in name else name.strip() for name in match[1].split(", ")]
                found = dict.fromkeys(names, text.split(". ")[0].rstrip(".")) | found
                found = dict(INLINE.findall(text)) | found
    for base in bases:
        found = (descriptions(base) if base else {}) | found
    return found


def yaml_comments(file: Path) -> dict[str, str]:
    """The comment behind each key of a YAML file in block style, by dotted key."""
    comments, parents = {}, {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := COMMENTED_LINE.fullmatch(line):
            depth = len(match[1])
            parents = {indent: key for indent, key in parents.items() if indent < depth} | {depth: match[2]}
            if match[3]:
                comments[".".join(parents.values())] = match[3].strip()
    return comments
