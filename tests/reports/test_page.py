import base64
import io

import numpy as np
import pytest
from PIL import Image

from reports.page import TEMPLATES, data_uri, format_number, render, write_report
from reports.scatter import HEIGHT, WIDTH, Point, Scatter
from tests.reports.reading import Reader, check_self_contained, in_browser, needs_browser

HOSTILE = ['<script>document.title="taken"</script>', '"><img src=x onerror=alert(1)>', "</title></style><b>"]
HOSTILE += ["a&b\u202etxt", "\udce9", "{{ 7 * 7 }}{% raw %}"]
EVERY_MACRO = """
{% extends "base.html" %}{% from "macros.html" import cell, facts, figure, img_tag, isolate, table %}
{% block content %}<p title="{{ text }}" id="{{ text }}">{{ isolate(text) }}</p>
{{ table([text, text], [[text, {"text": text, "notes": [text], "style": text}]], text, text) }}
{{ facts({text: text}, text) }}{{ figure(pixels, text, 2, text) }}{% endblock %}
"""


@pytest.mark.parametrize("text", HOSTILE)
def test_every_macro_escapes_text(text):
    pixels = np.zeros((2, 3, 3), np.uint8)
    page = TEMPLATES.from_string(EVERY_MACRO).render(title=text, text=text, pixels=pixels, script="", script_sha256="")
    page = page.encode("utf-8", "replace")
    read, seen = check_self_contained(page), text.replace("\udce9", "?")
    assert read.text.count(seen) == 12
    assert len(read.all("script")) == 1 and not read.all("b")
    (image,), (paragraph,) = read.all("img"), read.all("p")
    assert image["alt"] == paragraph["title"] == paragraph["id"] == seen and image["width"] == "6"
    assert {attributes["class"] for name, attributes in read.elements if name in ("dl", "td")} == {seen}


@pytest.mark.parametrize("text", HOSTILE)
def test_names_are_isolated(text):
    """A name that is written from right to left does not reorder the text around it."""
    macro = TEMPLATES.from_string('{% from "macros.html" import isolate %}{{ isolate(text) }}').render(text=text)
    read = Reader(macro.encode("utf-8", "replace"))
    assert [name for name, _ in read.elements] == ["bdi"] and read.text == text.replace("\udce9", "?")


def test_an_image_is_stored_as_its_bytes():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    uri = data_uri(pixels)
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert np.array_equal(decoded, pixels) and data_uri(pixels[:, ::-1][:, ::-1]) == uri


def test_format_number():
    expected = ["0.1235", "−2", "7", "–", "True", "text"]
    assert [format_number(v) for v in (0.123456, -2.0, 7, None, True, "text")] == expected


def test_a_report_replaces_an_earlier_one_as_a_whole(tmp_path):
    page = render("gallery", title="x", runs=[], thumbnail=60)
    write_report(tmp_path / "new", {"index.html": page, "report.json": b"{}", "best.json": b"{}"})
    (tmp_path / "new/notes.txt").write_text("of the user")
    write_report(tmp_path / "new", {"index.html": page, "best.json": b"[]"})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["best.json", "index.html", "notes.txt"]
    assert (tmp_path / "new/best.json").read_bytes() == b"[]"


def test_files_that_no_report_wrote_are_kept(tmp_path):
    (tmp_path / "report.json").write_text("of `python -m datamodules.doctor`")
    write_report(tmp_path, {"index.html": render("gallery", title="x", runs=[], thumbnail=60)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "report.json"]


def test_an_interrupted_report_leaves_the_earlier_one(tmp_path):
    files = {"index.html": render("gallery", title="x", runs=[], thumbnail=60), "report.json": b"old"}
    write_report(tmp_path, files)
    with pytest.raises(TypeError):
        write_report(tmp_path, {"report.json": b"new", "index.html": "no bytes"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def draw(*arguments):
    return TEMPLATES.get_template("scatter.svg").render(plot=Scatter(*arguments))


def circles(graph):
    return [(float(circle["cx"]), float(circle["cy"])) for circle in Reader(graph.encode()).all("circle")]


def test_points_have_their_positions():
    points = [Point("1", 0.1, 0.2, "", x_interval=[0.05, 0.15]), Point("2", 0.3, 0.6, "<b>", series=1)]
    points.append(Point("3", 0.2, 0.4, ""))
    graph = draw(points, "kd", "spread", points[:2], "description")
    read = Reader(graph.encode())
    (x1, y1), (x2, y2), (x3, y3) = circles(graph)
    assert 0 < x1 < x3 < x2 < WIDTH and 0 < y2 < y3 < y1 < HEIGHT
    assert x3 == pytest.approx((x1 + x2) / 2, abs=0.02) and y3 == pytest.approx((y1 + y2) / 2, abs=0.02)
    lines = {line["class"].split()[0]: line["points"] for line in read.all("polyline")}
    assert lines == {"path": f"{x1},{y1} {x3},{y3}", "front": f"{x1},{y1} {x2},{y2}"}
    (interval,) = read.all("line")
    low, high = float(interval["x1"]), float(interval["x2"])
    assert interval["y1"] == interval["y2"] == str(y1) and low < x1 < high
    assert high - x1 == pytest.approx((x3 - x1) / 2, abs=0.02)
    assert read.wrong == [] and not read.all("b") and read.all("svg")[0]["aria-label"] == "description"


@pytest.mark.parametrize("values", [[(0.5, 0.5)], [(0.0, 0.0), (0.0, 0.0)], [(-1e-9, 1e6), (1e-9, -1e6)], [(1e-15, 2e-15)]])
def test_any_finite_values_can_be_drawn(values):
    graph = draw([Point(str(i), x, y, "") for i, (x, y) in enumerate(values)], "x", "y")
    assert len(circles(graph)) == len(values) and all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in circles(graph))
    ticks = [text for text in Reader(graph.encode()).all("text") if text["text-anchor"] == "end"]
    assert "nan" not in graph and len({tick["y"] for tick in ticks}) >= 2


@needs_browser
@pytest.mark.slow
def test_a_browser_runs_only_the_script_of_the_page(tmp_path):
    mark = "document.body.dataset.smuggled='yes'"
    smuggled = f'<script>{mark}</script><img src=x onerror="{mark}"></main>'
    page = render("gallery", title="before", runs=[], thumbnail=60).replace(b"</main>", smuggled.encode())
    (tmp_path / "page.html").write_bytes(page)
    content = in_browser(tmp_path / "page.html")
    assert "0 of 0 runs" in content and 'data-smuggled="yes"' not in content and "<title>before</title>" in content
