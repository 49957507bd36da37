"""From a configuration node to an object: `class_path` and keywords; the constructor's signature is the schema."""

import inspect
from dataclasses import make_dataclass
from importlib import import_module
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.loader import ConfigError, nearest

PREFIXES = ("modules.", "datamodules.", "callbacks.", "lightning.")


def build(node: DictConfig, /, **objects: Any) -> Any:
    """The object that `node` describes. `objects` are keywords that cannot be written in YAML, such as callbacks."""
    class_, keywords = check(node, injected=tuple(objects))
    try:
        return class_(**keywords, **objects)
    except Exception as error:
        if isinstance(error, ValueError) or class_.__module__.startswith("lightning."):  # whose own errors have many types
            raise ConfigError(f"{node._get_full_key(None)}: {error}") from error
        raise


def check(node: Any, key: str | None = None, injected: tuple[str, ...] = ()) -> tuple[type, dict[str, Any]]:
    """Class and keywords of a node, as plain containers; ConfigError with the full key if it does not fit the class.

    `key` is the node's dotted key, by default its place in its configuration; `injected` are keywords that `build` adds.
    A class with **keywords takes other names, too, but no near misses of its named ones.
    """
    if not OmegaConf.is_dict(node):
        got = "nothing" if node is None else repr(node)
        raise ConfigError(f"{key}: {got} given. Name a YAML file with its class_path, such as configs/fewgan.yaml.")
    key = node._get_full_key(None) if key is None else key  # OmegaConf has no public name for a node's own place
    class_ = _locate(node.get("class_path"), f"{key}.class_path")
    values = {name: value for name, value in OmegaConf.to_container(node).items() if name != "class_path"}
    signature = inspect.signature(class_).parameters
    named = {name: p for name, p in signature.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    for name in values:
        close = nearest(name, named)
        if name in injected or (name not in named and (close or not open_ended)):
            hint = close or f" It has: {', '.join(named)}."
            raise ConfigError(f"{key}.{name}: {class_.__name__} has no such key.{hint}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in values and name not in injected:
            raise ConfigError(f"{key}.{name}: missing; {class_.__name__} needs it.")
    hints = {name: parameter.annotation for name, parameter in named.items()}
    return class_, {name: _converted(value, hints.get(name, Any), f"{key}.{name}") for name, value in values.items()}


def _locate(class_path: Any, key: str) -> type:
    if not isinstance(class_path, str) or not class_path.startswith(PREFIXES):
        raise ConfigError(f"{key}: {class_path!r} does not begin with one of {' '.join(PREFIXES)}")
    module_path, name = class_path.rsplit(".", 1)
    try:
        module = import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name and f"{module_path}.".startswith(f"{error.name}."):
            raise ConfigError(f"{key}: there is no module {error.name}.") from None
        raise
    classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    if name not in classes:
        raise ConfigError(f"{key}: {module_path} has no class {name}.{nearest(name, classes)}")
    return classes[name]


def _converted(value: Any, hint: Any, key: str) -> Any:
    """`value` as `hint` wants it (a list as tuple, 1 as 1.0); hints that OmegaConf does not know pass unchecked."""
    try:
        schema = OmegaConf.structured(make_dataclass("Schema", [("value", hint)]))
    except (OmegaConfBaseException, NameError):
        return value
    takes_text = hint in (str, str | None)
    try:
        if not takes_text or isinstance(value, str | None):  # OmegaConf would make a text of any value
            return OmegaConf.to_container(OmegaConf.merge(schema, {"value": value}))["value"]
    except OmegaConfBaseException:
        pass
    expected = hint.__name__ if type(hint) is type else str(hint).replace("typing.", "")
    advice = f" Quote a text that looks like something else: {key}=\"'{value}'\"." if takes_text else ""
    raise ConfigError(f"{key}: expected {expected}, got {value!r}.{advice}")
