"""Signatures read from source, types and ranges of values, completed defaults, and messages about single values."""

import inspect
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from pydantic import Field

from cli.loader import parse_value
from cli.schema import OWN, complete, convert, describe, quoting_advice, signature_of
from core.errors import ErrorCollector, UserError
from core.types import Betas, ImageSize, Node, OpenFraction, PathStr, PositiveFloat, PositiveInt, Probability, Seed

ROOT = Path(__file__).parents[2]
LIGHTNING = [
    "lightning.Trainer",
    *(f"lightning.pytorch.callbacks.{name}" for name in ("ModelCheckpoint", "EarlyStopping", "LearningRateMonitor", "Timer",
        "RichProgressBar", "TQDMProgressBar", "DeviceStatsMonitor", "GradientAccumulationScheduler", "Callback")),
    *(f"lightning.pytorch.loggers.{name}" for name in ("CSVLogger", "TensorBoardLogger", "WandbLogger", "MLFlowLogger")),
]  # fmt: skip


def class_paths() -> list[str]:
    """All of the project that the shipped YAML files name, and what they could."""
    texts = [path.read_text() for path in ROOT.glob("configs/**/*.yaml")]
    found = {name for text in texts for name in re.findall(r"^\s*class_path: (\S+)", text, re.M) if name.startswith(OWN)}
    return sorted(found | {"callbacks.stage_checkpoint.StageCheckpoint", "datamodules.synthetic.SyntheticDataModule"})


def real_signature(class_path: str) -> Mapping[str, inspect.Parameter]:
    module, name = class_path.rsplit(".", 1)
    found: dict[str, inspect.Parameter] = {}
    for class_ in getattr(import_module(module), name).__mro__:  # **keywords go to the constructor of the base
        if class_.__module__.startswith(OWN) or not found:
            found.pop("settings", None)
            found = {**found, **{n: p for n, p in inspect.signature(class_).parameters.items() if n not in found}}
            if not any(p.kind is p.VAR_KEYWORD for p in found.values()):
                break
    return {n: p for n, p in found.items() if p.kind is not p.VAR_POSITIONAL}


@pytest.mark.parametrize("class_path", class_paths() + LIGHTNING)
def test_the_signature_in_the_source_is_that_of_the_class(class_path: str) -> None:
    real, read = real_signature(class_path), signature_of(class_path)
    assert list(read) == list(real)
    for name, parameter in real.items():
        assert (read[name].kind is parameter.VAR_KEYWORD) == (parameter.kind is parameter.VAR_KEYWORD)
        assert (read[name].default is parameter.empty) == (parameter.default is parameter.empty)
        if class_path.startswith(OWN) and parameter.kind is not parameter.VAR_KEYWORD:
            assert read[name].default == parameter.default and repr(read[name].annotation) == repr(parameter.annotation)


