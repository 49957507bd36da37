"""Errors that are answers to the user, and hints in their messages."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Mistakes in a command, a configuration or a file, a message each. They are all that is shown; bugs have a traceback."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class Mistakes(dict[str, str]):
    """Messages by dotted key or argument, to be shown together; the first one about a key stays.

    `copies` are keys that take their value from another key: a mistake there is not repeated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies: dict[str, str] = {}

    def add(self, key: str, message: str) -> None:
        self.setdefault(key, message)

    @contextmanager
    def collect(self, key: str) -> Iterator[None]:
        """Context that a UserError ends, its message noted under `key`."""
        try:
            yield
        except UserError as error:
            self.add(key, str(error))

    def raise_any(self) -> None:
        messages = [message for key, message in self.items() if self.copies.get(key) not in self]
        if messages:
            raise UserError(*messages)


def nearest_hint(word: str, known: Iterable[str]) -> str:
    """" Did you mean a or b?" for the known words most like `word`, else an empty text; starts with a blank."""
    close = difflib.get_close_matches(word, dict.fromkeys(str(k) for k in known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


class NonFiniteError(UserError, FloatingPointError):
    """Weights have become infinite or NaN: no fault of the program, and nothing more can be learned."""
