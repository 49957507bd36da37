"""The constructor of a class as the schema of its configuration: read from source, values checked, defaults completed.

Neither the project's classes nor Lightning's are imported for that, so that a user error is reported before torch is imported.
"""

import ast
import builtins
import inspect
import json
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic.fields import FieldInfo

from core.errors import ErrorCollector, UserError, nearest_hint

ROOT = Path(__file__).parent.parent
OWN = ("modules.", "datamodules.", "callbacks.", "experiment.", "tasks.", "reports.")
PREFIXES = (*OWN, "lightning.Trainer", "lightning.pytorch.callbacks.", "lightning.pytorch.loggers.")
IMPORTABLE = {*sys.stdlib_module_names, "core", "pydantic"}  # packages that annotations may take names from
FORMER = dict.fromkeys(
    ("datamodules.fewshot.FewShotDataModule", "datamodules.side.SideDataModule", "datamodules.source.SourceDataModule"),
    "datamodules.image_datamodule.ImageDataModule",
)
STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
SYMBOLS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
NAMES = {NoneType: "null", dict: "mapping", Mapping: "mapping", Sequence: "list", tuple: "list", Any: "any value"}
OPEN_ENDED = {"more": inspect.Parameter("more", inspect.Parameter.VAR_KEYWORD)}
Parameters = dict[str, inspect.Parameter]


class Foreign:
    """Stands for a class that only an import would give; no value of a YAML file is an instance."""


@cache
class Source(dict):
    """The top-level names of a Python file, evaluated when an annotation or a default asks for them."""

    def __init__(self, file: Path) -> None:
        super().__init__(vars(builtins))
        self.assigned, self.classes, self.imported = {}, {}, {}
        for node in ast.parse(file.read_bytes()).body:
            match node:
                case ast.Assign():
                    self.assigned |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
                case ast.ClassDef():
                    self.classes[node.name] = node
                case ast.ImportFrom():
                    self.imported |= {name.asname or name.name: (node.module or "", name.name) for name in node.names}

    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):
            raise KeyError(name)
        module, original = self.imported.get(name, ("", name))
        if name in self.assigned:
            self[name] = self.evaluate(self.assigned[name])
        elif module.split(".")[0] in IMPORTABLE:
            self[name] = getattr(import_module(module), original)
        else:
            self[name] = Source(file)[original] if (file := _file(module)) else type(name, (Foreign,), {})
        return self[name]

    def evaluate(self, node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), "source", "eval"), {"__builtins__": {}}, self)

    def evaluate_or(self, otherwise: Any, node: ast.expr) -> Any:
        """The value, or `otherwise` for one that only an import could tell."""
        with suppress(AttributeError, NameError, TypeError):
            return self.evaluate(node)
        return otherwise

    def parameters(self, arguments: ast.arguments) -> Parameters:
        keyword, empty = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
        names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        defaults = [*arguments.defaults, *arguments.kw_defaults]
        found = {}
        for argument, default in zip(names[1:], [*[None] * (len(names) - 1 - len(defaults)), *defaults], strict=True):
            value = self.evaluate_or(..., default) if default else empty
            hint = self.evaluate_or(Any, argument.annotation) if argument.annotation else Any
            if isinstance(hint, str):  # a type in quotes
                hint = self.evaluate_or(Any, ast.parse(hint, mode="eval").body)
            found[argument.arg] = inspect.Parameter(argument.arg, keyword, default=value, annotation=hint)
        if arguments.kwarg:
            found[arguments.kwarg.arg] = inspect.Parameter(arguments.kwarg.arg, inspect.Parameter.VAR_KEYWORD)
        return found