@pytest.mark.parametrize("class_path", class_paths())
def test_every_default_is_of_the_type_and_in_the_range_of_its_parameter(class_path: str) -> None:
    for name, parameter in signature_of(class_path).items():
        if parameter.default is not parameter.empty:
            hint = Optional[parameter.annotation] if parameter.default is None else parameter.annotation  # noqa: UP045
            value = convert(parameter.default, hint)
            default = list(parameter.default) if isinstance(value, list) else parameter.default  # a sequence may be a tuple
            assert value == default and type(value) is type(default), name


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.schema.ROOT", tmp_path)
    (tmp_path / "modules").mkdir()
    files = {
        "first": "from core.types import Node, PositiveInt\nfrom typing import Annotated\nimport torch\n"
        "from pydantic import Field\n"
        "COUNT = 2 + 3\nRATE, OTHER = 0.5, 1\nShare = Annotated[float, Field(lt=1)]\n"
        "class First:\n    def __init__(self, a: int, /, b: 'list[PositiveInt]' = None, share: Share = 0.5, *,\n"
        "                 count: int = COUNT, c=None, device: torch.device = None) -> None: ...\n"
        "class Labels:\n    def __init__(self, num_classes: PositiveInt = 3) -> None: ...\n",
        "second": "from modules.first import COUNT, First, Labels, Node, Share\nfrom os import PathLike\n"
        "class Other(PathLike): ...\nclass Second(First): ...\nclass Third(Second): ...\nclass Plain: ...\n"
        "class Method:\n    def __init__(self, width: int = COUNT, share: Share = 0.25, condition: Node | None = None,\n"
        "                 labels: Labels | None = None, several: list[Node] = (), options: Node | None = None) -> None: ...\n",
        "fields": "from abc import ABC\nfrom dataclasses import dataclass\nfrom modules.first import COUNT, PositiveInt\n"
        "@dataclass(kw_only=True)\nclass Base(ABC):\n    kind = 3\n    a: PositiveInt\n    b: int = COUNT\n"
        "@dataclass(kw_only=True)\nclass Fields(Base):\n    c: str = 'x'\n    b: int = 7\n",
    }
    files["heirs"] = (
        "from modules.first import First, PositiveInt\nfrom os import PathLike\n"
        "class Heir(First):\n    def __init__(self, a: int, count: PositiveInt = 9, **settings) -> None: ...\n"
        "class Grandchild(Heir):\n    def __init__(self, d: str = 'x', **settings) -> None: ...\n"
        "class Foreigner(PathLike):\n    def __init__(self, a: int, **settings) -> None: ...\n"
    )
    for name, text in files.items():
        (tmp_path / f"modules/{name}.py").write_text(text)


@pytest.mark.usefixtures("toys")
def test_a_class_without_a_constructor_has_that_of_its_base() -> None:
    parameters = signature_of("modules.second.Third")
    empty = inspect.Parameter.empty
    assert {name: p.default for name, p in parameters.items()} == {"a": empty, "b": None, "share": 0.5, "count": 5, "c": None,
                                                                   "device": None}  # fmt: skip
    assert parameters["b"].annotation == list[PositiveInt] and parameters["device"].annotation is Any
    assert [p.kind for p in signature_of("modules.second.Other").values()] == [inspect.Parameter.VAR_KEYWORD]
    assert signature_of("modules.second.Plain") == {}


@pytest.mark.usefixtures("toys")
def test_further_keywords_are_those_of_the_base() -> None:
    heir, grandchild = (signature_of(f"modules.heirs.{name}") for name in ("Heir", "Grandchild"))
    defaults = {"a": inspect.Parameter.empty, "count": 9, "b": None, "share": 0.5, "c": None, "device": None}
    assert {name: p.default for name, p in heir.items()} == defaults and list(heir)[:2] == ["a", "count"]
    assert {name: p.default for name, p in grandchild.items()} == {"d": "x", **defaults}
    assert heir["count"].annotation == PositiveInt
    assert [p.kind for p in signature_of("modules.heirs.Foreigner").values()][-1] is inspect.Parameter.VAR_KEYWORD
    node, mistakes = complete_node("modules.heirs.Heir", a=1, sharre=0.2)
    assert mistakes == ["module.sharre: Heir has no such key. Did you mean share?"] and node["share"] == 0.5


@pytest.mark.usefixtures("toys")
def test_a_dataclass_has_its_fields_and_those_of_its_bases() -> None:
    parameters = signature_of("modules.fields.Fields")
    assert {name: p.default for name, p in parameters.items()} == {"a": inspect.Parameter.empty, "b": 7, "c": "x"}
    assert parameters["a"].annotation == PositiveInt and parameters["c"].annotation is str


LABELS, METHOD = "modules.first.Labels", "modules.second.Method"


def completed(**node: Any) -> tuple[Any, list[str]]:
    return complete_node(METHOD, **node)


