"""From a plain mapping `{class_path: …, keyword: value}` to the object that it describes. Standard library only."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from core.errors import UserError, nearest_hint


def build_node(node: Mapping[str, Any], /, allowed: Sequence[str] = ("modules.",), **objects: Any) -> Any:
    """The object that `node` describes, whose class path begins with one of `allowed`; `objects` are further keywords. Nodes in
    its keywords stay plain, as hyper-parameters are: the class builds them."""
    keywords = {name: value for name, value in node.items() if name != "class_path"}
    return find_class(node.get("class_path"), allowed)(**keywords, **objects)


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
