"""How the tests read a page: a parser of their own, and Chromium where there is one."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"img", "meta", "input", "br"}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt-get install chromium)")


class Reader(HTMLParser):
    """Elements with their attributes, the text, and what is wrong with the nesting."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.wrong, self.open = "", [], []
        self.feed(page.decode())
        self.wrong += self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def check_self_contained(page: bytes) -> Reader:
    """Well nested, no link to anything outside of itself, everything reachable by the keyboard; returns what was read."""
    read = Reader(page)
    assert read.wrong == []
    for _, attributes in read.elements:
        for key in {"src", "href", "action", "data", "srcset", "poster", "xlink:href"} & attributes.keys():
            assert attributes[key].startswith(("data:image/png;base64,", "#"))
        assert not any(key.startswith("on") for key in attributes)
    assert not re.search(r"@import|url\(|fetch\(|https?://", page.decode())
    names = {name for name, _ in read.elements}
    assert not names & {"iframe", "object", "embed", "link", "base", "form"}
    targets = {attributes.get("id") for _, attributes in read.elements}
    assert all(a["href"][1:] in targets for a in read.all("a"))
    labelled = {label["for"] for label in read.all("label")}
    assert all(field["id"] in labelled for field in read.all("input"))
    assert all(image.get("alt") for image in read.all("img"))
    assert all(part.get("tabindex") == "0" for _, part in read.elements if part.get("class") == "scroll")
    return read


def browse(*arguments: str) -> str:
    """What headless Chromium writes to its output."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=2000"]
    result = subprocess.run([BROWSER, *flags, *arguments], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def in_browser(file: Path) -> str:
    """The page after its script has run."""
    return browse("--dump-dom", file.as_uri())
