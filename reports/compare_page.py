"""A comparison as a page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from metrics.pareto import repeats_training_images
from reports.compare_tables import interval_of, metrics, tests
from reports.comparison import Comparison, config_differences
from reports.page import Html, document, facts, join, name, number, picture, table, tag
from reports.plot import Point, scatter
from reports.subject import COLUMNS, Subject

SHOWN_SIDE = 110  # pixels, about, of a sample on the page
SCRIPT = """
const slider=document.getElementById('step');
function show(){
  const last=+slider.max;
  document.querySelectorAll('[data-steps]').forEach(run=>{
    const all=[...run.children],chosen=Math.round(slider.value*(all.length-1)/last);
    all.forEach((part,i)=>{part.hidden=i!==chosen});
  });
  document.getElementById('place').textContent='checkpoint '+(+slider.value+1)+' of '+(last+1);
}
if(slider){document.querySelector('.control').hidden=false;slider.addEventListener('input',show);show()}
"""
Section = tuple[str, str, Html | None]


def page(comparison: Comparison) -> bytes:
    """The file; a section that has nothing to say is left out."""
    subjects = comparison.subjects
    sections: list[Section] = [
        ("samples", "Samples", samples(subjects)),
        ("metrics", "Metrics", metrics(comparison)),
        ("tests", "Paired tests", tests(comparison)),
        ("plot", "Quality and diversity", plot(comparison)),
        ("nearest", "Nearest training images", nearest(subjects)),
        ("inputs", "The same inputs", inputs(subjects)),
        ("provenance", "Where pixels come from", provenance(subjects)),
        ("config", "Differences of the configurations", config(subjects)),
        ("protocol", "Protocol", protocol(comparison)),
    ]
    sections = [section for section in sections if section[2] is not None]
    title = f"Comparison of {len(subjects)} checkpoint{'s' * (len(subjects) > 1)}"
    links = (tag("a", heading, href=f"#{key}") for key, heading, _ in sections)
    parts = [tag("section", tag("h2", heading, id=key), content) for key, heading, content in sections]
    main = tag("main", summary(comparison), *parts, id="content")
    return document(title, [tag("header", tag("h1", title)), tag("nav", *links, aria_label="Sections"), main], SCRIPT)


def summary(comparison: Comparison) -> Html:
    """What to choose, or why that cannot be said."""
    if comparison.unlike:
        what = f"These checkpoints are not ranked: they were measured by protocols that differ in {_list(comparison.unlike)}."
        rows = [(key, *(_cut(v) for v in values)) for key, values in comparison.unlike.items()]
        head = ["protocol", *(s.label for s in comparison.subjects)]
        return tag("div", tag("p", what), table(head, rows), class_="note warn", role="note")
    if comparison.choice is None:
        return tag("p", "They do not all have a quality and a diversity metric, so none is recommended.", class_="note")
    if comparison.choice.best is None:
        return tag("p", comparison.choice.words, class_="note warn", role="note")
    return tag("p", tag("strong", "Best by the Pareto rule: "), comparison.choice.words, class_="note")


def samples(subjects: Sequence[Subject]) -> Html:
    """A column for each run; where one has several checkpoints, a slider moves all."""
    runs = [list(run) for _, run in groupby(subjects, key=lambda subject: subject.group)]
    most = max(map(len, runs))
    columns = []
    for run in runs:
        figures = [_figure(s, "samples", COLUMNS, f"samples of {s.label}") for s in run]
        steps = tag("div", *figures, data_steps=len(figures)) if most > 1 else figures[0]
        columns.append(tag("div", tag("h3", name(run[0].run)), steps))
    text = tag("p", "Equal places show the same seed.", class_="soft")
    return join([text, _slider(most) if most > 1 else None, tag("div", *columns, class_="row")])


def _slider(count: int) -> Html:
    label = tag("label", "Training, from first to last checkpoint", for_="step")
    control = tag("input", type="range", id="step", min=0, max=count - 1, value=count - 1, step=1, autocomplete="off")
    return tag("div", label, control, tag("output", id="place", for_="step", aria_live="polite"), class_="control", hidden=True)


def _figure(subject: Subject, kind: str, columns: int, alt: str) -> Html:
    pixels = subject.pictures.get(kind)
    words = f"{subject.label}, {subject.method}, iteration {subject.iteration}"
    if pixels is None:
        return tag("figure", tag("figcaption", name(words), ": it draws no samples yet"))
    return tag("figure", picture(pixels, alt, _enlarge(subject)), tag("figcaption", name(words)))


def _enlarge(subject: Subject) -> int:
    return max(1, min(8, round(SHOWN_SIDE / max(subject.image_size))))


def plot(comparison: Comparison) -> Html | None:
    """Quality across, diversity up, the front dashed."""
    if comparison.axes is None or comparison.choice is None:
        return None
    across, up = comparison.axes
    groups = list(dict.fromkeys(s.group for s in comparison.subjects))
    drawn = [(i, s) for i, s in enumerate(comparison.subjects) if s.card["metrics"]]
    points = [
        Point(
            str(s.number), s.card["metrics"][across], s.card["metrics"][up],
            f"{s.label}: {across} {number(s.card['metrics'][across])}, {up} {number(s.card['metrics'][up])}",
            groups.index(s.group), interval_of(s, across), interval_of(s, up), repeats_training_images(s.card),
        )
        for _, s in drawn
    ]  # fmt: skip
    places = {i: place for place, (i, _) in enumerate(drawn)}
    front = [places[i] for i in comparison.choice.front]
    words = f"{across} against {up}. On the front: {', '.join(points[i].label for i in front) or 'none'}."
    text = (
        "Towards the upper left is better. Numbers are those of the checkpoints, a colour is a run, thin lines are intervals "
        "and the way of a training. Dashed: the front, which nothing beats in both. Hollow: repeats training images."
    )
    graph = scatter(points, f"{across} (low is good)", f"{up} (high is good)", front, words)
    return tag("figure", graph, tag("figcaption", text))


def nearest(subjects: Sequence[Subject]) -> Html | None:
    """Of each checkpoint the verdict, the pairs that it is about, and those nearest by their pixels."""
    parts = []
    for s in subjects:
        line = (s.card.get("verdict") or {}).get("line")
        pairs = [
            tag("figure", picture(pixels, "sample and training image", _enlarge(s)), tag("figcaption", f"{value:.1f} dB"))
            for value, pixels in s.nearest
        ]
        verdict = tag("p", line, class_="bad" if repeats_training_images(s.card) else None) if line else None
        found = [tag("h3", name(s.label)), verdict, _suspicious(s), tag("div", *pairs, class_="row")]
        parts += found if pairs or line else []
    text = (
        "In one picture the most suspicious pairs by the verdict: above a sample, below the training image. Then the samples "
        "nearest by pixels to a training image or its mirror image, which is on the right: 30 dB and more are suspicious."
    )
    return join([tag("p", text), *parts]) if parts else None


def _suspicious(subject: Subject) -> Html | None:
    if "suspicious" not in subject.pictures:
        return None
    words = "most suspicious pairs by the verdict"
    pixels = picture(subject.pictures["suspicious"], f"{subject.label}: {words}", _enlarge(subject))
    return tag("figure", pixels, tag("figcaption", words))


def inputs(subjects: Sequence[Subject]) -> Html | None:
    text = "Above the inputs, below what a checkpoint makes of them."
    return _pictures(subjects, "inputs", text, lambda s: "inputs above, renderings below")


def provenance(subjects: Sequence[Subject]) -> Html | None:
    text = (
        "Samples above the place of the training images that each pixel was copied from: a range of hues for each image, from "
        "its left to its right, darker towards its bottom. Smooth areas were copied as a whole. The key follows."
    )
    whole = _pictures(subjects, "provenance", text, lambda s: "samples and the origin of their pixels")
    if whole is None:
        return None
    keys = [s for s in subjects if "provenance_key" in s.pictures]
    key = picture(keys[0].pictures["provenance_key"], "training images above their colours", _enlarge(keys[0]))
    return join([whole, tag("figure", key, tag("figcaption", "training images above their colours"))])


def _pictures(subjects: Iterable[Subject], kind: str, text: str, alt: Callable[[Subject], str]) -> Html | None:
    figures = [
        tag("figure", picture(s.pictures[kind], f"{s.label}: {alt(s)}", _enlarge(s)), tag("figcaption", name(s.label)))
        for s in subjects
        if kind in s.pictures
    ]
    return join([tag("p", text), tag("div", *figures, class_="row")]) if figures else None


def config(subjects: Sequence[Subject]) -> Html | None:
    if len(subjects) < 2:
        return None
    found = config_differences(subjects)
    rows = [[key, *(tag("td", _cut(value), class_="words") for value in values)] for key, values in found.items()]
    if not rows:
        return tag("p", "None, apart from the names of the runs.")
    return table(["key", *(name(s.label) for s in subjects)], rows)


def protocol(comparison: Comparison) -> Html:
    """How it was measured, and which files."""
    first = comparison.subjects[0].card["protocol"]
    notes = list(dict.fromkeys(note for s in comparison.subjects for note in s.card["protocol"].get("notes", [])))
    shared = {key: _plain(value) for key, value in sorted(first.items()) if key != "notes" and key not in comparison.unlike}
    files = [[name(s.label), *(tag("td", t, class_="words") for t in (s.path, s.sha256[:16]))] for s in comparison.subjects]
    parts = [table(["checkpoint", "file", "SHA-256 begins"], files), facts(shared)]
    return join([*parts, tag("ul", *(tag("li", note) for note in notes)) if notes else None])


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(child)}" for key, child in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _cut(value: object) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= 120 else f"{text[:117]}…"


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)
