"""Signatures of the project's own classes, read from their source: mistakes are answered without importing torch."""

import ast
import builtins
import collections.abc
import inspect
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NAMES = {**vars(builtins), **vars(typing), **vars(collections.abc)}  # what annotations may be made of


class Missing(LookupError):
    """There is no such module or class. Its arguments are the name that is missing and those that are there."""


def signature_of(class_path: str) -> inspect.Signature:
    """What the constructor of a class in this repository takes, without `self`.

    Raises Missing if there is no such file or class, and TypeError for a class whose constructor is not in the repository.
    """
    module, _, name = class_path.rpartition(".")
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if not file.is_file():
        folder = next((f for f in file.parents if f.is_dir() and f.is_relative_to(ROOT)), ROOT)
        beside = (path.relative_to(ROOT).with_suffix("") for path in folder.glob("*.py") if path.stem != "__init__")
        raise Missing(module, sorted(".".join(path.parts) for path in beside))
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        raise Missing(name, sorted(classes))
    for member in classes[name].body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return _signature(member.args)
    for base in (node.id for node in classes[name].bases if isinstance(node, ast.Name)):
        origins = {alias.name: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        origin = module if base in classes else origins.get(base)
        if origin and ROOT.joinpath(*origin.split(".")).with_suffix(".py").is_file():
            return signature_of(f"{origin}.{base}")
    raise TypeError(f"{class_path} has its constructor from elsewhere")


def _signature(arguments: ast.arguments) -> inspect.Signature:
    places = [*arguments.posonlyargs, *arguments.args][1:]
    defaults = [None] * (len(places) + 1 - len(arguments.defaults)) + [*arguments.defaults]
    rows = [(a, d, inspect.Parameter.POSITIONAL_OR_KEYWORD) for a, d in zip(places, defaults[1:], strict=True)]
    rows += [(a, d, inspect.Parameter.KEYWORD_ONLY) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    parameters = [
        inspect.Parameter(a.arg, kind, default=_default(d), annotation=_annotation(a.annotation)) for a, d, kind in rows
    ]
    if arguments.kwarg:
        parameters.append(inspect.Parameter(arguments.kwarg.arg, inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


def _default(node: ast.expr | None) -> Any:
    if node is None:
        return inspect.Parameter.empty
    try:
        return ast.literal_eval(node)
    except ValueError:  # a constant of the module: there is a default, and its value does not matter here
        return ...


def _annotation(node: ast.expr | None) -> Any:
    """The type, or Any for one that only an import would tell."""
    if node is None:
        return inspect.Parameter.empty
    try:
        return eval(compile(ast.Expression(node), "annotation", "eval"), {"__builtins__": {}}, dict(NAMES))
    except NameError:
        return Any