def complete(node: Any, key: str, errors: ErrorCollector, injected: Collection[str] = ()) -> Any:
    """`node`, whose dotted key is `key`, with every keyword of its class, each converted to its type; also nodes within.

    A class of Lightning gets no defaults. One with **keywords takes other names, but no near misses of its named ones.
    `injected` are keywords that the program adds and a configuration must not have.
    """
    if not isinstance(node, Mapping):
        errors.add(key, f"{key}: expected a mapping with class_path, got {node!r}.")
        return node
    class_path = node.get("class_path")
    try:
        parameters = {name: p for name, p in signature_of(class_path).items() if name not in injected}
    except UserError as error:
        errors.add(key, f"{key}.class_path: {error}")
        return node
    class_name = class_path.rpartition(".")[2]
    named = {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    further = {name: value for name, value in node.items() if name not in ("class_path", *named)}
    for name in further:
        close = nearest_hint(str(name), named)
        if close or len(named) == len(parameters):
            option = f" An option of the method is set by {key}.options.{name}=…" if "options" in named else ""
            hint = close or f"{option} It has: {', '.join(named)}."
            errors.add(f"{key}.{name}", f"{key}.{name}: {class_name} has no such key.{hint}")
    completed = {"class_path": class_path}
    for name, parameter in named.items():
        if name in node:
            completed[name] = _checked(node[name], parameter, f"{key}.{name}", errors)
        elif parameter.default is parameter.empty:
            errors.add(f"{key}.{name}", f"{key}.{name}: missing; {class_name} needs it.")
        elif class_path.startswith(OWN):
            completed[name] = parameter.default
    return completed | further


def _checked(value: Any, parameter: inspect.Parameter, key: str, errors: ErrorCollector) -> Any:
    def nested(value: Any, key: str) -> Any:
        if isinstance(value, Mapping) and "class_path" in value:
            return complete(value, key, errors)
        if isinstance(value, Mapping):
            return {name: nested(child, f"{key}.{name}") for name, child in value.items()}
        return [nested(child, f"{key}.{i}") for i, child in enumerate(value)] if isinstance(value, list | tuple) else value

    hint = Optional[parameter.annotation] if parameter.default is None else parameter.annotation  # noqa: UP045, any hint
    value = nested(value, key)
    try:
        return convert(value, hint)
    except ValueError:
        kinds = members(hint)
        close = nearest_hint(str(value), (kind for kind in kinds if isinstance(kind, str)))
        unquoted = str in kinds and not isinstance(value, str)
        advice = close or (quoting_advice(key, errors.texts.get(key, value)) if unquoted else "")
        errors.add(key, f"{key}: expected {describe(hint)}, got {value!r}.{advice}")
        return value


def convert(value: Any, hint: Any) -> Any:
    """`value`, made of what YAML can hold, as the type `hint`: a list as tuple, 1 as 1.0; a bool is no int. Else ValueError."""
    try:
        return TypeAdapter(hint, config=STRICT).validate_json(json.dumps(value))
    except TypeError as error:  # what JSON cannot hold
        raise ValueError(str(error)) from None
    except PydanticUndefinedAnnotation:  # a type in quotes, of Lightning
        return value


def members(hint: Any) -> list[Any]:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return members(parts[0])
    return [member for part in parts for member in members(part)] if origin in (Union, UnionType, Literal) else [hint]


def describe(hint: Any) -> str:
    """A type for people: int >= 1, list[float] or null, 'min' or 'max'."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        field = FieldInfo.from_annotation(hint)
        limits = [(SYMBOLS[name], getattr(limit, name)) for limit in field.metadata for name in SYMBOLS if hasattr(limit, name)]
        numbers = " and ".join(f"{symbol} {limit:.10g}" for symbol, limit in limits)
        return field.description or f"{describe(parts[0])} {numbers}".strip()
    if origin in (Union, UnionType):
        names = dict.fromkeys(describe(part) for part in parts if getattr(part, "__base__", None) is not Foreign)
        # typing's cache returns float | int for int | float if that was written first anywhere in the process.
        return " or ".join(sorted(names, key=lambda name: {"float": 1, "null": 2}.get(name, 0)))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin and parts:
        return f"{describe(origin)}[{', '.join('...' if part is ... else describe(part) for part in parts)}]"
    return NAMES.get(hint) or getattr(hint, "__name__", str(hint))


def quoting_advice(key: str, text: Any) -> str:
    """Advice to quote a text that YAML takes for something else, ready for a shell."""
    return f" Quote a text: {shlex.quote(f'{key}={json.dumps(str(text), ensure_ascii=False)}')}"


def signature_of(class_path: Any) -> Parameters:
    """The parameters of a class's constructor; open-ended where a class that is not read from source has it."""
    if not isinstance(class_path, str) or not class_path.startswith(PREFIXES):
        raise UserError(f"{class_path!r} does not begin with one of {' '.join(PREFIXES)}")
    if class_path in FORMER:
        raise UserError(f"{class_path} is {FORMER[class_path]} now")
    return _constructor(class_path)


def class_at(class_path: str) -> tuple[Source, ast.ClassDef, list[str | None]]:
    """The file of a class, its definition, and the paths of its bases; None for a base that is not read from source."""
    module, _, name = class_path.rpartition(".")
    file = _file(module)
    if file is None:
        folder = next(folder for folder in ROOT.joinpath(*module.split(".")).parents if folder.is_dir())
        beside = (path.relative_to(ROOT).with_suffix("") for path in folder.glob("*.py") if path.stem != "__init__")
        raise UserError(f"there is no module {module}.{nearest_hint(module, ('.'.join(path.parts) for path in beside))}")
    source = Source(file)
    if file.name == "__init__.py" and name in source.imported:
        return class_at(".".join(source.imported[name]))
    if name not in source.classes:
        known = [*source.classes, *(source.imported if file.name == "__init__.py" else ())]
        raise UserError(f"{module} has no class {name}.{nearest_hint(name, known)}")
    local, bases = {known: (module, known) for known in source.classes}, map(ast.unparse, source.classes[name].bases)
    origins = [(source.imported | local).get(base, ("", base)) for base in bases]
    return source, source.classes[name], [".".join(origin) if _file(origin[0]) else None for origin in origins]


@cache
def _constructor(class_path: str) -> Parameters:
    source, node, bases = class_at(class_path)
    inherited = next((_constructor(base) for base in bases if base and base.startswith(OWN)), {})
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            parameters = source.parameters(member.args)
            named = {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
            if not inherited or len(named) == len(parameters):
                return parameters
            return named | {name: p for name, p in inherited.items() if name not in named}  # **keywords are the base's
    if any(ast.unparse(decorator).startswith("dataclass") for decorator in node.decorator_list):
        items = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        names = [ast.arg(item.target.id, item.annotation) for item in items]
        own = ast.arguments([], [ast.arg("self")], kwonlyargs=names, kw_defaults=[i.value for i in items], defaults=[])
        fields = source.parameters(own)
        return {name: p for name, p in inherited.items() if name not in fields} | fields  # as for kw_only
    return next(filter(None, (_constructor(base) if base else OPEN_ENDED for base in bases)), {})


def _file(module: str) -> Path | None:
    if not f"{module}.".startswith((*OWN, "lightning.")):
        return None
    root = Path(find_spec("lightning").origin).parents[1] if module.startswith("lightning") else ROOT
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
