import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from reports.page import Html, data_uri, document, facts, flat, number, picture, table, tag, write_whole
from reports.plot import HEIGHT, WIDTH, Point, scatter
from tests.reports.reading import Reader, check_self_contained, in_browser, needs_browser

HOSTILE = ['<script>document.title="taken"</script>', '"><img src=x onerror=alert(1)>', "</title></style><b>"]
HOSTILE += ["a&b\u202etxt", "\udce9"]


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_stay_texts(text):
    parts = [table(["key", text], [[text, text]], text), facts({text: text}), tag("p", text, title=text, id=text)]
    page = document(text, parts)
    read = Reader(page)
    assert read.wrong == [] and read.text.count(text.replace("\udce9", "?")) >= 6
    assert len(read.all("script")) == 1 and not read.all("img") and not read.all("b")
    assert read.all("p")[0]["title"] == text.replace("\udce9", "?")


def test_attributes():
    assert tag("p", class_="a", data_x=1, hidden=True, lang=None, title=False) == '<p class="a" data-x="1" hidden></p>'
    assert tag("img", alt="") == '<img alt="">'
    assert isinstance(tag("b", Html("<i>")), Html) and tag("b", Html("<i>"), "<i>") == "<b><i>&lt;i&gt;</b>"


def test_pictures_are_the_bytes_themselves():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    uri = data_uri(pixels)
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert np.array_equal(decoded, pixels) and data_uri(pixels[:, ::-1][:, ::-1]) == uri
    assert 'width="21" height="15"' in picture(pixels, "x", 3)


def test_numbers():
    assert [number(v) for v in (0.123456, -2.0, 7, None, True, "text")] == ["0.1235", "−2", "7", "–", "True", "text"]


def test_nested_keys():
    assert flat({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}) == {"a.b": 1, "a.c.d": [1, 2], "e": None}


def test_a_file_is_whole_or_not_there(tmp_path):
    write_whole(tmp_path / "new/page.html", b"one")
    write_whole(tmp_path / "new/page.html", b"two")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert (tmp_path / "new/page.html").read_bytes() == b"two"


def place(graph, label):
    """Centre of the circle with this number."""
    found = re.search(rf'<circle cx="([\d.]+)" cy="([\d.]+)"[^>]*></circle><text[^>]*>{label}</text>', graph)
    return float(found[1]), float(found[2])


def test_points_lie_where_they_belong():
    points = [Point("1", 0.1, 0.2, "", x_interval=[0.05, 0.15]), Point("2", 0.3, 0.6, "<b>", series=1)]
    points.append(Point("3", 0.2, 0.4, ""))
    graph = scatter(points, "kd", "spread", [0, 1], "words")
    (x1, y1), (x2, y2), (x3, y3) = (place(graph, n) for n in "123")
    assert 0 < x1 < x3 < x2 < WIDTH and 0 < y2 < y3 < y1 < HEIGHT
    assert x3 == pytest.approx((x1 + x2) / 2, abs=0.02) and y3 == pytest.approx((y1 + y2) / 2, abs=0.02)
    front = re.findall(r'<polyline points="([^"]*)"[^>]*stroke-dasharray', graph)
    assert front == [f"{x1},{y1} {x2},{y2}"]
    ends = re.search(rf'<line x1="([\d.]+)" x2="([\d.]+)" y1="{y1}" y2="{y1}"[^>]* opacity', graph)
    assert float(ends[1]) < x1 < float(ends[2]) and float(ends[2]) - x1 == pytest.approx((x3 - x1) / 2, abs=0.02)
    assert "<b>" not in graph and 'aria-label="words"' in graph
    check_self_contained(document("plot", [tag("main", graph, id="content")]))


@pytest.mark.parametrize("values", [[(0.5, 0.5)], [(0.0, 0.0), (0.0, 0.0)], [(-1e-9, 1e6), (1e-9, -1e6)]])
def test_any_numbers_can_be_drawn(values):
    graph = scatter([Point(str(i), x, y, "") for i, (x, y) in enumerate(values)], "x", "y", [0], "")
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in (place(graph, str(i)) for i in range(len(values))))
    assert "nan" not in graph and len(re.findall('text-anchor="end"', graph)) >= 2


@needs_browser
@pytest.mark.slow
def test_a_browser_runs_the_page_s_own_script_only(tmp_path):
    mark = "document.body.dataset.smuggled='yes'"
    smuggled = Html(f'<script>{mark}</script><img src=x onerror="{mark}">')
    page = document("before", [tag("p", *HOSTILE[:3]), smuggled], "document.body.dataset.own='yes'")
    write_whole(tmp_path / "page.html", page)
    content = in_browser(tmp_path / "page.html")
    assert 'data-own="yes"' in content and 'data-smuggled="yes"' not in content and "<title>before</title>" in content
