"""From the words of a command line to one configuration: base.yaml, then YAML files, then key=value.

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

from core.errors import UserError, nearest_hint

FOLDER = Path(__file__).parent.parent / "configs"
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
OPTIONS = ("--dry-run", "--help")
TYPE_NAMES = {DictConfig: "mapping", type(None): "null"}


def load_config(
    arguments: Iterable[str],
    start: Mapping[str, Any] | None = None,
    extra_keys: Mapping[str, tuple[type, ...]] | None = None,
) -> DictConfig:
    """The resolved configuration of command-line words; UserError for everything that is not in order.

    Args:
        arguments: names of YAML files and `dotted.key=value`, where a value is YAML (`[48, 64]`, `null`, `1e-4`).
        start: a configuration to use in place of base.yaml, such as the one of a checkpoint.
        extra_keys: top-level keys beside `TOP_LEVEL`, with the types that they may have (`MAPPING`, `(str,)`).
    """
    keys = {**TOP_LEVEL, **(extra_keys or {})}
    files, overrides = _sorted_words(arguments)
    merged = _read(FOLDER / "base.yaml") if start is None else OmegaConf.create(dict(start))
    layers = {name: _read(Path(name)) for name in files} | {word: _override(word, keys) for word in overrides}
    for source, layer in {"start": merged, **layers}.items():
        for key in layer:
            if key not in keys:
                advice = " Tasks are for evaluate.py." if key == "task" else f" The top level has: {', '.join(keys)}."
                raise UserError(f"{key}: no such key.{nearest_hint(str(key), keys)}{advice}")
        try:
            merged = OmegaConf.merge(merged, layer)
        except (TypeError, OmegaConfBaseException):
            raise UserError(f"{source}: sets keys below one that has a value, or a value for one that has keys.") from None
    merged = _resolve(merged)
    config = OmegaConf.create({key: merged[key] for key in keys if key in merged})  # in one order, for readers
    for key, kinds in keys.items():
        if key == "seed" and type(config.get(key)) is int and not 0 <= config.seed < 2**32:
            raise UserError(f"seed: has to be at least 0 and below 2^32, but is {config.seed}.")
        if key in config and (isinstance(config[key], bool) or not isinstance(config[key], kinds)):
            expected = " or ".join(TYPE_NAMES.get(kind, kind.__name__) for kind in kinds)
            raise UserError(f"{key}: expected {expected}, got {config[key]!r}.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", config.run_name):
        raise UserError(f"run_name: {config.run_name!r} is not made of letters, digits, _ and - alone.")
    return config


def nodes(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Dotted key and node of every object of an experiment; loggers and callbacks that are null are left out."""
    yield from ((key, config.get(key)) for key in ("module", "datamodule", "trainer"))
    for group in ("logger", "callbacks"):
        yield from ((f"{group}.{name}", node) for name, node in (config.get(group) or {}).items() if node is not None)


def _sorted_words(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    files, overrides = [], []
    for word in arguments:
        if word.startswith("-"):
            raise UserError(f"{word}: no such option.{nearest_hint(word, OPTIONS)} Keys are set by key=value.")
        if "=" in word:
            overrides.append(word)
        elif word.endswith((".yaml", ".yml")):
            files.append(word)
        else:
            raise UserError(_neither(word))
    return files, overrides


def _neither(word: str) -> str:
    if re.fullmatch(rf"({'|'.join(TOP_LEVEL)})(\.[\w.-]+)?", word):
        return f"{word}: no value; a key is set by key=value, without blanks: {word}=…"
    files = {path.stem: f" Did you mean {path.relative_to(FOLDER.parent)}?" for path in FOLDER.glob("**/*.yaml")}
    close = difflib.get_close_matches(word, files, n=1)
    return f"{word}: neither a .yaml file nor key=value.{files[close[0]] if close else nearest_hint(word, TOP_LEVEL)}"


def _read(file: Path) -> DictConfig:
    try:
        text = file.read_text(encoding="utf-8")
        if "*" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise UserError(f"{file}: aliases (*name) are not understood, their copies could fill the memory; use ${{key}}.")
        content = OmegaConf.load(file)
    except FileNotFoundError:
        known = sorted(str(path) for folder in {file.parent, Path("configs")} for path in folder.glob("**/*.yaml"))
        same_name = [f" Did you mean {path}?" for path in known if Path(path).name == file.name]
        hint = same_name[0] if same_name else nearest_hint(str(file), known) or f" There are: {', '.join(known)}"
        raise UserError(f"{file}: no such file.{hint}") from None
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{place}: {error.problem or error.context}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"{file}: not readable as YAML: {error}") from None
    if not isinstance(content, DictConfig):
        raise UserError(f"{file}: expected keys with values (`key: value`) at the top level.")
    return content


def _override(word: str, keys: Mapping[str, tuple[type, ...]]) -> DictConfig:
    key, text = word.split("=", 1)
    if not re.fullmatch(r"\w+(\.[\w-]+)*", key):
        raise UserError(f"{word}: {key!r} is not a key such as trainer.devices.")
    if not text.strip():
        raise UserError(f"{word}: no value. Write {key}=null to switch something off.")
    if str in keys.get(key, ()) and text != "null":
        return OmegaConf.create({key: text})  # a run may be named 007 or no, which YAML takes for 7 and false
    try:
        return OmegaConf.from_dotlist([word])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{word}: the value is not YAML ({problem}). Quote a text: {key}=\"'…'\".") from None


def _resolve(config: DictConfig) -> DictConfig:
    for key, text in _texts(OmegaConf.to_container(config, resolve=False), ""):
        for resolver in re.findall(r"\$\{\s*([\w.]+)\s*:", text):
            if resolver != "oc.env":
                raise UserError(f"{key}: {text!r} uses {resolver!r}; the only resolver allowed is oc.env.")
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}.") from None
    for key in sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{key}: needs a value, for example {key}=… on the command line.")
    return config


def _texts(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text in nested containers, with its dotted key."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, Mapping | list):
        for name, child in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _texts(child, f"{key}.{name}" if key else str(name))
