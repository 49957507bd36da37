"""How a command ends."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import atexit, sys, time
from cli.command import end_process

class Teardown:
    def __del__(self):
        print("teardown")
        time.sleep({seconds})

kept = Teardown()
atexit.register(print, "exit handler")
print("done", end=" ")
end_process({code})
"""


@pytest.mark.parametrize(("code", "teardown"), [(0, True), (2, True), (124, True), (130, False), (143, False)])
def test_a_command_that_a_signal_has_ended_does_not_wait_for_the_teardown(code, teardown):
    script = SCRIPT.format(code=code, seconds=0 if teardown else 60)
    begin = time.monotonic()
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == code and result.stderr == ""
    assert result.stdout == "done exit handler\n" + "teardown\n" * teardown
    assert time.monotonic() - begin < 50


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_the_entry_points_end_so(name):
    assert "\n    end_process(main(sys.argv[1:]))\n" in (ROOT / name).read_text()
