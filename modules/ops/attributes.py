"""Attributes of images, such as the columns of a table, and conditions on them."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from core.errors import UserError, nearest_hint

CONDITION = re.compile(r"\s*([^=!]+?)\s*(!?=)\s*(.*?)\s*")

Attributes = dict[str, tuple[list[str], Tensor]]  # of each column its values, and for each image the index of its value


def index_attributes(columns: Mapping[str, Sequence[str]], num_images: int) -> Attributes:
    """Columns as indices (int32 [num_images]), which take little space in checkpoints. Where there are more images than rows,
    as with mirrored ones, they have those of the first again."""
    attributes = {}
    for name, column in columns.items():
        values = sorted(set(column))
        numbers = {value: number for number, value in enumerate(values)}
        rows = torch.tensor([numbers[value] for value in column], dtype=torch.int32)
        attributes[name] = values, rows.repeat(num_images // len(rows))
    return attributes


def select_images(where: str | None, attributes: Attributes, num_images: int) -> Tensor:
    """Indices of the images that fulfill all conditions of `where`, such as "male=0 & hair!=short"; of all for None.

    Raises:
        UserError: a condition cannot be read, names an unknown attribute or value, or no image fulfills it.
    """
    chosen = torch.ones(num_images, dtype=torch.bool)
    for text in where.split("&") if where is not None else ():
        match = CONDITION.fullmatch(text)
        if match is None:
            raise UserError(f"where={where}: {text.strip()!r} is not NAME=VALUE or NAME!=VALUE; & joins several")
        name, relation, value = match.groups()
        if name not in attributes:
            names = ", ".join(attributes) or "none, as no attributes.csv was beside the images"
            raise UserError(f"where={where}: unknown attribute {name}.{nearest_hint(name, attributes)} Known: {names}")
        values, rows = attributes[name]
        if value not in values:
            listed = ", ".join(values[:20]) + " …" * (len(values) > 20)
            raise UserError(f"where={where}: {name} is never {value!r}.{nearest_hint(value, values)} Values: {listed}")
        chosen &= (rows == values.index(value)) == (relation == "=")
    if not chosen.any():
        raise UserError(f"where={where}: none of the {num_images} images fulfills this")
    return chosen.nonzero()[:, 0]
