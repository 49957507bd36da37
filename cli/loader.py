"""From a command line to one configuration: base.yaml, then YAML files, then key=value; checked, and complete."""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from unicodedata import normalize

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from cli.schema import complete, convert, describe, members, quoting_advice
from core.errors import ErrorCollector, UserError, nearest_hint
from core.types import PathStr, Seed

FOLDER = Path(__file__).parent.parent / "configs"
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", description="letters, digits, _ and -")]
TOP_LEVEL: dict[str, Any] = {
    "seed": Seed,
    "run_name": RunName,
    "run_dir": PathStr,
    "resume": PathStr | None,
    "module": dict,
    "datamodule": dict,
    "trainer": dict,
    "logger": dict | None,
    "callbacks": dict | None,
}
EVALUATION_KEYS = {"out": PathStr | None, "task": dict}  # further ones of evaluate.py
OBJECTS = ("module", "datamodule", "trainer", "task")  # nodes; loggers and callbacks are groups of nodes
OPTIONS = ("--dry-run", "--help")
# What Lightning takes and the methods do not: they optimize manually, with float32 noise and buffers.
TRAINER_LIMITS: dict[str, tuple[tuple[Any, ...], str]] = {
    "gradient_clip_val": ((None,), "methods clip their own gradients, some have module.clip_norm"),
    "accumulate_grad_batches": ((None, 1), "raise datamodule.batch_size or trainer.devices"),
    "precision": ((None, 32, "32", "32-true", 16, "16", "16-mixed", "bf16", "bf16-mixed"), "use 32-true or bf16-mixed"),
}
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")


class Loader(yaml.SafeLoader):
    """YAML with unique keys, without dates and without octal, hexadecimal and base-60 numbers: 007, 0x1 and 12:30 are texts."""

    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {key.value}", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:int", INTEGER, "-+0123456789")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, "-+0123456789.")


def load_config(arguments: Sequence[str], start: Mapping[str, Any] | None = None) -> DictConfig:
    """`read_config`, every object checked and with all keywords of its class; one UserError for all messages."""
    errors = ErrorCollector()
    config = OmegaConf.to_container(read_config(arguments, start, errors))
    if start is None and "module" not in config:
        errors.add("module", "module: missing. Pass a YAML file that sets module.class_path, such as configs/fewgan.yaml.")
        config.pop("datamodule", None)
    for key, node in list(nodes(config)):
        group, _, name = key.rpartition(".")
        siblings = config[group] if group else config
        if isinstance(node, Mapping) and "class_path" not in node:
            others = [f"{group}.{other}" for other in siblings if group and other != name]
            known = nearest_hint(key, others) or (f" There are: {', '.join(others)}." if others else "")
            errors.add(key, f"{key}: no {key}.class_path is given.{known}")
        else:
            siblings[name] = complete(node, key, errors)
    trainer = config.get("trainer", {})
    for name, (allowed, reason) in TRAINER_LIMITS.items():
        if trainer.get(name) not in allowed:
            errors.add(f"trainer.{name}", f"trainer.{name}: {trainer[name]!r} is not supported; {reason}.")
    errors.raise_any()
    return OmegaConf.create(json.loads(json.dumps(config)))  # with lists for tuples, as YAML and checkpoints hold it


def read_config(
    arguments: Sequence[str], start: Mapping[str, Any] | None = None, errors: ErrorCollector | None = None
) -> DictConfig:
    """The resolved configuration of a command line, its objects as they are written; evaluate.py has `start` for base.yaml.
    `errors` gets a message by key or argument; without it, and for a file that cannot be read, UserError is raised."""
    keys = TOP_LEVEL if start is None else TOP_LEVEL | EVALUATION_KEYS
    found, unread = ErrorCollector() if errors is None else errors, ErrorCollector()
    found.texts = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    layers = [("start", _read(FOLDER / "base.yaml") if start is None else OmegaConf.create(dict(start)))]
    for argument in sorted(arguments, key=lambda argument: "=" in argument):  # files first, each group in its order
        is_override = "=" in argument and not argument.startswith("-")
        with (found if is_override else unread).collect(argument):
            layers.append((argument, _override(argument, keys) if is_override else _read(_file_name(argument))))
    if unread:
        raise UserError(*unread.values(), *found.values())
    merged = OmegaConf.create()
    for source, layer in layers:
        for key in [key for key in layer if key not in keys]:
            advice = " Tasks are for evaluate.py." if key == "task" else f" The top level has: {', '.join(keys)}."
            found.add(str(key), f"{key}: no such key.{nearest_hint(str(key), keys)}{advice}")
            del layer[key]
        try:
            merged = OmegaConf.merge(merged, layer)
        except (TypeError, OmegaConfBaseException):
            found.add(source, f"{source}: sets keys below one that has a value, or a value for one that has keys.")
    _resolve(merged, found)
    config = OmegaConf.create({key: merged[key] for key in keys if key in merged})  # in one order, for readers
    for key, value in OmegaConf.to_container(config).items():
        try:
            config[key] = convert(value, keys[key])
        except ValueError:
            found.add(key, f"{key}: expected {describe(keys[key])}, got {value!r}.")
            del config[key]
    if errors is None:
        found.raise_any()
    return config


def nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted key and node of every object of a configuration; loggers and callbacks that are null are left out."""
    yield from ((key, config[key]) for key in OBJECTS if key in config)
    for group in ("logger", "callbacks"):
        yield from ((f"{group}.{name}", node) for name, node in (config.get(group) or {}).items() if node is not None)


def _file_name(argument: str) -> Path:
    if argument.startswith("-"):
        raise UserError(f"{argument}: no such option.{nearest_hint(argument, OPTIONS)} Keys are set by key=value.")
    if argument.endswith((".yaml", ".yml")):
        return Path(argument)
    if re.fullmatch(rf"({'|'.join(TOP_LEVEL)})(\.[\w.-]+)?", argument):
        raise UserError(f"{argument}: no value; a key is set by key=value, without blanks: {argument}=…")
    files = {path.stem: f" Did you mean {path.relative_to(FOLDER.parent)}?" for path in FOLDER.glob("**/*.yaml")}
    close = difflib.get_close_matches(argument, files, n=1)
    hint = files[close[0]] if close else nearest_hint(argument, TOP_LEVEL)
    raise UserError(f"{argument}: neither a .yaml file nor key=value.{hint}")


def _read(file: Path) -> DictConfig:
    try:
        text = file.read_text(encoding="utf-8")
        if "*" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise UserError(f"{file}: YAML aliases (*name) are not supported, they could fill the memory; use ${{key}}.")
        content = OmegaConf.create(yaml.load(text, Loader))
    except FileNotFoundError:
        known = sorted(str(path) for folder in {file.parent, Path("configs")} for path in folder.glob("**/*.yaml"))
        same_name = [path for path in known if normalize("NFC", Path(path).name) == normalize("NFC", file.name)]
        hint = f" Did you mean {same_name[0]}?" if same_name else nearest_hint(str(file), known)
        there = f" There are: {', '.join(known)}" if known else ""
        raise UserError(f"{file}: no such file.{hint or there}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{line}: {error.problem or error.context}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"{file}: not readable as YAML: {error}") from None
    if not isinstance(content, DictConfig):
        raise UserError(f"{file}: expected keys with values (`key: value`) at the top level.")
    return content


def _override(argument: str, keys: Mapping[str, Any]) -> DictConfig:
    key, text = argument.split("=", 1)
    if not re.fullmatch(r"\w+(\.[\w-]+)*", key):
        raise UserError(f"{argument}: {key!r} is not a key such as trainer.devices.")
    if not text.strip():
        raise UserError(f"{argument}: no value. Write {key}=null to switch something off.")
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{key}: {text!r} is not UTF-8; a name in a configuration has to be: rename the file.")
    literal = str in members(keys.get(key)) and text != "null"  # a run may be named 007 or no
    try:
        OmegaConf.update(config := OmegaConf.create(), key, text if literal else parse_value(text))
        return config
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{argument}: the value is not YAML ({problem}).{quoting_advice(key, text)}") from None


def parse_value(text: str) -> Any:
    """The YAML value of an override. What is no scalar, flow list or flow mapping to its end is a text: "birds #1"."""
    node = yaml.compose(text, Loader)
    is_whole = node is not None and node.end_mark.index == len(text.rstrip())
    return yaml.load(text, Loader) if is_whole and (isinstance(node, yaml.ScalarNode) or node.flow_style) else text


def _resolve(config: DictConfig, errors: ErrorCollector) -> None:
    """Replaces interpolations by their values, those that have none by null; `~` in the top level's paths comes first."""
    for key, text in _texts(OmegaConf.to_container(config), ""):
        if text == "???":
            errors.add(key, f"{key}: needs a value, for example {key}=… on the command line.")
        elif "${" in text:
            errors.copies[key] = text.removeprefix("${").removesuffix("}")
            unknown = [name for name in re.findall(r"\$\{\s*([\w.]+)\s*:", text) if name != "oc.env"]
            try:
                if unknown:
                    raise OmegaConfBaseException(f"{text!r} uses {unknown[0]!r}; the only resolver allowed is oc.env")
                OmegaConf.select(config, key)
            except (OmegaConfBaseException, RecursionError) as error:
                errors.add(key, f"{key}: {str(error).splitlines()[0]}.")
                OmegaConf.update(config, key, None)
    for key in config:
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], str):
            config[key] = os.path.expanduser(config[key])
    OmegaConf.resolve(config)


def _texts(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, Mapping | list):
        for name, child in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _texts(child, f"{key}.{name}" if key else str(name))
