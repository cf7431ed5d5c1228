"""Progress is seen by people on a terminal, and costs a pipe one line per long stage."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import re
import subprocess
import sys

import pytest

from mcbench import progress
from mcbench.progress import muted, stage, track

NESTED = """
import time
from mcbench.progress import track
for outer in track(range(4), 4, "outer"):
    for inner in track(range(3), 3, "inner"):
        time.sleep(0.2)
"""


@pytest.fixture(autouse=True)
def _every_step_is_noteworthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "NOTEWORTHY_SECONDS", 0.0)


def test_a_pipe_gets_one_line_for_the_outermost_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert [(a, b) for a in track("xy", 2, "outer") for b in track(range(2), 2, "inner")] == list(
        itertools.product("xy", range(2))
    )
    assert capsys.readouterr().err == "outer: 0 s\n"


def test_a_step_cut_short_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        for step in track(range(4), 4, "dividing"):
            1 / (2 - step)
    assert capsys.readouterr().err == "dividing: 2 of 4, 0 s\n"


def test_nothing_is_said_when_muted(capsys: pytest.CaptureFixture[str]) -> None:
    with muted(), stage("loading"):
        assert list(track([1, 2], 2, "inside")) == [1, 2]
    with muted(False), stage("loaded"):
        pass
    assert capsys.readouterr().err == "loaded: 0 s\n"


def test_a_terminal_sees_bars_inside_each_other_with_time_left() -> None:
    seen = on_a_terminal(NESTED)
    assert "outer" in seen
    assert "inner" in seen
    assert re.search(r"left \S*0:00:0\d", seen)
    assert "\x1b[?25h" in seen  # the cursor is shown again


def test_importing_it_costs_nothing() -> None:
    check = "import sys, mcbench.progress; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def on_a_terminal(script: str) -> str:
    """What `script` writes to stderr when that is a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", script], stderr=theirs, env=environment) as running:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # raised when the other end closes
            while more := os.read(ours, 4096):
                seen += more
        os.close(ours)
    assert running.returncode == 0
    return seen.decode()
