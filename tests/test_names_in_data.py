"""Names that come out of files are looked up among registered names: no file runs because another file names it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from records import sample_record, sample_result

from mcbench.checkpoint import COMPRESSION, _dtype, read_explained, write_explained
from mcbench.composition import compose
from mcbench.errors import BadInput, UnknownName
from mcbench.leaderboard import leaderboard
from mcbench.page import item_ids
from mcbench.pipeline import Exam
from mcbench.profiling import profile
from mcbench.scoring import score
from mcbench.sealed import content_digest
from mcbench.sweep import Journal, Outcome, read_grid
from mcbench.task import COMPLETIONS
from mcbench.versus import compare


@pytest.fixture
def trap(tmp_path: Path) -> tuple[Path, Path]:
    """A Python file, and the file that appears where it is run."""
    sprung = tmp_path / "sprung"
    code = tmp_path / "theirs.py"
    code.write_text(f"open({str(sprung)!r}, 'w').close()\n")
    return code, sprung


def test_a_record_runs_no_file_that_it_names(trap: tuple[Path, Path], tmp_path: Path) -> None:
    code, sprung = trap
    result = sample_result(str(code), outcomes=(1.0,) * 60 + (0.0,) * 40)
    (tmp_path / "runs").mkdir()
    sample_record(method=str(code), results=(result,), calibration=None).save(tmp_path / "runs" / "record.json")
    leaderboard([tmp_path / "runs"], tmp_path / "out")
    assert item_ids(str(code), result.protocol) == ()
    with pytest.raises(UnknownName, match="a record names no file"):
        profile(record=tmp_path / "runs", out=tmp_path / "out")
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": dataclasses.replace(sample_record().model, name="./elsewhere")}, "give it with --model"),
        (
            {"calibration": dataclasses.replace(sample_record().calibration, source="/etc/passwd")},  # type: ignore[type-var]
            "give it with --calibration",
        ),
        ({"method": "none+odp(fitted=/tmp)", "calibration": None}, "names a folder"),
    ],
    ids=["model", "calibration", "fitted"],
)
def test_a_record_leads_profile_to_no_file(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    sample_record(**changes).save(tmp_path / "record.json")
    with pytest.raises(BadInput, match=reason):
        profile(record=tmp_path, out=tmp_path / "out")


@pytest.mark.parametrize("key", ["methods", "tasks"])
def test_a_grid_file_runs_no_file_that_it_names(trap: tuple[Path, Path], tmp_path: Path, key: str) -> None:
    code, sprung = trap
    grid = tmp_path / "grid.toml"
    grid.write_text(
        f'methods = "none"\n{key} = "none,pmq+{code}(a=1)"\n' if key == "tasks" else f'methods = "pmq+{code}"'
    )
    with pytest.raises(BadInput, match=f"names a Python file.*--{key}"):
        read_grid(grid)
    assert read_grid(grid, **{key: str(code)}) is not None
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["../other.jsonl", "/etc/hostname"])
def test_a_record_names_samples_beside_it_alone(tmp_path: Path, name: str) -> None:
    for run in "ab":
        result = sample_result(samples=name, outcomes=(1.0,) * 60 + (0.0,) * 40)
        sample_record(results=(result,)).save(tmp_path / run / "record.json")
    with pytest.raises(BadInput, match="no file beside it"):
        compare([tmp_path / "a", tmp_path / "b"])


def test_a_journal_leads_to_no_record_outside_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "out" / "sweep.json"
    path.parent.mkdir()
    for where, found in (("../elsewhere", False), (".", True)):
        record = path.parent / where / "record.json"
        sample_record(results=()).save(record)
        Journal(path).note("k", Outcome("c", "done", str(record)))
        assert (Journal(path).finished("k", ()) is not None) == found


def test_method_strings_out_of_data_hold_registered_names_only(trap: tuple[Path, Path]) -> None:
    code, sprung = trap
    for text in (str(code), f"pmq+{code}", f"pmq+{code}(a=1)", "./theirs.py", "a/b"):
        with pytest.raises(UnknownName):
            compose(text, registered=True)
    assert not sprung.exists()


def test_a_packed_folder_names_files_in_it_alone(tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("private")
    packed = tmp_path / "packed"
    packed.mkdir()
    write_explained(packed, {"schema": 1})
    path = packed / COMPRESSION
    for name in ("../outside.txt", str(tmp_path / "outside.txt"), "a/b"):
        explained = json.loads(path.read_text())
        del explained["seal"]
        explained["files"] = {name: "0" * 64}
        path.write_text(json.dumps({**explained, "seal": content_digest(explained)}))
        with pytest.raises(BadInput, match="no file beside it"):
            read_explained(packed)


@pytest.mark.parametrize("name", ["load", "hub", "nn", "no_such", ""])
def test_a_dtype_in_a_packed_folder_is_a_dtype(name: str) -> None:
    with pytest.raises(BadInput, match="there is no dtype"):
        _dtype(name)


def test_programs_in_a_file_belong_to_a_registered_task(trap: tuple[Path, Path], tmp_path: Path) -> None:
    code, sprung = trap
    path = tmp_path / f"x{COMPLETIONS}"
    for name in (str(code), "../theirs.py", "./theirs.py"):
        owner = {"schema": 1, "protocol": f"{name}@0", "model": "m", "parameters": {}, "limit": None}
        path.write_text(json.dumps(owner) + "\n")
        with pytest.raises(BadInput):
            score(path)
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["..", ".", "../../x", "/etc/x", "~/x", "a/../..", "owner/model"])
def test_a_run_of_a_model_of_any_name_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = Exam((), out, None, False).place(SimpleNamespace(name=name), f"{name}+rtn 2", "f" * 64)  # type: ignore[arg-type]
    assert folder.resolve().parent == out.resolve()