def complete_node(method: str, /, **node: Any) -> tuple[Any, list[str]]:
    mistakes = ErrorCollector()
    return complete({"class_path": method, **node}, "module", mistakes), list(mistakes.values())


@pytest.mark.usefixtures("toys")
def test_defaults_are_completed_also_in_nested_nodes() -> None:
    plain = {"class_path": METHOD, "width": 5, "share": 0.25, "condition": None, "labels": None, "several": (), "options": None}
    assert completed() == (plain, [])
    labels = {"class_path": LABELS, "num_classes": 3}
    short = {"class_path": LABELS}
    node, mistakes = completed(condition=short, several=[short])
    assert not mistakes and node == {**plain, "condition": labels, "several": [labels]}
    assert completed(**{key: value for key, value in node.items() if key != "class_path"}) == (node, [])


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(
    ("node", "messages"),
    [
        ({"width": True, "share": 1, "wdth": 3}, ["module.wdth: Method has no such key. Did you mean width?",
                                                 "module.width: expected int, got True.",
                                                 "module.share: expected float < 1, got 1."]),
        ({"condition": {"class_path": LABELS, "num_classes": 0}},
         ["module.condition.num_classes: expected int >= 1, got 0."]),
        ({"condition": {"class_path": LABELS, "classes": 3}},
         ["module.condition.classes: Labels has no such key. Did you mean num_classes?"]),
        ({"labels": {"class_path": LABELS}}, ["module.labels: expected null, got {'class_path': 'modules.first.Labels', "]),
        ({"several": [{"class_path": LABELS}, {"class_path": "os.system"}]},
         ["module.several.1.class_path: 'os.system' does not begin with one of modules."]),
        ({"several": [{"class_path": "modules.first.Label"}]},
         ["module.several.0.class_path: modules.first has no class Label. Did you mean Labels?"]),
        ({"condition": 3}, ["module.condition: expected mapping[str, any value] or null, got 3."]),
        ({"labels": 3}, ["module.labels: expected null, got 3."]),
        ({"temperature": 3}, ["module.temperature: Method has no such key. An option of the method is set by module"]),
        ({"class_path": "modules.second.Third", "share": 0.1}, ["module.a: missing; Third needs it."]),
        ({"class_path": "modules.third.X"}, ["module.class_path: there is no module modules.third."]),
        ({"class_path": "modules.Second.X"}, ["module.class_path: there is no module modules.Second. Did you mean modules.s"]),
        ({"class_path": 7}, ["module.class_path: 7 does not begin with one of"]),
    ],
)  # fmt: skip
def test_mistakes_name_the_key_and_what_is_allowed(node: dict[str, Any], messages: list[str]) -> None:
    found = completed(**node)[1]
    assert len(found) == len(messages) and all(f.startswith(m) for f, m in zip(found, messages, strict=True)), found


