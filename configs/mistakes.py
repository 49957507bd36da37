"""Which errors are answers to the user, and which are faults of the program."""

import sys
import traceback
from pathlib import Path

PROJECT = Path(__file__).parent.parent
ROOMS = ("modules", "datamodules", "callbacks", "reports", "configs", "train.py", "evaluate.py", "sweep.py")


def is_mistake(error: BaseException) -> bool:
    """True for an error that was made to be read by the user; anything else deserves its traceback.

    Those are the ValueErrors that a `raise` in this project wrote (not those of the libraries, nor of an int("x") in this
    project), its FloatingPointErrors (weights that are not finite any more), OSErrors, which are the machine's, such as a
    full disk, and Lightning's MisconfigurationException.
    """
    if isinstance(error, OSError) or type(error).__name__ == "MisconfigurationException":
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, ValueError | FloatingPointError) or not frames:
        return False
    file = Path(frames[-1].filename)
    own = file.is_relative_to(PROJECT) and file.relative_to(PROJECT).parts[0] in ROOMS
    return own and (frames[-1].line or "").startswith("raise ")


class MistakesTold:
    """Context that a mistake ends with one line for the user; `exit_code` is 2 then, else 0."""

    exit_code = 0

    def __enter__(self) -> "MistakesTold":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None or not is_mistake(error):
            return False
        print(f"error: {error}", file=sys.stderr)
        self.exit_code = 2
        return True
