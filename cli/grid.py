"""The trials of a grid: `key=a,b,c` on the command line of sweep.py."""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf

from cli.loader import load_config
from core.errors import UserError

LONGEST_NAME = 100  # characters of a run's name, for file systems and W&B


class Trial(NamedTuple):
    label: str  # what is swept, such as module.lr_g=1e-3 seed=0
    arguments: list[str]  # of train.py
    config: DictConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)


def trials(arguments: Sequence[str]) -> list[Trial]:
    """Every combination of the values in `key=a,b,c`, the last such key changing fastest; UserError if any of them is invalid.

    A trial's run is called run_name_key-value…, and its folder is run_dir with the same ending, however the grid grows.
    """
    swept = {arg: values for arg in arguments if len(values := _values(arg)) > 1}
    if not swept:
        raise UserError("nothing to sweep. Give a key several values: module.lr_g=1e-3,5e-4 seed=0,1,2")
    fixed = [arg for arg in arguments if arg not in swept]
    keys = [arg.split("=", 1)[0] for arg in swept]
    for key in keys:
        if key in ("run_name", "run_dir", "resume"):
            raise UserError(f"{key}: cannot be swept, every training has its own.")
        if keys.count(key) > 1:
            raise UserError(f"{key}: swept twice; give all its values at once.")
    found = [_trial(fixed, dict(zip(keys, values, strict=True))) for values in itertools.product(*swept.values())]
    for first, second in itertools.combinations(found, 2):
        if first.folder == second.folder:
            raise UserError(f"{first.label} and {second.label} are the same trial: give every value once.")
    return found


def is_finished(trial: Trial) -> bool:
    """True if the trial's folder holds a finished training with this very configuration."""
    try:
        status = json.loads((trial.folder / "run.json").read_text(encoding="utf-8")).get("status")
        stored = OmegaConf.to_container(OmegaConf.load(trial.folder / "config.yaml"))
    except (OSError, ValueError, AttributeError):
        return False
    now = OmegaConf.to_container(trial.config)
    return status == "finished" and {**stored, "resume": None} == {**now, "resume": None}


def _trial(fixed: list[str], values: dict[str, str]) -> Trial:
    overrides = [f"{key}={text}" for key, text in values.items()]
    base, label = load_config([*fixed, *overrides]), " ".join(overrides)
    last = [key.rsplit(".", 1)[-1] for key in values]
    short = [name if last.count(name) == 1 else key.replace(".", "_") for key, name in zip(values, last, strict=True)]
    ending = "_".join(f"{name}-{_plain(text)}" for name, text in zip(short, values.values(), strict=True))
    if len(base.run_name) + len(ending) >= LONGEST_NAME:
        ending = hashlib.sha256(label.encode()).hexdigest()[:12]
    arguments = [*fixed, *overrides, f"run_name={base.run_name}_{ending}", f"run_dir={base.run_dir}_{ending}", "resume=auto"]
    return Trial(label, arguments, load_config(arguments))


def _plain(text: str) -> str:
    """A value as part of a name: 0.5 becomes 0_5; what is not made of letters, digits, - and . gets a mark of its own."""
    name = re.sub(r"[^A-Za-z0-9-]+", "_", text).strip("_")
    return name if re.fullmatch(r"[A-Za-z0-9.-]+", text) else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"


def _values(argument: str) -> list[str]:
    """The alternatives of `key=a,b`, cut at the commas of a YAML list; for another argument at most one."""
    text = "" if argument.startswith("-") else argument.partition("=")[2]
    plain = re.sub(r"\$\{[^{}]*\}", lambda match: "x" * len(match[0]), text)
    try:
        values = [text[node.start_mark.index - 1 : node.end_mark.index - 1] for node in yaml.compose(f"[{plain}]").value]
    except yaml.YAMLError:
        values = [text]
    if len(values) == 1 and re.search(r"^\s*,|,\s*,|,\s*$", text):
        raise UserError(f"{argument}: an empty value; write the values as a,b,c, and a list as [1,2].")
    return values
