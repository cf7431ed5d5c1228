"""What a user sees when something goes wrong: one sentence, an exit code that says of what kind, never a traceback."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcbench import cli, failures
from mcbench.cli import _parser, main
from mcbench.errors import BadInput
from mcbench.files import require_writable
from mcbench.inputs import require_place

RUN = [sys.executable, "-m", "mcbench"]


def commands() -> list[str]:
    return list(_parser().commands())


class PanicException(BaseException):
    """As the Rust parts of tokenizers raise it: no Exception."""


def worst(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def command(options: argparse.Namespace) -> int:
        raise error

    return command


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """`mcbench list` meets this error."""
    monkeypatch.setattr(cli, "_list", worst(error))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("x"), "an error that mcbench does not foresee (KeyError: 'x'"),
        (RuntimeError("line one\n  line\x1b[31m two"), "(RuntimeError: line one line [31m two"),
        (PanicException("regex too large"), "(PanicException: regex too large"),
        (AssertionError(), "(AssertionError"),
        (SystemExit(0), "tried to end the program (SystemExit: 0)"),
        (MemoryError(), "the memory does not suffice (MemoryError)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "the memory does not suffice"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), "UnicodeEncodeError"),
        (RuntimeError("long " * 1000), "long long"),
        (ExceptionGroup("several", [ValueError("one")]), "ExceptionGroup"),
    ],
)
def test_what_nobody_foresaw_is_one_sentence_and_a_file_with_the_details(
    error: BaseException, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(monkeypatch, error)
    assert main(["list", "methods"]) == failures.UNFORESEEN == 70
    told = capsys.readouterr()
    assert not told.out
    (line,) = told.err.splitlines()
    assert line.startswith("mcbench: ") and said in line and len(line) < 600 and "--debug" in line
    (kept,) = tmp_path.glob("mcbench-failure-*.txt")
    assert str(kept) in line and "Traceback" in kept.read_text() and "Python 3" in kept.read_text()


def test_the_details_lie_where_the_run_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_run", worst(KeyError("x")))
    assert main(["run", "--out", str(tmp_path)]) == 70
    (kept,) = tmp_path.glob("mcbench-failure-*.txt")
    assert str(kept) in capsys.readouterr().err
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert main(["run", "--out", str(tmp_path / "absent")]) == 70
    assert "no file could be written for the details" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_debug_shows_the_traceback(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(failures.DEBUG, "1" if how == "variable" else "")
    failing(monkeypatch, KeyError("x"))
    assert main(["list", "methods", *(["--debug"] if how == "flag" else [])]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(BadInput("no"), 2), (OSError(28, "No space left on device", "x"), 2), (KeyboardInterrupt(), 130)],
)
def test_what_was_foreseen_leaves_no_file(
    error: BaseException, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(monkeypatch, error)
    assert main(["list", "methods"]) == code
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_failing_thread_writes_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(options: argparse.Namespace) -> int:
        thread = threading.Thread(target=[].pop)
        thread.start()
        thread.join()
        return 0

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(cli, "_list", command)
    assert main(["list", "methods"]) == 0
    assert not capsys.readouterr().err


def ended(*words: str, **ways: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **ways.pop("env", {})}
    return subprocess.run([*RUN, *words], capture_output=True, text=True, env=environment, check=False, **ways)


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    with subprocess.Popen([*RUN, "list", "tasks"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as going:
        assert going.stdout is not None and going.stderr is not None
        going.stdout.close()
        assert going.stderr.read() == b""
    assert going.returncode == 0


def test_a_full_disk_behind_the_output_is_named_once() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as sink:
        done = subprocess.run([*RUN, "list", "tasks"], stdout=sink, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "mcbench: No space left on device; what was finished is kept\n"


def test_a_terminal_of_few_characters_gets_question_marks() -> None:
    done = ended("show", "pmq", "--debug", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert done.returncode == 0 and not done.stderr
    done = ended("run", "--method", "pmq\u2192", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_an_argument_that_is_no_text_is_refused() -> None:
    done = subprocess.run([*RUN, "run", "--method", b"\xff"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr == "mcbench: the argument '\\udcff' is not valid UTF-8\n"


def test_without_output_a_command_still_ends_in_order() -> None:
    closed = " ".join(RUN) + " list tasks >&- 2>&-"
    assert subprocess.run(["sh", "-c", closed], check=False).returncode == 0


# -- names that are nearly right


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a command: run, list, show"),
        (["--modle", "x"], "there is no option '--modle' here; did you mean 'mcbench run --model'?"),
        (["--zzz"], "there is no option '--zzz' here; `mcbench --help` lists them"),
        (["--verson"], "did you mean '--version'?"),
        (["rnu"], "there is no command 'rnu'; did you mean 'run'?"),
        (["run", "--modle", "x"], "there is no option '--modle' here; did you mean '--model'?"),
        (["run", "--bit=2"], "did you mean '--bits'?"),
        (["run", "--gate"], "there is no option '--gate' here; did you mean"),
        (["run", "pmq"], "'pmq' is one argument too many"),
        (["list", "method"], "there is no what 'method'; did you mean 'methods'?"),
        (["run", "--dtype", "float23"], "there is no dtype 'float23'; did you mean 'float32'?"),
        (["sweep", "--engine", "rai"], "did you mean 'ray'?"),
        (["sweep", "--engine", "zzz"], "there is no engine 'zzz'; known are local, ray"),
        (["run", "--limit", "9" * 5000], "invalid int value"),
    ],
)
def test_what_is_nearly_right_is_answered_with_what_is(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and told.startswith("usage: mcbench")
    assert said in told.splitlines()[-1] and len(told.splitlines()[-1]) < 300


@pytest.mark.parametrize("command", commands())
def test_every_option_of_every_command_is_suggested_for_a_slip(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = _parser().commands()[command]
    words = {"list": ["methods"], "data": ["check", "x"], "show": ["x"], "check": ["x"], "figure": ["x"]}
    words |= {"score": ["x"], "compare": ["x", "y"]}
    for flag in [flag for flag in parser._option_string_actions if len(flag) > 4]:
        slip = flag[:3] + flag[4] + flag[3] + flag[5:] if flag[3] != flag[4] else flag + flag[-1]
        with pytest.raises(SystemExit) as stopped:
            main([command, *words.get(command, []), slip])
        assert stopped.value.code == 2
        assert "did you mean '--" in capsys.readouterr().err.splitlines()[-1], slip


def test_a_name_like_no_other_is_answered_with_all(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["show", "zzzzzz"], ["run", "--method", "zzzzzz"], ["run", "--bits", "2", "--tasks", "zzzzzz"]):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert "; known are " in told and "; (" not in told


# -- values that no option can want


ENDLESS = {
    "a record": ["compare", "{}", "{}"],
    "records": ["leaderboard", "{}", "--out", "out"],
    "a figure's records": ["figure", "tradeoff", "{}"],
    "a profile's record": ["profile", "--record", "{}"],
    "calibration text": ["run", "--bits", "2", "--calibration", "{}"],
    "a grid": ["sweep", "{}"],
    "programs": ["score", "{}"],
    "a model": ["run", "--bits", "2", "--model", "{}"],
    "a method": ["check", "{}"],
    "a data folder": ["data", "check", "{}"],
}


@pytest.mark.parametrize("words", ENDLESS.values(), ids=ENDLESS)
def test_a_device_or_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pipe = tmp_path / "pipe.completions.jsonl"
    os.mkfifo(pipe)
    device = tmp_path / "zero.completions.jsonl"
    device.symlink_to("/dev/zero")
    for place in (pipe, device):
        assert main([word.format(place) for word in words]) == 2
        said = capsys.readouterr().err
        assert said.startswith("mcbench: ") and said.count("\n") == 1 and str(place.name) in said


def test_two_dashes_are_the_value_of_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--bits", "--widths", "--out", "--limit", "--dtype"):
        with pytest.raises(SystemExit) as caught:
            main(["run", f"{option}=--"])
        assert caught.value.code == 2 and f"{option}: expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["show", "{}"], ["compare", "{}", "b"], ["run", "--bits", "2", "--model", "{}"]])
def test_an_endless_word_is_shortened_in_the_message(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word.format("x" * 100_000) for word in words]) == 2
    said = capsys.readouterr().err
    assert len(said) < 4000 and "characters" in said


def test_a_record_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "record.json"
    with path.open("wb") as file:
        file.truncate(2**35)
    assert main(["compare", str(path), str(path)]) == 2
    assert "it has 34,359,738,368 bytes, and 1,073,741,824 are the most" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["a\0b", "x" * 300, "x/" * 3000, "file/below", "/proc/nowhere/below"])
def test_a_place_that_cannot_be_is_refused_from_python_as_well(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for where in (require_writable, require_place):
        with pytest.raises(BadInput, match="cannot be written|is no name"):
            where(tmp_path / place)


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_without_a_place_for_messages_the_exit_code_alone_says_what_was_wrong(closed: str) -> None:
    command = f"exec {sys.executable} -m mcbench run --method pmp {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
