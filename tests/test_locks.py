"""Runs may share an output folder at the same time: each waits for what another is writing, and no longer."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import multiprocessing
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_folder

from mcbench import locks
from mcbench.errors import BadInput
from mcbench.locks import alone, in_turn
from mcbench.pipeline import run
from mcbench.record import FILE_NAME, Record
from mcbench.sweep import JOURNAL, Journal, Outcome

HOLD = "from mcbench.locks import in_turn\nimport pathlib, sys, time\n"
HOLD += "with in_turn(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that holds a lock until it is ended."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def lasting(record: Record) -> dict[str, Any]:
    """A record without what is different each time."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    fields["results"] = [dataclasses.replace(result, seconds=0.0) for result in record.results]
    fields["allocation"] = record.allocation.to_json()
    return {name: value for name, value in fields.items() if name not in ("created", "stages", "command")}


def test_runs_at_the_same_time_in_one_folder_give_what_each_gives_alone(tmp_path: Path) -> None:
    model, shared, apart = tiny_folder(tmp_path / "model"), tmp_path / "shared", tmp_path / "apart"
    common: dict[str, Any] = {"model": str(model), "tasks": "mini-piqa", "limit": 4, "samples": 4, "length": 64}
    methods = ["frequency+rtn+naee", "frequency+rtn+naee", "uniform+rtn"]  # one store of codes, one policy
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["mcbench.calibration", "mcbench.evaluation", "mcbench.pipeline", "transformers"])
    with ProcessPoolExecutor(len(methods), mp_context=processes) as pool:
        asked = [pool.submit(run, method, expert_bits=2, **common, out=shared) for method in methods]
        records = [one.result(timeout=300) for one in asked]
    expected = {method: run(method, expert_bits=2, **common, out=apart) for method in set(methods)}
    for method, record in zip(methods, records, strict=True):
        assert lasting(record) == lasting(expected[method])
    shared_files, files = ({p.relative_to(o) for p in o.rglob("*") if p.suffix != ".lock"} for o in (shared, apart))
    assert shared_files == files and len(list(shared.rglob(FILE_NAME))) == 2


def test_whoever_comes_second_says_that_it_waits_and_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "BRIEF_SECONDS", 0.1)
    first = holder(tmp_path / ".lock")
    with pytest.raises(BadInput, match="another process is writing to .*wait for it"), alone(tmp_path):
        pass
    threading.Timer(0.5, first.kill).start()
    began = time.monotonic()
    with in_turn(tmp_path / ".lock"):
        assert first.wait() < 0 and time.monotonic() - began > 0.3
    assert "another process is writing to" in capsys.readouterr().err
    with alone(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EIO])
def test_a_file_system_without_locks_is_told_in_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", none)
    for hold in (in_turn(tmp_path / ".lock"), alone(tmp_path)):
        with pytest.raises(BadInput, match="no locks here; put the output folder on a file system with locks") as told:
            hold.__enter__()
        assert "\n" not in str(told.value)


def test_a_lock_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / ".lock").symlink_to("elsewhere")
    for path, said in ((tmp_path / "file" / ".lock", "cannot be written"), (tmp_path / ".lock", "cannot be taken")):
        with pytest.raises(BadInput, match=said), in_turn(path):
            pass
    assert not (tmp_path / "elsewhere").exists()


def test_two_sweeps_in_one_folder_keep_what_the_other_noted(tmp_path: Path) -> None:
    one, other = Journal(tmp_path / JOURNAL), Journal(tmp_path / JOURNAL)
    one.note("a", Outcome("first", "failed", reason="by the one"))
    other.note("b", Outcome("second", "failed", reason="by the other"))
    assert set(Journal(tmp_path / JOURNAL).cells) == {"a", "b"}
