"""Objects from nested mappings, on toy classes."""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest

from core.errors import UserError
from core.nodes import build_node, find_class, takes_mapping
from core.types import Node


class Labels:
    def __init__(self, num_classes: int = 3) -> None:
        self.num_classes = num_classes


class Pair:
    def __init__(self, first: Labels, others: list[Labels] | None = None, named: Any = None) -> None:
        self.first, self.others, self.named = first, others, named


class Method:
    def __init__(self, width: int, condition: Node | None = None, several: list[Node] | None = None, extra: Any = None) -> None:
        self.hparams = {"width": width, "condition": condition, "several": several}
        self.condition = condition and build_node(condition, ("modules.",))
        self.extra = extra


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("modules.toys")
    for class_ in (Labels, Pair, Method):
        monkeypatch.setattr(class_, "__module__", "modules.toys")
        setattr(module, class_.__name__, class_)
    module.Any, module.Mapping, module.number, module.OrderedDict = Any, Mapping, 3, type("OrderedDict", (), {})
    module.OrderedDict.__module__ = "collections"
    monkeypatch.setitem(sys.modules, "modules.toys", module)


LABELS = {"class_path": "modules.toys.Labels", "num_classes": 10}


def test_keywords_reach_the_constructor() -> None:
    assert build_node(LABELS).num_classes == 10 and build_node({"class_path": "modules.toys.Labels"}).num_classes == 3


def test_nested_nodes_are_built_wherever_they_stand() -> None:
    inner = {"class_path": "modules.toys.Pair", "first": LABELS, "others": [LABELS, {**LABELS, "num_classes": 2}]}
    pair = build_node({"class_path": "modules.toys.Pair", "first": inner, "named": {"a": LABELS, "b": 3}})
    assert [label.num_classes for label in pair.first.others] == [10, 2]
    assert pair.named["a"].num_classes == 10 and pair.named["b"] == 3 and pair.others is None


def test_a_parameter_annotated_as_a_mapping_stays_plain() -> None:
    method = build_node({"class_path": "modules.toys.Method", "width": 4, "condition": LABELS, "several": [LABELS]}, extra="x")
    assert method.hparams == {"width": 4, "condition": LABELS, "several": [LABELS]}
    assert method.condition.num_classes == 10 and method.extra == "x"
    assert build_node({"class_path": "modules.toys.Method", "width": 4}).condition is None


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [(Node, True), (dict, True), (Mapping[str, int] | None, True), (list[dict[str, Any]], True),
     (int, False), (Any, False), (Labels | None, False), (list[str], False), ("Labels", False), (Labels, False)],
)  # fmt: skip
def test_mapping_annotations(annotation: Any, expected: bool) -> None:
    assert takes_mapping(annotation) is expected


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"num_classes": 3}, "None does not begin with one of modules."),
        ({"class_path": "os.system"}, "'os.system' does not begin with"),
        ({"class_path": 7}, "7 does not begin with"),
        ({"class_path": "modules.toys.Label"}, "no class Label. Did you mean Labels?"),
        ({"class_path": "modules.toys.number"}, "no class number"),
        ({"class_path": "modules.toys.OrderedDict"}, "no class OrderedDict"),
        ({"class_path": "modules.no_such.X"}, "there is no module modules.no_such"),
        ({"class_path": "modules.toys.Pair", "first": {"class_path": "tasks.generate.Generate"}}, "'tasks.generate.Generate'"),
    ],
)
def test_wrong_class_paths(node: dict, message: str) -> None:
    with pytest.raises(UserError, match="class_path: ") as caught:
        build_node(node)
    assert message in str(caught.value)


def test_a_class_path_of_another_room_needs_to_be_allowed() -> None:
    assert find_class("core.errors.UserError", ("core.",)) is UserError
