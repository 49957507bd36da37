"""From the words of a command line to one configuration: base.yaml, then YAML files, then key=value, each from left to right.

Imports neither torch nor lightning, so that help and mistakes are answered at once.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

FOLDER = Path(__file__).parent
MAPPING = (DictConfig,)
MAPPING_OR_NONE = (DictConfig, type(None))
TOP_LEVEL: dict[str, tuple[type, ...]] = {
    "seed": (int,),
    "run_name": (str,),
    "run_dir": (str,),
    "resume": (str, type(None)),
    "module": MAPPING,
    "datamodule": MAPPING,
    "trainer": MAPPING,
    "logger": MAPPING_OR_NONE,
    "callbacks": MAPPING_OR_NONE,
}
TYPE_NAMES = {DictConfig: "mapping", type(None): "null"}


class ConfigError(ValueError):
    """A mistake of the user in a file or on the command line; the message is all that has to be shown."""


def load_config(
    arguments: Iterable[str],
    start: Mapping[str, Any] | None = None,
    extra_keys: Mapping[str, tuple[type, ...]] | None = None,
) -> DictConfig:
    """The resolved configuration of command-line words; ConfigError for everything that is not in order.

    Args:
        arguments: names of YAML files and `dotted.key=value`, where a value is YAML (`[48, 64]`, `null`, `1e-4`).
        start: a configuration to use in place of base.yaml, such as the one of a checkpoint.
        extra_keys: top-level keys beside `TOP_LEVEL`, with the types that they may have (`MAPPING`, `(str,)`).
    """
    keys = {**TOP_LEVEL, **(extra_keys or {})}
    files, overrides = _sorted_words(arguments)
    layers = [_read(FOLDER / "base.yaml") if start is None else OmegaConf.create(dict(start))]
    layers += [_read(Path(name)) for name in files]
    layers += [_override(word, keys) for word in overrides]
    for layer in layers:
        for key in layer:
            if key not in keys:
                raise ConfigError(f"{key}: no such key.{nearest(str(key), keys)} The top level has: {', '.join(keys)}.")
    config = _resolve(OmegaConf.merge(*layers))
    for key, kinds in keys.items():
        if key in config and not (isinstance(config[key], kinds) and not isinstance(config[key], bool)):
            raise ConfigError(f"{key}: expected {' or '.join(TYPE_NAMES.get(k, k.__name__) for k in kinds)}, got {config[key]!r}.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", config.run_name):
        raise ConfigError(f"run_name: {config.run_name!r} is not made of letters, digits, _ and - alone.")
    return config


def nearest(word: str, known: Iterable[str]) -> str:
    """" Did you mean a or b?" for the known words most like `word`, else an empty text; starts with a blank."""
    close = difflib.get_close_matches(word, [str(k) for k in known], n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _sorted_words(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    files, overrides = [], []
    for word in arguments:
        if word.startswith("-"):
            raise ConfigError(f"{word}: no such option.{nearest(word, ['--dry-run', '--help'])} Keys are given as key=value.")
        if "=" in word:
            overrides.append(word)
        elif word.endswith((".yaml", ".yml")):
            files.append(word)
        else:
            raise ConfigError(f"{word}: neither a .yaml file nor key=value.{nearest(word, TOP_LEVEL)}")
    return files, overrides


def _read(file: Path) -> DictConfig:
    try:
        content = OmegaConf.load(file)
    except FileNotFoundError:
        known = {str(p) for folder in {file.parent, Path("configs"), FOLDER} for p in folder.glob("**/*.yaml")}
        same_name = [p for p in sorted(known) if Path(p).name == file.name]
        hint = f" Did you mean {same_name[0]}?" if same_name else nearest(str(file), known)
        raise ConfigError(f"{file}: no such file.{hint}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{file}, line {line}: {error.problem or error.context}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file}: not readable as YAML: {error}") from None
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{file}: expected keys with values (`key: value`) at the top level.")
    return content


def _override(word: str, keys: Mapping[str, tuple[type, ...]]) -> DictConfig:
    key, text = word.split("=", 1)
    if not re.fullmatch(r"\w+(\.[\w-]+)*", key):
        raise ConfigError(f"{word}: {key!r} is not a key such as trainer.devices.")
    if not text.strip():
        raise ConfigError(f"{word}: no value. Write {key}=null to switch something off.")
    if str in keys.get(key, ()) and text != "null":
        return OmegaConf.create({key: text})  # a run may be named 007 or no, which YAML takes for 7 and false
    try:
        return OmegaConf.from_dotlist([word])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{word}: the value is not YAML ({problem}). Quote a text: {key}=\"'…'\".") from None


def _resolve(config: DictConfig) -> DictConfig:
    for key, text in _texts(OmegaConf.to_container(config, resolve=False), ""):
        for resolver in re.findall(r"\$\{\s*([\w.]+)\s*:", text):
            if resolver != "oc.env":
                raise ConfigError(f"{key}: {text!r} uses {resolver!r}; of OmegaConf's resolvers only oc.env is allowed.")
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}.") from None
    for key in sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"{key}: needs a value, for example {key}=… on the command line.")
    return config


def _texts(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text in nested containers, with its dotted key."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, Mapping | list):
        for name, child in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _texts(child, f"{key}.{name}" if key else str(name))
