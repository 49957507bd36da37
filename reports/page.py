"""Self-contained HTML pages from `templates/`: every text is escaped, nothing is loaded, equal data give equal bytes."""

import base64
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from core.files import atomic_folder

GENERATOR = b'<meta name="generator" content="Handful">'  # in every page of this package
REPORT_FILES = ("index.html", "report.json", "best.json")


def render(name: str, **data: Any) -> bytes:
    """The page `templates/<name>.html` with the script `<name>.js`, the only one that its policy allows a browser to run."""
    script = TEMPLATES.get_template(f"{name}.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = TEMPLATES.get_template(f"{name}.html").render(data, script=script, script_sha256=digest)
    return page.encode("utf-8", "replace")  # file names may hold bytes that are not UTF-8


def format_number(value: object) -> str:
    """Four significant digits; "–" for None; other values as text of at most 100 characters."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)[:100]
    return f"{value:.4g}".replace("-", "−")


def format_text(value: object) -> str:
    """At most 200 characters; "not set" for None."""
    text = "not set" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:197]}…"


def data_uri(pixels: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", compress_level=9)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def write_report(folder: Path, files: Mapping[str, bytes]) -> None:
    """All or none. Files of an earlier report in `folder` are replaced or removed."""
    index = folder / "index.html"
    outdated = REPORT_FILES if index.is_file() and GENERATOR in index.read_bytes()[:2000] else ()
    with atomic_folder(folder, outdated) as draft:
        for name, content in files.items():
            (draft / name).write_bytes(content)


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"number": format_number, "text": format_text, "data_uri": data_uri}
