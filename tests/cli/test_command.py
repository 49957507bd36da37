"""How a command ends."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import atexit
from cli.command import end_process

class Teardown:
    def __del__(self):
        print("teardown")

kept = Teardown()
atexit.register(print, "exit handler")
print("done", end=" ")
end_process({code})
"""


@pytest.mark.parametrize(("code", "teardown"), [(0, True), (2, True), (124, True), (130, False), (143, False)])
def test_a_command_that_a_signal_has_ended_does_not_wait_for_the_teardown(code, teardown):
    """The teardown would print a line, and with torch loaded take seconds."""
    command = [sys.executable, "-c", SCRIPT.format(code=code)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == code and result.stderr == ""
    assert result.stdout == "done exit handler\n" + "teardown\n" * teardown


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_the_entry_points_end_so(name):
    assert "\n    end_process(main(sys.argv[1:]))\n" in (ROOT / name).read_text()
