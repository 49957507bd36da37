"""Data of a scatter plot; `templates/scatter.svg` draws it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 80, WIDTH - 30, 20, HEIGHT - 60  # of the plotting area


@dataclass(frozen=True)
class Point:
    """Intervals are [low, high]; points of one `series` are connected in order; `excluded` ones are drawn hollow."""

    label: str
    x: float
    y: float
    title: str
    series: int = 0
    x_interval: Sequence[float] | None = None
    y_interval: Sequence[float] | None = None
    excluded: bool = False


class Axis:
    """Maps values to pixels."""

    def __init__(self, label: str, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
        self.label, self.low, self.high, self.start, self.end = label, low - margin, high + margin, start, end
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next((m for m in (1, 2, 5) if (self.high - self.low) / (step * m) <= 6), 10)
        ticks = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        self.ticks = [float(f"{tick * step:.12g}") for tick in ticks]

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)


@dataclass
class Scatter:
    """Numbered points with intervals. A dashed line joins `front`; `description` is for screen readers."""

    points: Sequence[Point]
    x_label: str
    y_label: str
    front: Sequence[Point] = ()
    description: str = ""

    width, height, left, right, top, bottom = WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM

    def __post_init__(self) -> None:
        self.x = Axis(self.x_label, [v for p in self.points for v in (p.x, *(p.x_interval or ()))], LEFT, RIGHT)
        self.y = Axis(self.y_label, [v for p in self.points for v in (p.y, *(p.y_interval or ()))], BOTTOM, TOP)
