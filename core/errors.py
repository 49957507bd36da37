"""Errors that are answers to the user and end a command with one line, unlike bugs, and hints in their messages."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager


class UserError(ValueError):
    """Something wrong in a command, a configuration or a file; one message for each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class NonFiniteError(UserError, FloatingPointError):
    """Weights have become infinite or NaN: no fault of the program, and nothing more can be learned."""


def is_user_error(error: BaseException) -> bool:
    """True for a UserError, an OSError (the machine's, such as a full disk) and Lightning's MisconfigurationException."""
    return isinstance(error, UserError | OSError) or type(error).__name__ == "MisconfigurationException"


class report_user_errors(AbstractContextManager):
    """Context that a user error ends with a line on stderr for each of its messages; `exit_code` is 2 then, else 0."""

    exit_code = 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None or not is_user_error(error):
            return False
        for message in error.args if isinstance(error, UserError) else [error]:
            print(f"error: {message}", file=sys.stderr)
        self.exit_code = 2
        return True


class ErrorCollector(dict[str, str]):
    """Messages by dotted key or argument, to be shown together; the first one about a key stays."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: dict[str, str] = {}  # key → the key from which it takes its value, and whose error is not repeated
        self.texts: dict[str, str] = {}  # key → its value as the command line gives it, for advice

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


def check_counts(user: str, least: int, noun: str, *counts: int) -> None:
    """UserError "`user` needs at least `least` `noun`, got …" if one of the counts is smaller."""
    if min(counts) < least:
        raise UserError(f"{user} needs at least {least} {noun}, got {' and '.join(map(str, counts))}")


def nearest_hint(word: str, known: Iterable[str]) -> str:
    """" Did you mean a or b?" for the known words most like `word`, else an empty text; starts with a blank."""
    close = difflib.get_close_matches(word, dict.fromkeys(str(k) for k in known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""
