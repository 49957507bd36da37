"""One HTML file that needs nothing beside itself: tags that escape, pictures inside, a style that can be read.

The same content gives the same bytes: no time, no random names, one encoding of pictures.
"""

import base64
import hashlib
import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

EMPTY = ("img", "meta", "input")  # of HTML; SVG has none
STYLE = """
:root{color-scheme:light;--ink:#1b1f24;--soft:#57606a;--rule:#d0d7de;--tint:#f3f6f9;--accent:#0b57a4;--bad:#a40e26;--good:#116329}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:var(--ink);font:16px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main,header,nav{max-width:1200px;margin:0 auto;padding:0 20px}
h1{font-size:1.7rem;margin:1.2em 0 .2em}
h2{font-size:1.25rem;margin:2em 0 .4em;padding-top:.4em;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:0 0 .3em;overflow-wrap:anywhere}
p{max-width:75ch}a{color:var(--accent)}nav a{margin-right:1.1em}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
.skip{position:absolute;left:-999em}.skip:focus{position:static}
.scroll{overflow-x:auto;margin:.6em 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding:.3em 0}
th,td{padding:.3em .7em;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top}
thead th{background:var(--tint)}th[scope=row],td.words{text-align:left}
th[scope=row]{min-width:9em;max-width:20em;overflow-wrap:break-word}
thead th:first-child{text-align:left}thead th{min-width:7em;overflow-wrap:break-word}th small{display:block;font-weight:400}
td.words{max-width:26em;min-width:8em;overflow-wrap:anywhere}
small,.soft{color:var(--soft);font-size:.85rem}td small{display:block;white-space:nowrap}
.best{font-weight:700;color:var(--good)}.bad{color:var(--bad);font-weight:600}
.note{border-left:4px solid var(--accent);background:var(--tint);padding:.6em 1em;max-width:80ch;margin:1em 0}
.warn{border-left-color:var(--bad)}
.row{display:flex;flex-wrap:wrap;gap:22px;align-items:flex-start}
figure{margin:0 0 .6em}figcaption{font-size:.85rem;color:var(--soft);overflow-wrap:anywhere}
img{max-width:100%;height:auto;image-rendering:pixelated;border:1px solid var(--rule);display:block}
.control{position:sticky;top:0;background:#fff;padding:.5em 0;display:flex;gap:1em;align-items:center;flex-wrap:wrap;z-index:1}
input[type=range]{width:min(420px,70vw);accent-color:var(--accent)}
input[type=search]{font:inherit;padding:.3em .6em;border:1px solid var(--soft);border-radius:4px}
summary{cursor:pointer;color:var(--accent)}
article{border:1px solid var(--rule);border-radius:6px;padding:14px;width:370px;max-width:100%}
dl{display:grid;grid-template-columns:auto 1fr;gap:.1em .8em;margin:.4em 0;font-size:.9rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
bdi{unicode-bidi:isolate}
svg{max-width:100%;height:auto}svg text{font:13px system-ui,"DejaVu Sans",sans-serif;fill:var(--ink)}
@media print{.control,nav{display:none}}
"""


class Html(str):
    """Text that is HTML already; every other text is escaped on its way into a tag."""


def tag(element: str, /, *content: object, **attributes: object) -> Html:
    """An element. None and False leave an attribute out, True gives it no value; `class_` is class, `a_b` is a-b."""
    words = [element]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            words.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Html(start if element in EMPTY else f"{start}{join(content)}</{element}>")


def join(parts: Iterable[object]) -> Html:
    """The parts one after the other; None is left out."""
    return Html("".join(part if isinstance(part, Html) else html.escape(str(part)) for part in parts if part is not None))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: str | None = None) -> Html:
    """A table whose first column names its rows; cells may be `td` tags of their own."""
    header = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = [tag("tr", tag("th", first, scope="row"), *(_cell(cell) for cell in rest)) for first, *rest in rows]
    above = tag("caption", caption) if caption else None
    whole = tag("table", above, tag("thead", header), tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption or f"table by {head[0]}")


def _cell(content: object) -> Html:
    return content if isinstance(content, Html) and content.startswith("<td") else tag("td", content)


def facts(values: Mapping[str, object]) -> Html:
    """Names with their values; those that are None are left out."""
    pairs = [(key, value) for key, value in values.items() if value is not None]
    return tag("dl", *(join([tag("dt", key), tag("dd", name(value))]) for key, value in pairs))


def name(text: object) -> Html:
    """A text of foreign origin: whatever direction it is written in, its neighbours keep theirs."""
    return text if isinstance(text, Html) else tag("bdi", text)


def picture(pixels: np.ndarray, alt: str, enlarge: int = 1) -> Html:
    """An image of bytes [H, W, 3], shown `enlarge` times as large with its pixels kept."""
    height, width = pixels.shape[:2]
    return tag("img", src=data_uri(pixels), alt=alt, width=width * enlarge, height=height * enlarge)


def data_uri(pixels: np.ndarray) -> str:
    """Bytes [H, W, 3] as a PNG inside of a link."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", compress_level=9)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def number(value: object) -> str:
    """Four digits of a number, "–" for one that is not there; of anything else the first hundred letters."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)[:100]
    return f"{value:.4g}".replace("-", "−")


def document(title: str, parts: Iterable[object], script: str = "") -> bytes:
    """The whole file. Its policy lets a browser load nothing and run nothing but `script`, whatever a text holds."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    body = tag("body", tag("a", "To the content", href="#content", class_="skip"), *parts, tag("script", Html(script)))
    whole = "<!doctype html>\n" + tag("html", head, body, lang="en")
    return whole.encode("utf-8", "replace")  # names of files may hold what is no text


def write_whole(file: Path, content: bytes) -> None:
    """Writes a file as a whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".tmp")
    draft.write_bytes(content)
    os.replace(draft, file)


def flat(node: Any, key: str = "") -> dict[str, Any]:
    """Dotted keys and values of nested mappings; lists are values."""
    if not isinstance(node, Mapping):
        return {key: node}
    return {k: v for name, child in node.items() for k, v in flat(child, f"{key}.{name}" if key else str(name)).items()}
