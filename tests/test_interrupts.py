"""Ctrl-C ends every command with exit code 130 and one line, wherever it arrives: no destructor or library eats it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import tiny_folder, tiny_text

from mcbench import interrupts, progress

SAID = "mcbench: interrupted; the same command goes on from here\n"
# a command that meets a real SIGINT in a place from which exceptions do not come out
COMMAND = """
import atexit, contextlib, ctypes, gc, os, signal, sys, threading, time, weakref
from mcbench import cli

def interrupt(number=signal.SIGINT):
    os.kill(os.getpid(), number)
    for _ in range(1000):  # Python looks for signals between two steps
        pass

class Fragile:
    def __del__(self):
        interrupt()

def command(options):
    __PLACE__
    return 0

cli._list = command
sys.argv = ["mcbench", "list", "methods"]
from mcbench.__main__ import main
sys.exit(main())
"""
PLACES = {
    "where it can be heard": "interrupt()",
    "in a destructor": "thing = Fragile(); del thing",
    "in a destructor found by the collector": "a = Fragile(); a.itself = a; del a; gc.collect()",
    "in a callback of C code": "ctypes.CFUNCTYPE(None)(interrupt)()",
    "in a callback of a weak reference": "b = type('B', (), {})(); r = weakref.ref(b, lambda _: interrupt()); del b",
    "where everything is caught": "\n    try: interrupt()\n    except BaseException: pass",
    "where it becomes another error": "\n    try: interrupt()\n    except BaseException: raise ImportError('half')",
    "where it becomes SystemExit": "\n    try: interrupt()\n    except BaseException: sys.exit(0)",
    "while another is handled": "\n    try: interrupt()\n    finally: interrupt()",
    "in a thread": "t = threading.Thread(target=interrupt); t.start(); time.sleep(30)",
    "by kill": "interrupt(signal.SIGTERM)",
    "by kill where everything is caught": "\n    try: interrupt(signal.SIGTERM)\n    except BaseException: pass",
    "by a terminal that closes": "interrupt(signal.SIGHUP)",
    "while a thread is awaited": "t = threading.Timer(0.2, interrupt); t.start(); t.join()",
}


@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_ends_a_command(place: str) -> None:
    source = COMMAND.replace("__PLACE__", PLACES[place])
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (130, SAID)


def test_ctrl_c_in_the_last_moments_of_a_command_that_was_done_is_no_success() -> None:
    source = COMMAND.replace("__PLACE__", "atexit.register(interrupt)")
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_second_ctrl_c_while_python_leaves_ends_it_with_the_same_code() -> None:
    """Between the last handler of ours and the end of the process a signal would end it in its own way."""
    source = COMMAND.replace("__PLACE__", "atexit.register(time.sleep, 2); interrupt()")
    with subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.PIPE, text=True) as going:
        assert going.stderr is not None and going.stderr.readline() == SAID
        going.send_signal(signal.SIGINT)
        assert (going.wait(), going.stderr.read()) == (130, "")
    source = COMMAND.replace("__PLACE__", "late = Late(); sys.modules['late'] = late; interrupt()")
    source = source.replace("def command", "class Late:\n    __del__ = interrupt\n\ndef command")
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (130, SAID)


def test_signals_that_were_asked_to_be_ignored_are_ignored() -> None:
    source = (
        "import signal\nfor n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(n, signal.SIG_IGN)\n"
    )
    every = "interrupt(); interrupt(signal.SIGTERM); interrupt(signal.SIGHUP)"
    source += COMMAND.replace("__PLACE__", every)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_dropped_ctrl_c_is_raised_at_the_next_border_of_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps() -> Iterator[int]:
        for step in range(3):
            if step == 1:
                monkeypatch.setattr(interrupts._State, "asked", True)
            yield step

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(progress.track(steps(), 3, "steps"))
    assert seen == [0, 1]
    with pytest.raises(KeyboardInterrupt), progress.stage("next"):
        seen.append(9)
    assert 9 not in seen


def test_a_caller_gets_its_own_handling_back() -> None:
    before = [signal.getsignal(each) for each in interrupts.SIGNALS], sys.unraisablehook
    with interrupts.heard():
        assert not {signal.getsignal(each) for each in interrupts.SIGNALS} & set(before[0])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupts.asked()
    assert ([signal.getsignal(each) for each in interrupts.SIGNALS], sys.unraisablehook) == before
    assert not interrupts.asked()


@pytest.mark.slow
def test_ctrl_c_at_any_moment_of_a_real_run(tmp_path: Path) -> None:
    model, text = tiny_folder(tmp_path / "model", max_position_embeddings=1024), tiny_text(tmp_path)
    words = ["run", "--method", "pmq+odp", "--expert-bits", "2", "--model", str(model), "--calibration", str(text)]
    words += ["--samples", "8", "--length", "64", "--tasks", "mini-piqa,mini-gsm8k,mini-humaneval", "--limit", "8"]
    command = [sys.executable, "-m", "mcbench", *words, "--quiet", "--out"]
    started = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    whole, heard = time.monotonic() - started, 0
    for point in range(20):
        with subprocess.Popen(
            [*command, str(tmp_path / str(point))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as going:
            time.sleep(0.5 + point * whole / 20)
            going.send_signal(signal.SIGINT)
            _, said = going.communicate()
        if going.returncode != 0 or not said:
            assert (going.returncode, said) in ((130, SAID), (130, ""), (0, "")), point
        heard += going.returncode == 130
    assert heard >= 10
