"""The shape of the code: values flow one way, contributions stand alone, and what is shipped is what is here."""

from __future__ import annotations

import ast
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcbench.catalogue import TASKS
from mcbench.composition import METHODS
from mcbench.datasets import SETS

ROOT = Path(__file__).parent.parent

# a module imports only from modules above it
ORDER = (
    "errors",
    "bounds",
    "fallbacks",
    "interrupts",
    "files",
    "escape",
    "plaintext",
    "sealed",
    "items",
    "progress",
    "locks",
    "registry",
    "failures",
    "arguments",
    "published",
    "audit",
    "hub",
    "datasets",
    "reference",
    "inputs",
    "allocation",
    "packing",
    "quantization",
    "gptq",
    "experts",
    "router",
    "stand_in",
    "attention",
    "routing",
    "checkpoint",
    "source",
    "tokens",
    "loading",
    "model",
    "text",
    "stats",
    "activations",
    "store",
    "layerwise",
    "calibration",
    "method",
    "declarations",
    "policy",
    "composition",
    "answers",
    "confinement",
    "sandbox",
    "prefixes",
    "trunk",
    "lastlayer",
    "caches",
    "drafts",
    "logits",
    "plain",
    "witness",
    "evaluation",
    "uncertainty",
    "task",
    "harness_model",
    "harness",
    "kinds",
    "needles",
    "overlap",
    "comparison",
    "catalogue",
    "scoring",
    "compression",
    "record",
    "comparable",
    "fidelity",
    "suites",
    "report",
    "speed",
    "page",
    "leaderboard",
    "figure",
    "significance",
    "versus",
    "gate",
    "pipeline",
    "sweep",
    "ray_engine",
    "profiling",
    "costs",
    "reproduce",
    "contract",
    "cli",
    "__main__",
)
# names of contributions that are also words of the field, measures or packages, and may stand in the engine as such
WORDS = {"fnorm", "frequency", "hessian", "hqq", "none", "random", "uniform"}


def engine() -> list[Path]:
    return sorted((ROOT / "mcbench").rglob("*.py"))


def contributions() -> list[Path]:
    return sorted([*(ROOT / "methods").glob("*.py"), *(ROOT / "tasks").glob("*.py")])


def imported(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports anywhere in it, also those for annotations only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "mcbench")
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} imports by position; name the module"
            if node.module == "mcbench":
                yield from (f"mcbench.{alias.name}" for alias in node.names if alias.name in ORDER)
            elif node.module and node.module.startswith("mcbench."):
                yield node.module


def home(path: Path) -> str:
    """The module of the order to which a file of the engine belongs."""
    return path.relative_to(ROOT / "mcbench").with_suffix("").parts[0]


def test_every_module_has_its_place_in_the_order() -> None:
    assert {home(path) for path in engine()} - {"__init__"} <= set(ORDER)


@pytest.mark.parametrize("path", engine(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_engine_imports_only_from_above(path: Path) -> None:
    if path == ROOT / "mcbench" / "__init__.py":
        return  # it hands out names of every module, and imports them when asked
    place = ORDER.index(home(path))
    below = {name for name in imported(path) if ORDER.index(name.split(".")[1]) > place}
    assert not below, f"{path.name} imports {below}, which stand below it"


@pytest.mark.parametrize("path", engine(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_engine_names_no_contribution(path: Path) -> None:
    names = {*METHODS.names(), *TASKS.names()} - WORDS - set(SETS)  # a published set may share its task's name
    texts = {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not texts & names
    assert not {name for name in imported(path) if name.startswith(("mcbench.methods", "mcbench.tasks"))}


@pytest.mark.parametrize("path", contributions(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_contribution_imports_the_engine_and_no_other_contribution(path: Path) -> None:
    assert {name.split(".")[1] for name in imported(path)} <= set(ORDER)
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) (methods|tasks)\b", source, re.MULTILINE)


@pytest.mark.parametrize("what", ["methods", "tasks", "models"])
def test_listing_takes_less_than_a_second_and_no_torch(what: str) -> None:
    listing = f"import sys; from mcbench.cli import main; main(['list', '{what}']); sys.exit('torch' in sys.modules)"
    seconds = []
    for _ in range(3):  # the first may find cold files; processor time says the same on a busy machine
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", listing], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1


def test_the_wheel_holds_exactly_what_the_folders_hold(tmp_path: Path) -> None:
    source = tmp_path / "source"
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("mcbench", "methods", "tasks"):
        shutil.copytree(ROOT / folder, source / folder, ignore=skip)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {
        f"{where}{path.relative_to(ROOT / folder).as_posix()}"
        for folder, where in (("mcbench", "mcbench/"), ("methods", "mcbench/methods/"), ("tasks", "mcbench/tasks/"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == here


def test_no_file_names_a_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout, so there is no list of its files")
    machine = re.compile(r"(^|[^a-z.])/(work|farm|root|home)/[a-z]|https?://[a-z0-9.-]*/simple\b|--(extra-)?index-url")
    found = [
        f"{name}: {hit.group()}"
        for name in tracked.stdout.splitlines()
        if (path := ROOT / name).is_file() and path != Path(__file__)
        for hit in machine.finditer(path.read_bytes().decode("utf-8", "ignore"))
    ]
    assert not found
