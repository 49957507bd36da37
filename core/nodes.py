"""From a plain mapping `{class_path: …, keyword: value}` to the object that it describes. Standard library only."""

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, get_args, get_origin

from core.errors import UserError, nearest_hint


def is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def build_node(node: Mapping[str, Any], /, allowed: Sequence[str] = ("modules.",), **objects: Any) -> Any:
    """The object that `node` describes, whose class path begins with one of `allowed`; `objects` are further keywords. Nodes
    in its keywords are built first, but not for parameters that are annotated as mappings, since hyper-parameters are plain."""
    class_ = find_class(node.get("class_path"), allowed)
    parameters = signature_of(class_)
    plain = {name for name, parameter in parameters.items() if takes_mapping(parameter.annotation)}

    def built(value: Any) -> Any:
        if isinstance(value, Mapping):
            return build_node(value, allowed) if is_node(value) else {key: built(child) for key, child in value.items()}
        return [built(child) for child in value] if isinstance(value, list) else value

    keywords = {name: value for name, value in node.items() if name != "class_path"}
    return class_(**{name: value if name in plain else built(value) for name, value in keywords.items()}, **objects)


def signature_of(class_: type) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor, with those of its bases where it passes further keywords on."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in class_.__mro__:
        if "__init__" in vars(base) and base is not object:
            own = inspect.signature(base).parameters
            parameters = dict(own) | parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
                break
    return parameters


def find_class(class_path: Any, allowed: Sequence[str]) -> type:
    """The class of that name, which its module or another one of the same package defines: no import of an import."""
    if not isinstance(class_path, str) or not class_path.startswith(tuple(allowed)):
        raise UserError(f"class_path: {class_path!r} does not begin with one of {' '.join(allowed)}")
    module_path, _, name = class_path.rpartition(".")
    try:
        module = import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name and f"{module_path}.".startswith(f"{error.name}."):
            raise UserError(f"class_path: there is no module {error.name}.") from None
        raise
    package = f"{module_path.split('.')[0]}."
    items = vars(module).items()
    classes = {key: item for key, item in items if isinstance(item, type) and item.__module__.startswith(package)}
    if name not in classes:
        raise UserError(f"class_path: {module_path} has no class {name}.{nearest_hint(name, classes)}")
    return classes[name]


def takes_mapping(annotation: Any) -> bool:
    """True for a parameter of a type such as `Mapping[str, Any]`, `dict | None` or `list[dict[str, Any]]`."""
    kind = get_origin(annotation) or annotation
    return (isinstance(kind, type) and issubclass(kind, Mapping)) or any(map(takes_mapping, get_args(annotation)))
