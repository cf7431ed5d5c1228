"""Progress is seen by people on a terminal, and costs a pipe one line per long stage."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from bars import counting
from tiny import tiny_mixtral

from mcbench import progress
from mcbench.catalogue import select_tasks
from mcbench.evaluation import LanguageModel
from mcbench.progress import inner, muted, stage, track

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


@pytest.mark.parametrize("name", ["mini-perplexity(window=128)", "mini-humaneval"])
def test_a_task_knows_how_many_samples_it_will_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    totals, samples = [], []

    def seen(steps: Iterable[Any], total: int | None = None, label: str = "") -> Iterator[Any]:
        totals.append(total)
        samples.extend(found := list(steps))
        yield from found

    monkeypatch.setattr("mcbench.task.track", seen)
    moe = tiny_mixtral()
    select_tasks(name)[0].evaluate(LanguageModel(moe.model, moe.tokenizer), limit=2, allow_code_execution=True)
    assert totals == [len(samples)]
    assert samples


def test_writing_and_running_programs_move_a_bar_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    moved, seen = counting()
    monkeypatch.setattr("mcbench.evaluation.inner", seen)
    monkeypatch.setattr("mcbench.progress.inner", seen)
    moe = tiny_mixtral()
    select_tasks("mini-humaneval")[0].evaluate(
        LanguageModel(moe.model, moe.tokenizer), limit=3, allow_code_execution=True
    )
    assert moved.pop("programs") == [3, 3]
    (tokens, allowed), *others = [counts for label, counts in moved.items() if label.startswith("at most")]
    assert 0 < tokens <= allowed
    assert not others


def test_a_bar_inside_says_nothing_where_no_step_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with inner("alone", 2) as step:
        step()
    assert capsys.readouterr().err == ""


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


def test_a_full_disk_behind_the_messages_ends_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            tried.append(text)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(progress, "NOTEWORTHY_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", Full())
    with stage("short"):
        pass
    assert tried == ["short: 0 s\n"]
