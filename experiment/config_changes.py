"""What a run that goes on may change in its configuration. Imports neither torch nor lightning."""

from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

FREE_GROUPS = ("run_name", "run_dir", "trainer", "logger", "callbacks")
FREE_KEYS = ("datamodule.num_workers", "datamodule.max_memory_gib")


class Finished(SystemExit):
    """Nothing is left to train, which is no error. The message is for the user and printed where it is found out."""

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
        elif key.split(".")[0] not in FREE_GROUPS:
            refused.append(line)
        elif key in ("run_dir", "run_name") or new not in [str(old).replace(*pair) for pair in moved]:
            allowed.append(line)
    return refused, allowed


def _comparable(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key, such that a difference to `other` that a reader takes for one is one."""
    groups = dict(config)
    for group in ("module", "datamodule"):
        own, others = groups.get(group) or {}, other.get(group) or {}
        same_class = own.get("class_path") == others.get("class_path")
        groups[group] = own if same_class else {"class_path": own.get("class_path")}
    for group in ("logger", "callbacks"):
        own, others = groups.get(group) or {}, other.get(group) or {}
        unlike = [name for name in own | others if bool(own.get(name)) != bool(others.get(name))]
        groups[group] = {**own, **{name: "on" if own.get(name) else "off" for name in unlike}}
    return _leaves(groups)


def _leaves(node: Any, key: str = "") -> dict[str, Any]:
    """Values of nested mappings by dotted key; a list is one value."""
    if isinstance(node, Mapping) and node:
        return {k: v for name, child in node.items() for k, v in _leaves(child, f"{key}.{name}" if key else name).items()}
    return {key: list(node) if isinstance(node, tuple) else node}
