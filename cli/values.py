"""What a value in a configuration may be: by the type of the constructor's parameter, and by the parameter's name."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from inspect import Parameter
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

PLAIN = (bool, int, float, str, list, dict)
# The project's names say what a number means, and so what it can be; the first line that fits a name counts. A class may
# be stricter. None and texts pass; in a list every number is looked at.
RANGES: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    (r"num_workers|refresh_rate", "at least 0", lambda number: number >= 0),
    (r"lr|lr_\w+|\w+_lr|temperature|frames_per_second", "above 0", lambda number: number > 0),
    (r"image_size|object_size|size|tiles", "at least 1", lambda number: number >= 1),
    (r"num_\w+|every_n_\w+|samples_per_epoch|epochs_per_stage", "at least 1", lambda number: number >= 1),
    (r"\w*(batch_size|width|depth|layers|dim|steps|crops|patience)", "at least 1", lambda number: number >= 1),
    (r"\w*(iterations|projections|candidates|chunk|min_size|max_size)\w*|top_k", "at least 1", lambda number: number >= 1),
    (r"scale_factor|\w+_fraction", "above 0 and below 1", lambda number: 0 < number < 1),
    (r"betas|\w*dropout", "at least 0 and below 1", lambda number: 0 <= number < 1),
    (r"seed|scale|start_scale|weight_\w+|\w+_weight|\w*noise|\w+_factor|clip_norm|dilation|blur|feather", "at least 0",
     lambda number: number >= 0),
)  # fmt: skip


def converted(value: Any, hint: Any) -> Any:
    """`value` as the type `hint` wants it: a list as tuple, 1 as 1.0. ValueError if it does not fit.

    Hints of other kinds, such as Callable, take anything; those that name a class take nothing that YAML can hold.
    """
    value = list(value) if type(value) is tuple else value  # checkpoints hold such
    origin, alternatives = get_origin(hint), get_args(hint)
    if hint is Any or hint is Parameter.empty:
        return value
    if origin in (Union, UnionType):
        return _first_fitting(value, sorted(alternatives, key=lambda kind: kind is not type(value)))
    if origin is Literal:
        return _if(any(value == choice and type(value) is type(choice) for choice in alternatives), value)
    if hint in (None, NoneType):
        return _if(value is None, value)
    if hint is float:
        return float(_if(type(value) in (int, float) and not math.isnan(value), value))
    if hint is tuple or origin is tuple:
        return tuple(_items(_if(type(value) is list, value), alternatives))
    if hint in PLAIN:
        return _if(type(value) is hint, value)
    if origin in (list, Sequence, Iterable, Collection):
        return _items(_if(type(value) is list, value), (*alternatives, ...))
    if origin in (dict, Mapping):
        return _if(type(value) is dict, value)
    return _if(not isinstance(hint, type), value)


def described(hint: Any) -> str:
    """The type for people: int | None, list[int]; of a choice among texts only these."""
    origin, alternatives = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys("null" if kind is NoneType else described(kind) for kind in alternatives))
    if origin is Literal:
        return ", ".join(str(choice) for choice in alternatives)
    return hint.__name__ if type(hint) is type else str(hint).replace("typing.", "").replace("collections.abc.", "")


def choices(hint: Any) -> list[str]:
    """The texts that a type allows, where it is a choice among some."""
    if get_origin(hint) in (Union, UnionType):
        return [text for kind in get_args(hint) for text in choices(kind)]
    return [str(choice) for choice in get_args(hint)] if get_origin(hint) is Literal else []


def out_of_range(name: str, value: Any) -> str | None:
    """What the numbers of a parameter called `name` have to be, if one in `value` is not."""
    if isinstance(value, list | tuple):
        return next((limit for item in value if (limit := out_of_range(name, item))), None)
    if type(value) in (int, float):
        rule = next(((limit, fits) for pattern, limit, fits in RANGES if re.fullmatch(pattern, name)), None)
        return rule[0] if rule and not rule[1](value) else None
    return None


def _first_fitting(value: Any, hints: Sequence[Any]) -> Any:
    for hint in hints:
        try:
            return converted(value, hint)
        except ValueError:
            continue
    raise ValueError


def _items(values: list, hints: tuple[Any, ...]) -> list:
    if hints[1:2] == (...,):
        return [converted(value, hints[0]) for value in values]
    if not hints or hints == (...,):
        return list(values)
    if len(values) != len(hints):
        raise ValueError
    return [converted(value, hint) for value, hint in zip(values, hints, strict=True)]


def _if(fits: bool, value: Any) -> Any:
    if not fits:
        raise ValueError
    return value
