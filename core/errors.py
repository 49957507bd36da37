"""Errors that are answers to the user, and hints in their messages."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a command, a configuration or a file. The message is all that is shown; anything else has a traceback."""


def nearest_hint(word: str, known: Iterable[str]) -> str:
    """" Did you mean a or b?" for the known words most like `word`, else an empty text; starts with a blank."""
    close = difflib.get_close_matches(word, dict.fromkeys(str(k) for k in known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


class NonFiniteError(UserError, FloatingPointError):
    """Weights have become infinite or NaN: no fault of the program, and nothing more can be learned."""