@pytest.mark.parametrize(
    ("hint", "valid", "invalid"),
    [
        (int, [(3, 3), (-1, -1)], [True, 3.0, "3", None, [3]]),
        (float, [(3, 3.0), (0.5, 0.5)], [True, "0.5", None, float("nan"), float("inf")]),
        (bool, [(True, True)], [1, 0, "yes", None]),
        (str, [("3", "3")], [3, None, ["a"]]),
        (int | None, [(3, 3), (None, None)], [3.5, "None"]),
        (float | None, [(3, 3.0)], [[3]]),
        (str | int | None, [("3", "3"), (3, 3)], [3.5]),
        (int | list[int], [(3, 3), ([3, 4], [3, 4])], [[3, "4"], {"a": 3}, 3.5]),
        (list[int], [([], []), ((3,), [3])], [3, [3.5]]),
        (Sequence[str], [(["a"], ["a"])], ["a", [1]]),
        (tuple[int, int], [([3, 4], (3, 4))], [[3], [3, 4, 5], [3, "4"]]),
        (tuple[float, ...], [([3, 4], (3.0, 4.0)), ([], ())], [["a"]]),
        (dict, [({"a": 1}, {"a": 1})], [[1]]),
        (Node, [({"a": 1}, {"a": 1})], [[1], "a"]),
        (Literal["min", "max"], [("min", "min")], ["mean", None]),
        (Any, [(3, 3), (None, None)], []),
        (PositiveInt, [(1, 1)], [0, -1, True, 1.0]),
        (PositiveFloat, [(1, 1.0), (1e-9, 1e-9)], [0, -0.1, float("nan")]),
        (OpenFraction, [(0.5, 0.5)], [0, 1, 1.5]),
        (Probability, [(0, 0.0), (1, 1.0)], [-0.1, 1.1]),
        (Betas, [([0.5, 0], (0.5, 0.0))], [[0.5, 1.0], [0.5], [-0.1, 0.9]]),
        (ImageSize, [([3, 4], [3, 4])], [[3], [3, 0], [3, 4, 5], [3, 4.0], 3]),
        (Seed, [(0, 0), (2**32 - 1, 2**32 - 1)], [-1, 2**32, 99999999999999999999, True, "0"]),
        (int | list[PositiveInt], [(-3, -3), ([1], [1])], [[0], [1, "x"]]),
    ],
)
def test_values_are_of_the_type_and_in_the_range_of_the_parameter(hint: Any, valid: list, invalid: list) -> None:
    for value, expected in valid:
        assert convert(value, hint) == expected and type(convert(value, hint)) is type(expected)
    for value in invalid:
        with pytest.raises(ValueError):
            convert(value, hint)


def test_what_yaml_cannot_hold_is_refused() -> None:
    for value in (object(), {1, 2}, b"x"):
        with pytest.raises(ValueError):
            convert(value, dict)


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"), (PositiveInt, "int >= 1"), (OpenFraction | None, "float > 0 and < 1 or null"), (PathStr, "path"),
        (Literal["min", "max"], "'min' or 'max'"), (list[PositiveInt], "list[int >= 1]"),
        (ImageSize, "[height, width], both >= 1"),
        (int | list[int], "int or list[int]"), (tuple[float, ...], "list[float, ...]"), (Any, "any value"),
        (Annotated[int, Field(ge=2, le=9)], "int >= 2 and <= 9"), (Mapping[str, int], "mapping[str, int]"),
    ],
)  # fmt: skip
def test_types_are_described_for_people(hint: Any, text: str) -> None:
    assert describe(hint) == text


@pytest.mark.parametrize("text", ["7", "[x]", "no", "[x", "a: 'b'", "it's", 'a "b" $HOME `x` !', "birds #1", "{a}", "1.50"])
def test_the_quoting_advice_works_when_pasted_into_a_shell(text: str) -> None:
    word = quoting_advice("datamodule.root", text).removeprefix(" Quote a text: ")
    pasted = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, text=True, check=True).stdout
    assert shlex.split(word) == [pasted] and parse_value(pasted.split("=", 1)[1]) == text


def test_the_choices_of_a_literal_are_suggested() -> None:
    mistakes = ErrorCollector()
    complete({"class_path": "lightning.Trainer", "precision": "bf16-mxed"}, "trainer", mistakes)
    assert "Did you mean bf16-mixed" in mistakes["trainer.precision"]


def test_nested_nodes_of_a_checkpoint_are_not_imported_from_elsewhere() -> None:
    mistakes = ErrorCollector()
    complete({"class_path": "modules.singan.SinGAN", "width": {"class_path": "os.system", "x": 1}}, "module", mistakes)
    assert "module.width.class_path" in " ".join(mistakes)  or "os.system" in str(mistakes)


def test_signatures_of_classes_elsewhere_are_refused() -> None:
    for path in ("os.system", "torch.nn.Linear", "lightning.LightningModule", None, 3):
        with pytest.raises(UserError, match="does not begin with"):
            signature_of(path)
