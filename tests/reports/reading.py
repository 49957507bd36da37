"""How the tests read a page: a parser of their own, and Chromium where there is one."""

import json
import os
import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"img", "meta", "input", "br"}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
KEYS = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}  # their numbers on a keyboard
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
    command = [BROWSER, *FLAGS, "--virtual-time-budget=2000", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def in_browser(file: Path) -> str:
    """The page after its script has run."""
    return browse("--dump-dom", file.as_uri())


class Keyboard:
    """A page in a browser that takes keys as from a keyboard: commands of the DevTools protocol, ended by a zero, over two
    pipes."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers = os.fdopen(commands, "wb", 0), os.fdopen(answers, "rb", 0)
        self.number, self.session, self.unread, self.events = 0, {}, b"", []

    def send(self, method: str, **parameters: object) -> dict:
        """The answer, as soon as it is there."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | self.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self.number:
            self.events.append(answer.get("method"))
        assert "error" not in answer, answer
        return answer["result"]

    def wait_for(self, event: str) -> None:
        """Until the browser tells of one more such event."""
        while event not in self.events:
            self.events.append(self._message().get("method"))
        self.events.remove(event)

    def _message(self) -> dict:
        while b"\0" not in self.unread:
            assert select.select([self.answers], [], [], 240)[0], "the browser is silent"
            part = self.answers.read(2**16)
            assert part, "the browser has ended"
            self.unread += part
        text, _, self.unread = self.unread.partition(b"\0")
        return json.loads(text)

    def press(self, key: str, times: int = 1) -> None:
        """A key by its name, or a letter."""
        code = KEYS.get(key, ord(key[0].upper()))
        more = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        for _ in range(times):
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **more)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def value(self, script: str) -> object:
        """What an expression gives in the page."""
        return self.send("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def tab_to(self, element: str) -> int:
        """Presses Tab until the element with this id has the focus; how often."""
        for times in range(1, 100):
            self.press("Tab")
            if self.value("document.activeElement.id") == element:
                return times
        raise AssertionError(f"Tab does not lead to {element}")


@contextmanager
def keyboard_on(file: Path) -> Iterator[Keyboard]:
    """The page in a headless browser, loaded."""
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    script = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@" 2>/dev/null'  # the two numbers that the browser looks at
    command = ["bash", "-c", script, "bash", BROWSER, *FLAGS, "--remote-debugging-pipe"]
    browser = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out))
    os.close(theirs_in)
    os.close(theirs_out)
    page = Keyboard(ours_out, ours_in)
    try:
        target = page.send("Target.createTarget", url=file.as_uri())["targetId"]
        page.session = {"sessionId": page.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        page.send("Page.enable")
        page.send("Emulation.setFocusEmulationEnabled", enabled=True)
        while not page.value("document.URL.startsWith('file:') && document.readyState === 'complete'"):
            page.wait_for("Page.loadEventFired")
        yield page
    finally:
        page.commands.close()  # which ends the browser
        try:
            browser.wait(60)
        except subprocess.TimeoutExpired:
            browser.kill()
        page.answers.close()
