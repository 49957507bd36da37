"""From a configuration node to an object: `class_path` and keywords; the constructor's signature is the schema."""

import inspect
from importlib import import_module
from typing import Any, Optional

from omegaconf import DictConfig, OmegaConf

from cli.loader import nodes
from cli.signatures import Missing, signature_of
from cli.values import choices, converted, described, out_of_range
from core.errors import UserError, nearest_hint

OWN = ("modules.", "datamodules.", "callbacks.", "experiment.", "tasks.", "reports.")
PREFIXES = (*OWN, "lightning.Trainer", "lightning.pytorch.callbacks.", "lightning.pytorch.loggers.")


def build(node: DictConfig, /, **objects: Any) -> Any:
    """The object that `node` describes. `objects` are keywords that cannot be written in YAML, such as callbacks."""
    class_, keywords = check(node, injected=tuple(objects))
    try:
        return class_(**keywords, **objects)
    except Exception as error:
        foreign = class_.__module__.startswith("lightning.")  # whose own errors have many types
        if foreign or isinstance(error, ValueError | OSError):
            raise UserError(f"{node._get_full_key(None)}: {error}") from error
        raise


def check_all(config: DictConfig, own_only: bool = False) -> None:
    """`check_keys` for every object of an experiment: first what is missing, then what needs no import, data before module,
    which takes its image_size from there, then lightning's, unless `own_only`."""
    order = sorted(nodes(config), key=lambda item: (item[1] is not None, not _is_own(item[1]), item[0] != "datamodule"))
    for key, node in order:
        if _is_own(node) or not own_only:
            check_keys(node, key)


def check(node: Any, key: str | None = None, injected: tuple[str, ...] = ()) -> tuple[type, dict[str, Any]]:
    """Class and keywords of a node; see `check_keys`."""
    keywords = check_keys(node, key, injected)
    return _locate(node.class_path, f"{key or node._get_full_key(None)}.class_path"), keywords


def check_keys(node: Any, key: str | None = None, injected: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keywords of a node as plain containers; UserError with the full key if they do not fit its class.

    `key` is the node's dotted key, by default its place in its configuration; `injected` are keywords that `build` adds.
    A class with **keywords takes other names, too, but no near misses of its named ones. The project's own classes are
    not imported for that.
    """
    if not OmegaConf.is_dict(node):
        got = "nothing" if node is None else repr(node)
        raise UserError(f"{key}: {got} given. Name a YAML file with its class_path, such as configs/fewgan.yaml.")
    key = node._get_full_key(None) if key is None else key  # OmegaConf has no public name for a node's own place
    _check_class_path(node, key)
    name_of_class = node.class_path.rsplit(".", 1)[-1]
    values = {name: value for name, value in OmegaConf.to_container(node).items() if name != "class_path"}
    signature = _signature(node.class_path, f"{key}.class_path").parameters
    named = {name: p for name, p in signature.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    for name in values:
        close = nearest_hint(name, named)
        if name in injected or (name not in named and (close or not open_ended)):
            hint = close or f" It has: {', '.join(named)}."
            raise UserError(f"{key}.{name}: {name_of_class} has no such key.{hint}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in values and name not in injected:
            raise UserError(f"{key}.{name}: missing; {name_of_class} needs it.")
    ranged = node.class_path.startswith(OWN)
    return {
        name: _checked(name, value, _hint(named.get(name)), f"{key}.{name}", ranged) for name, value in values.items()
    }


def _is_own(node: Any) -> bool:
    return not OmegaConf.is_dict(node) or not str(node.get("class_path")).startswith("lightning.")


def _check_class_path(node: DictConfig, key: str) -> None:
    class_path = node.get("class_path")
    if class_path is None:
        group = key.rpartition(".")[0]
        beside = [f"{group}.{name}" for name in node._get_parent() or () if f"{group}.{name}" != key] if group else []
        close = nearest_hint(key, beside) or (f" There are: {', '.join(beside)}." if beside else "")
        raise UserError(f"{key}: nothing of that name is configured, and no {key}.class_path is given (None).{close}")
    if not isinstance(class_path, str) or not class_path.startswith(PREFIXES):
        raise UserError(f"{key}.class_path: {class_path!r} does not begin with one of {' '.join(PREFIXES)}")


def _signature(class_path: str, key: str) -> inspect.Signature:
    if class_path.startswith(OWN):
        try:
            return signature_of(class_path)
        except Missing as error:
            name, known = error.args
            module = class_path.rpartition(".")[0]
            what = f"there is no module {name}." if name == module else f"{module} has no class {name}."
            raise UserError(f"{key}: {what}{nearest_hint(name, known)}") from None
        except TypeError:
            pass
    return inspect.signature(_locate(class_path, key))


def _locate(class_path: str, key: str) -> type:
    module_path, name = class_path.rsplit(".", 1)
    try:
        module = import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name and f"{module_path}.".startswith(f"{error.name}."):
            raise UserError(f"{key}: there is no module {error.name}.") from None
        raise
    own = (*OWN, "lightning.")  # a class that a module has only imported, such as subprocess.Popen, is not its own
    classes = {n: value for n, value in vars(module).items() if isinstance(value, type) and value.__module__.startswith(own)}
    if name not in classes:
        raise UserError(f"{key}: {module_path} has no class {name}.{nearest_hint(name, classes)}")
    return classes[name]


def _hint(parameter: inspect.Parameter | None) -> Any:
    """The type of a parameter; Any for a keyword of an open-ended class."""
    if parameter is None or parameter.annotation is parameter.empty:
        return Any
    return Optional[parameter.annotation] if parameter.default is None else parameter.annotation  # noqa: UP045, may be a text


def _checked(name: str, value: Any, hint: Any, key: str, ranged: bool) -> Any:
    """`value` as `hint` wants it and, with `ranged`, within what numbers of this name can be."""
    try:
        value = converted(value, hint)
    except ValueError:
        takes_text = hint in (str, str | None)
        advice = f" Quote a text that looks like something else: {key}=\"'{value}'\"." if takes_text else ""
        close = nearest_hint(str(value), choices(hint))
        raise UserError(f"{key}: expected {described(hint)}, got {value!r}.{close}{advice}") from None
    limit = out_of_range(name, value) if ranged else None
    if limit:
        raise UserError(f"{key}: has to be {limit}, but is {value!r}.")
    return value
