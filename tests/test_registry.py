"""Contributions are found by file name, imported one at a time, and refused with a reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mcbench.composition import METHODS
from mcbench.errors import BadInput, UnknownName
from mcbench.method import Method
from mcbench.registry import Registry

MINE = """
from dataclasses import dataclass
from mcbench.method import Method

@dataclass(frozen=True)
class Mine(Method):
    '''Gives every expert two bits.'''
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_listing_imports_no_method() -> None:
    names = METHODS.names()
    assert "pmq" in names
    fresh = {n for n in names if f"mcbench.methods.{n.replace('-', '_')}" not in sys.modules}
    METHODS.names()
    assert all(f"mcbench.methods.{n.replace('-', '_')}" not in sys.modules for n in fresh)


def test_a_dash_in_a_name_is_an_underscore_in_the_file() -> None:
    source = METHODS.source("routing-weight")
    assert source is not None and source.name == "routing_weight.py"


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="no method is called 'pmp'; did you mean 'pmq'"):
        METHODS.get("pmp")


def test_a_file_is_a_method(tmp_path: Path) -> None:
    kind = METHODS.get(write(tmp_path, MINE))
    assert issubclass(kind, Method) and kind.__name__ == "Mine"


def test_a_file_asked_for_twice_is_one_class_until_it_changes(tmp_path: Path) -> None:
    first = METHODS.get(write(tmp_path, MINE))
    assert METHODS.get(write(tmp_path, MINE)) is first
    assert METHODS.get(write(tmp_path, MINE + "\nCHANGED = True\n")) is not first


def test_a_file_with_two_methods_is_refused(tmp_path: Path) -> None:
    twice = MINE + "\n@dataclass(frozen=True)\nclass Other(Method):\n    pass\n"
    with pytest.raises(BadInput, match="exactly one subclass of Method; it defines Mine, Other"):
        METHODS.get(write(tmp_path, twice))


def test_a_file_without_a_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="it defines none"):
        METHODS.get(write(tmp_path, "x = 1\n"))


def test_a_file_that_does_not_import_is_refused_with_its_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be imported: ZeroDivisionError"):
        METHODS.get(write(tmp_path, "1 / 0\n"))


def test_a_file_that_ends_the_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be imported: SystemExit"):
        METHODS.get(write(tmp_path, "raise SystemExit(0)\n"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="nowhere.py"):
        METHODS.get(str(tmp_path / "nowhere.py"))


def test_an_installed_package_contributes_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mcbench.methods]\ntheirs = theirs_for_mcbench\n")
    (tmp_path / "theirs_for_mcbench.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: Registry[Method] = Registry("method", "mcbench.methods", "mcbench.method:Method")
    assert "theirs" in registry.names()
    assert "theirs_for_mcbench" not in sys.modules
    assert registry.get("theirs").__name__ == "Mine"
