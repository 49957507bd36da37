"""Objects from mappings, on toy classes."""

import sys
from types import ModuleType
from typing import Any

import pytest

from core.errors import UserError
from core.nodes import build_node, find_class
from core.types import Node


class Labels:
    def __init__(self, num_classes: int = 3) -> None:
        self.num_classes = num_classes


class Method:
    def __init__(self, width: int, condition: Node | None = None, several: list[Node] | None = None, extra: Any = None) -> None:
        self.hparams = {"width": width, "condition": condition, "several": several}
        self.condition = condition and build_node(condition, ("modules.",))
        self.extra = extra


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("modules.toys")
    for class_ in (Labels, Method):
        monkeypatch.setattr(class_, "__module__", "modules.toys")
        setattr(module, class_.__name__, class_)
    module.number, module.OrderedDict = 3, type("OrderedDict", (), {})
    module.OrderedDict.__module__ = "collections"
    monkeypatch.setitem(sys.modules, "modules.toys", module)


LABELS = {"class_path": "modules.toys.Labels", "num_classes": 10}


def test_keywords_reach_the_constructor() -> None:
    assert build_node(LABELS).num_classes == 10 and build_node({"class_path": "modules.toys.Labels"}).num_classes == 3


def test_nodes_in_keywords_stay_plain_and_are_built_by_the_class() -> None:
    method = build_node({"class_path": "modules.toys.Method", "width": 4, "condition": LABELS, "several": [LABELS]}, extra="x")
    assert method.hparams == {"width": 4, "condition": LABELS, "several": [LABELS]}
    assert method.condition.num_classes == 10 and method.extra == "x"
    assert build_node({"class_path": "modules.toys.Method", "width": 4}).condition is None


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
        ({"class_path": "modules.toys.Method", "width": 4, "condition": {"class_path": "tasks.generate.Generate"}},
         "'tasks.generate.Generate'"),
    ],
)  # fmt: skip
def test_wrong_class_paths(node: dict, message: str) -> None:
    with pytest.raises(UserError, match="class_path: ") as caught:
        build_node(node)
    assert message in str(caught.value)


def test_a_class_path_of_another_room_needs_to_be_allowed() -> None:
    assert find_class("core.errors.UserError", ("core.",)) is UserError
