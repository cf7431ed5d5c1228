"""What README and CONTRIBUTING show is what works: their commands are run, their code is executed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from runs import answers, write_run

from mcbench.cli import _parser
from mcbench.composition import METHODS, compose
from mcbench.sweep import read_grid

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Every command line that calls mcbench, without what follows # and what stands before it."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    return [f"mcbench{found[1]}".strip() for line in lines if (found := re.search(r"\bmcbench( [^#]*)", line))]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the contributor page was followed up to its third step."""
    folder = tmp_path_factory.mktemp("workshop")
    shutil.copytree(ROOT / "methods", folder / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    copy = next(line for block in blocks(CONTRIBUTING, "bash") for line in block.splitlines() if line.startswith("cp "))
    subprocess.run(shlex.split(copy), cwd=folder, check=True)
    assert (folder / "mine.py").read_text() == (ROOT / "methods" / "frequency.py").read_text()
    (code,) = re.findall(r"<!-- mine\.py -->\n```python\n(.*?)^```$", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    (folder / "mine.py").write_text(code)
    return folder


def test_the_method_of_the_contributor_page_keeps_its_promises(workshop: Path) -> None:
    done = run("mcbench check ./mine.py", workshop)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BROKEN" not in done.stdout


@pytest.mark.parametrize("command", [c for c in commands(CONTRIBUTING) if " run " in c])
def test_the_method_of_the_contributor_page_runs(workshop: Path, command: str) -> None:
    done = run(command, workshop)
    assert done.returncode == 0, done.stderr
    assert "mini-perplexity" in done.stdout
    assert "left items out" in done.stdout
    assert list((workshop / "runs").rglob("record.json"))


def test_the_contributor_page_is_clean_code(workshop: Path) -> None:
    config = ["--config", str(ROOT / "pyproject.toml")]
    for check in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *check, *config, "mine.py"], cwd=workshop, check=True)


@pytest.mark.parametrize("command", [*commands(README), *commands(CONTRIBUTING)])
def test_every_command_that_is_shown_would_be_understood(command: str) -> None:
    options = _parser().parse_args(shlex.split(command)[1:])
    for part in getattr(options, "method", "").split("+"):
        name = part.partition("(")[0]
        assert not name or name == "./mine.py" or name in METHODS.names()


@pytest.mark.parametrize("method", ["pmq(beta=1)+hqq", "uniform+rtn"])
def test_the_method_strings_of_the_readme_compose(method: str) -> None:
    assert method in README
    assert compose(method).parts


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = [block.strip() for block in blocks(README, "bash") if "pytest" in block]
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert command in [block.strip() for block in blocks(CONTRIBUTING, "bash")]


def test_links_lead_to_files() -> None:
    for text in (README, CONTRIBUTING):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (ROOT / target).exists(), target


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    assert program == "mcbench"
    environment = {**os.environ, "COLUMNS": "100"}
    whole = [sys.executable, "-m", "mcbench", *arguments]
    return subprocess.run(whole, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_quality_gate_holds_commands_that_would_be_understood() -> None:
    text = (ROOT / "examples" / "quality-gate.yml").read_text(encoding="utf-8")
    steps = yaml.safe_load(text)["jobs"]["compare"]["steps"]
    lines = [line.strip() for step in steps for line in step.get("run", "").splitlines()]
    shown = [line.partition(" >")[0] for line in lines if line.startswith("mcbench ")]
    parsed = [_parser().parse_args(shlex.split(command)[1:]) for command in shown]
    assert [options.command.__name__ for options in parsed] == ["_run", "_run", "_compare"]
    assert [options.out for options in parsed[:2]] == parsed[2].records and parsed[2].gate


@pytest.mark.parametrize(("lost", "code"), [(0, 0), (60, 1), (3, 0)], ids=["passes", "fails", "warns"])
def test_the_quality_gate_ends_as_it_says(tmp_path: Path, lost: int, code: int) -> None:
    write_run(tmp_path / "before" / "a run", {"quiz": answers([True] * 400)})
    write_run(tmp_path / "after" / "a run", {"quiz": answers([at >= lost for at in range(400)])})
    text = (ROOT / "examples" / "quality-gate.yml").read_text(encoding="utf-8")
    (script,) = [step["run"] for step in yaml.safe_load(text)["jobs"]["compare"]["steps"] if step.get("name")]
    beside = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment = {**os.environ, **beside, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("::warning::" in done.stdout) == (lost == 3)
    assert "quiz" in (tmp_path / "summary.md").read_text()


def test_the_grid_of_the_readme_is_one(tmp_path: Path) -> None:
    (text,) = blocks(README, "toml")
    (tmp_path / "grid.toml").write_text(text)
    grid = read_grid(tmp_path / "grid.toml")
    assert len(list(grid.cells())) == 1 + 3 * 9 * 3
