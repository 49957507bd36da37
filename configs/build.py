"""From a configuration node to an object: `class_path` and keywords; the constructor's signature is the schema."""

import inspect
from collections.abc import Iterator
from dataclasses import make_dataclass
from importlib import import_module
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.loader import ConfigError, nearest

PREFIXES = ("modules.", "datamodules.", "callbacks.", "lightning.")


def build(node: DictConfig, /, **objects: Any) -> Any:
    """The object that `node` describes. `objects` are keywords that cannot be written in YAML, such as callbacks."""
    class_, keywords = check(node, injected=tuple(objects))
    return class_(**keywords, **objects)


def check(node: Any, key: str | None = None, injected: tuple[str, ...] = ()) -> tuple[type, dict[str, Any]]:
    """Class and keywords of a node, as plain containers; ConfigError with the full key if it does not fit the class.

    Args:
        key: dotted key of the node, for messages; by default its place in its configuration.
        injected: keywords that `build` will get as objects.
    """
    if not OmegaConf.is_dict(node):
        hint = "Give the YAML file of a method first, such as configs/fewgan.yaml." if node is None else f"Got {node!r}."
        raise ConfigError(f"{key}: expected a mapping with class_path. {hint}")
    key = node._get_full_key(None) if key is None else key  # OmegaConf has no public name for a node's own place
    class_ = _locate(node.get("class_path"), f"{key}.class_path")
    values = {name: value for name, value in OmegaConf.to_container(node, resolve=True).items() if name != "class_path"}
    signature = inspect.signature(class_).parameters
    named = {name: p for name, p in signature.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    takes_more = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    for name in values:
        close = nearest(name, named)
        if name in injected or (name not in named and (close or not takes_more)):
            raise ConfigError(f"{key}.{name}: {class_.__name__} has no such key.{close}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in values and name not in injected:
            raise ConfigError(f"{key}.{name}: missing; {class_.__name__} needs it.")
    hints = _hints(class_)
    return class_, {name: _converted(value, hints.get(name, Any), f"{key}.{name}") for name, value in values.items()}


def nodes(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Key and node of every object of an experiment; loggers and callbacks that are null are left out."""
    yield from ((key, config.get(key)) for key in ("module", "datamodule", "trainer"))
    for group in ("logger", "callbacks"):
        yield from ((f"{group}.{name}", node) for name, node in (config.get(group) or {}).items() if node is not None)


def _locate(class_path: Any, key: str) -> type:
    if not isinstance(class_path, str) or not class_path.startswith(PREFIXES):
        raise ConfigError(f"{key}: {class_path!r} is not the path of a class in {', '.join(PREFIXES)}.")
    module_path, name = class_path.rsplit(".", 1)
    try:
        module = import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name and f"{module_path}.".startswith(f"{error.name}."):
            raise ConfigError(f"{key}: there is no module {error.name}.") from None
        raise
    if not isinstance(getattr(module, name, None), type):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError(f"{key}: {module_path} has no class {name}.{nearest(name, classes)}")
    return getattr(module, name)


def _hints(class_: type) -> dict[str, Any]:
    try:
        return get_type_hints(class_.__init__)
    except NameError:  # an annotation names something that is imported for type checkers only
        return {name: hint for name, hint in class_.__init__.__annotations__.items() if not isinstance(hint, str)}


def _converted(value: Any, hint: Any, key: str) -> Any:
    """`value` as `hint` wants it (a list as tuple, 1 as 1.0); hints that OmegaConf does not know pass unchecked."""
    try:
        schema = OmegaConf.structured(make_dataclass("Schema", [("value", hint)]))
    except OmegaConfBaseException:
        return value
    expected = hint.__name__ if type(hint) is type else str(hint).replace("typing.", "")
    advice = f" Quote a text that looks like something else: {key}=\"'{value}'\"." if hint in (str, str | None) else ""
    try:
        if advice and not isinstance(value, str | None):
            raise ConfigError
        return OmegaConf.to_container(OmegaConf.merge(schema, {"value": value}))["value"]
    except (OmegaConfBaseException, ConfigError):
        raise ConfigError(f"{key}: expected {expected}, got {value!r}.{advice}") from None
