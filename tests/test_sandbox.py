"""Programs that nobody has read do no harm, and what they did is told apart."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import pytest
from hostile import CONFINED, FREE, attack

from mcbench.sandbox import MECHANISMS, Outcome, Program, isolation, probe, run_programs

real = pytest.mark.skipif(not isolation().contained, reason=f"this machine confines by {isolation().name} only")
MARK = f"mcbench-{secrets.token_hex(8)}"

TESTS = "assert double(4) == 8, 'no'"


def program(text: str) -> Program:
    """A program whose own statements decide nothing, with tests of what it defines."""
    return Program("", text, TESTS)


def alone(text: str) -> Program:
    """A program without tests: it passes if it comes to its end."""
    return Program("", text, "")


PROGRAMS = {
    "right": "def double(x):\n    return 2 * x\n",
    "wrong": "def double(x):\n    return 3 * x\n",
    "no python": "def double(x:\n",
    "leaves early": "import sys\nsys.exit(0)\ndef double(x):\n    return 2 * x\n",
    "leaves without a word": "import os\nos._exit(0)\n",
    "endless loop": "while True:\n    pass\n",
    "endless sleep": "import time\ntime.sleep(3600)\n",
    "memory bomb": "kept = []\nwhile True:\n    kept.append(bytearray(10_000_000))\n",
    "fork bomb": "import os\nwhile True:\n    os.fork()\n",
    "output flood": "while True:\n    print('x' * 1000)\n",
    "file flood": "with open('big', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 16))\n",
    "kills itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "kills its parents": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(1, signal.SIGKILL)\n",
    "deep recursion": "def f():\n    return f()\nf()\n",
    "forks and is right": "import os\nif os.fork():\n    os.wait()\ndef double(x):\n    return 2 * x\n",
    "leaves a child behind": (
        f"import os\nif not os.fork():\n    os.setsid()\n    os.execv('/usr/bin/sleep', ['{MARK}', '60'])\n"
        "def double(x):\n    return 2 * x\n"
    ),
}
STATUSES = {
    "right": "passed",
    "wrong": "failed",
    "no python": "syntax",
    "leaves early": "failed",
    "leaves without a word": "failed",
    "endless loop": "timeout",
    "endless sleep": "timeout",
    "memory bomb": "memory",
    "fork bomb": "failed",
    "output flood": "killed",
    "file flood": "failed",
    "kills itself": "killed",
    "deep recursion": "failed",
    "forks and is right": "passed",
    "leaves a child behind": "passed",
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    if not isolation().contained:
        pytest.skip(f"this machine confines by {isolation().name} only")
    found = run_programs([program(text) for text in PROGRAMS.values()], cpu_seconds=2, wall_seconds=6)
    return dict(zip(PROGRAMS, found, strict=True))


@pytest.mark.parametrize("name", STATUSES)
def test_each_program_is_told_apart(name: str, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[name].status == STATUSES[name], outcomes[name]


def test_the_message_says_what_was_raised(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["wrong"].message == "AssertionError: no"


def test_a_program_that_kills_all_it_can_reach_ends_alone(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["kills its parents"].status in ("failed", "killed", "passed")
    assert outcomes["leaves a child behind"].status == "passed"  # it ran after that, on the same server


def test_nothing_survives_its_program(outcomes: dict[str, Outcome]) -> None:
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(MARK.encode() in line for line in running)


@real
def test_no_network_no_files_no_other_processes() -> None:
    assert probe(isolation().mechanism) == ()


@real
def test_files_of_the_user_cannot_be_seen(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    tmp_path.chmod(0o755)
    home, python = Path.home(), Path(sys.base_prefix)
    way_to_python = python.relative_to(home).parts[:1] if python.is_relative_to(home) else ()
    look = (
        f"import os\ntry:\n    seen = os.listdir({str(home)!r})\nexcept OSError:\n    seen = []\n"
        f"assert set(seen) <= set({way_to_python!r}), seen\n"
    )
    read, listed = run_programs([alone(f"open({str(tmp_path / 'secret')!r})"), alone(look)])
    assert read.status == "failed" and "FileNotFoundError" in read.message
    assert listed.status == "passed", listed


CONFINING = [name for name in MECHANISMS if name != "limits"]


@pytest.mark.parametrize(
    "mechanism", [pytest.param(m, marks=[] if m == isolation().mechanism else pytest.mark.slow) for m in CONFINING]
)
def test_no_hostile_program_gets_through_any_confinement(mechanism: str) -> None:
    leaks = probe(mechanism)
    if leaks is None:
        pytest.skip(f"{MECHANISMS[mechanism]} does not work for this user on this machine")
    assert leaks == ()
    found = attack(mechanism, FREE | CONFINED)
    assert not found.through and not found.harmed, found
    assert found.seconds < 3 * found.tried


def test_what_hostile_programs_try_works_where_nothing_confines_them() -> None:
    found = attack("limits", FREE)
    assert len(found.through) > len(FREE) // 2, found
    assert set(probe("limits") or ()) >= {"reading files", "connecting"}


@real
def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCBENCH_SECRET", "secret")
    (outcome,) = run_programs([alone("import os\nassert not os.environ, sorted(os.environ)\n")])
    assert outcome.status == "passed", outcome


@real
def test_programs_do_not_share_files() -> None:
    write = "import os\nassert not os.path.exists('left')\nopen('left', 'w').close()\n"
    assert {o.status for o in run_programs([alone(write)] * 4)} == {"passed"}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_that_works_here_tells_right_from_wrong(mechanism: str) -> None:
    if probe(mechanism) is None:
        pytest.skip(f"{MECHANISMS[mechanism]} does not work on this machine")
    found = run_programs([program(PROGRAMS[name]) for name in ("right", "wrong", "no python")], mechanism=mechanism)
    assert [outcome.status for outcome in found] == ["passed", "failed", "syntax"]


def test_resource_limits_alone_do_not_count_as_isolation() -> None:
    leaks = probe("limits")
    assert leaks and "reading files" in leaks


def test_no_program_no_process() -> None:
    assert run_programs([]) == []


@real
def test_the_caller_keeps_its_own_identity(outcomes: dict[str, Outcome]) -> None:
    before = (os.getuid(), os.getgid(), Path.cwd())
    run_programs([alone("pass")])
    assert (os.getuid(), os.getgid(), Path.cwd()) == before
