"""From a configuration node to an object."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from cli.schema import PREFIXES, complete
from core.errors import ErrorCollector, UserError, is_user_error
from core.nodes import build_node


def build(node: DictConfig, /, **objects: Any) -> Any:
    """The object that `node` describes. `objects` are keywords that cannot be written in YAML, such as callbacks."""
    key = node._get_full_key(None)  # OmegaConf has no public name for it
    errors = ErrorCollector()
    completed = complete(OmegaConf.to_container(node), key, errors, injected=tuple(objects))
    errors.raise_any()
    try:
        return build_node(completed, PREFIXES, **objects)
    except Exception as error:
        # Lightning's own errors for wrong values have many types
        if node.class_path.startswith("lightning.") or is_user_error(error):
            raise UserError(f"{key}: {error}") from error
        raise
