"""A scatter plot as SVG, written by hand: points with numbers, their intervals, ways from point to point, a front."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from reports.page import Html, number, tag

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 20, 60
COLOURS = ("#0b57a4", "#b35900", "#116329", "#8250df", "#a40e26", "#57606a")  # of runs; readable on white


class Point(NamedTuple):
    """A place with its intervals [low, high], where there are any; `series` connects points in their order."""

    label: str
    x: float
    y: float
    title: str
    series: int = 0
    x_interval: Sequence[float] | None = None
    y_interval: Sequence[float] | None = None
    struck: bool = False  # shown, but out of the competition


def scatter(points: Sequence[Point], x_name: str, y_name: str, front: Sequence[int], description: str) -> Html:
    """The plot; `front` are positions of the points that a dashed line joins, `description` is for who cannot see it."""
    x_axis = _Axis([v for p in points for v in (p.x, *(p.x_interval or ()))], LEFT, WIDTH - RIGHT)
    y_axis = _Axis([v for p in points for v in (p.y, *(p.y_interval or ()))], HEIGHT - BOTTOM, TOP)
    frame = {"x": LEFT, "y": TOP, "width": WIDTH - LEFT - RIGHT, "height": HEIGHT - TOP - BOTTOM}
    parts = [tag("rect", **frame, fill="#fff", stroke="#d0d7de")]
    for value in x_axis.ticks:
        x = x_axis(value)
        parts.append(tag("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, stroke="#eaeef2"))
        parts.append(tag("text", number(value), x=x, y=HEIGHT - BOTTOM + 20, text_anchor="middle"))
    for value in y_axis.ticks:
        y = y_axis(value)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, stroke="#eaeef2"))
        parts.append(tag("text", number(value), x=LEFT - 8, y=_px(y + 4), text_anchor="end"))
    middle = _px((TOP + HEIGHT - BOTTOM) / 2)
    parts.append(tag("text", x_name, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 12, text_anchor="middle"))
    parts.append(tag("text", y_name, x=18, y=middle, text_anchor="middle", transform=f"rotate(-90 18 {middle})"))
    for series in sorted({point.series for point in points}):
        way = [(x_axis(p.x), y_axis(p.y)) for p in points if p.series == series]
        parts += [_line(way, COLOURS[series % len(COLOURS)], 1.2)] if len(way) > 1 else []
    if len(front) > 1:
        way = [(x_axis(points[i].x), y_axis(points[i].y)) for i in front]
        parts.append(_line(way, "#1b1f24", 2.4, "7 5"))
    for point in points:
        parts += _marks(point, x_axis, y_axis)
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", width=WIDTH, height=HEIGHT, role="img", aria_label=description)


def _marks(point: Point, x_axis: "_Axis", y_axis: "_Axis") -> list[Html]:
    x, y, colour = x_axis(point.x), y_axis(point.y), COLOURS[point.series % len(COLOURS)]
    parts = []
    if point.x_interval:
        ends = [x_axis(value) for value in point.x_interval]
        parts.append(tag("line", x1=ends[0], x2=ends[1], y1=y, y2=y, stroke=colour, stroke_width=1.5, opacity=0.5))
    if point.y_interval:
        ends = [y_axis(value) for value in point.y_interval]
        parts.append(tag("line", x1=x, x2=x, y1=ends[0], y2=ends[1], stroke=colour, stroke_width=1.5, opacity=0.5))
    fill = "#fff" if point.struck else colour
    circle = tag("circle", cx=x, cy=y, r=11, fill=fill, stroke=colour, stroke_width=2)
    ink = f"fill:{colour if point.struck else '#fff'};font-weight:700"
    label = tag("text", point.label, x=x, y=_px(y + 4.5), text_anchor="middle", style=ink)
    return [*parts, tag("g", tag("title", point.title), circle, label)]


def _line(way: Sequence[tuple[float, float]], colour: str, width: float, dashes: str | None = None) -> Html:
    places = " ".join(f"{x},{y}" for x, y in way)
    return tag("polyline", points=places, fill="none", stroke=colour, stroke_width=width, stroke_dasharray=dashes)


class _Axis:
    """Values to pixels, with some air at both ends, and round values for ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        air = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
        self.low, self.high, self.start, self.end = low - air, high + air, start, end
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next((m for m in (1, 2, 5) if (self.high - self.low) / (step * m) <= 6), 10)
        first = math.ceil(self.low / step)
        count = math.floor(self.high / step) - first + 1
        self.ticks = [round((first + i) * step, 12) for i in range(count)]

    def __call__(self, value: float) -> float:
        return _px(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start))


def _px(value: float) -> float:
    return round(value, 2)
