"""Separates user errors, which end a command with one line, from bugs, which show their traceback."""

import sys

from core.errors import UserError


def is_user_error(error: BaseException) -> bool:
    """True for a UserError, an OSError (the machine's, such as a full disk) and Lightning's MisconfigurationException."""
    return isinstance(error, UserError | OSError) or type(error).__name__ == "MisconfigurationException"


class report_user_errors:
    """Context that a user error ends with a line on stderr for each of its messages; `exit_code` is 2 then, else 0."""

    exit_code = 0

    def __enter__(self) -> "report_user_errors":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None or not is_user_error(error):
            return False
        messages = error.args if isinstance(error, UserError) else [error]
        print(*(f"error: {message}" for message in messages), sep="\n", file=sys.stderr)
        self.exit_code = 2
        return True
