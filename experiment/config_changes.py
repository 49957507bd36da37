"""Which settings may change between a checkpoint and the run that resumes from it. Imports neither torch nor lightning."""

from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

FREE_GROUPS = ("run_name", "run_dir", "trainer", "logger", "callbacks")
FREE_KEYS = ("datamodule.num_workers", "datamodule.max_memory_gib")
EPOCH_KEYS = ("trainer.limit_train_batches", "trainer.overfit_batches", "trainer.fast_dev_run")  # decide how long an epoch is


class Finished(SystemExit):
    """Nothing is left to train, which is no error; whoever raises it prints the message."""

    def __init__(self, message: str) -> None:
        super().__init__(0)
        self.message = message


def changes(stored: Mapping[str, Any], config: DictConfig, free: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Lines `key: old → new`: first those that make it another training, then those that do not.

    Both configurations hold all keywords of their classes. `free` are further keys that may change. Paths in the run
    folder that differ because the folder does are not listed.
    """
    now = OmegaConf.to_container(config)
    before, after = _comparable(stored, now), _comparable(now, stored)
    moved = [(str(stored.get(key)), str(now.get(key))) for key in ("run_dir", "run_name")]
    refused, allowed = [], []
    for key in dict.fromkeys([*after, *before]):
        old, new = before.get(key), after.get(key)
        if old == new or key == "resume":
            continue
        line = f"{key}: {'null' if old is None else old} → {'null' if new is None else new}"
        if key in FREE_KEYS or key in free:
            allowed.append(line)
        elif key.split(".")[0] not in FREE_GROUPS or key in EPOCH_KEYS:
            refused.append(line)
        elif key in ("run_dir", "run_name") or new not in [str(old).replace(*pair) for pair in moved]:
            allowed.append(line)
    return refused, allowed


def _comparable(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key, so that equal settings compare equal to those of `other` however they are written."""
    groups = dict(config)
    for group in ("module", "datamodule"):
        node, other_node = groups.get(group) or {}, other.get(group) or {}
        same_class = node.get("class_path") == other_node.get("class_path")
        groups[group] = node if same_class else {"class_path": node.get("class_path")}
    for group in ("logger", "callbacks"):
        nodes, other_nodes = groups.get(group) or {}, other.get(group) or {}
        switched = [name for name in nodes | other_nodes if bool(nodes.get(name)) != bool(other_nodes.get(name))]
        groups[group] = {**nodes, **{name: "on" if nodes.get(name) else "off" for name in switched}}
    return _leaves(groups)


def _leaves(node: Any, key: str = "") -> dict[str, Any]:
    """Values of nested mappings by dotted key; a list is one value."""
    if isinstance(node, Mapping) and node:
        return {k: v for name, child in node.items() for k, v in _leaves(child, f"{key}.{name}" if key else name).items()}
    return {key: list(node) if isinstance(node, tuple) else node}
