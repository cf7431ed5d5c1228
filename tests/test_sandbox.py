"""Programs that nobody has read do no harm, and what they did is told apart."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
    found = run_programs([program(text) for text in PROGRAMS.values()], cpu_seconds=1, wall_seconds=5)
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


HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    os.fork()\n",
    "fork bomb that sleeps": (
        "import os, time\nwhile True:\n    try:\n        if not os.fork():\n"
        f"            os.execv('/usr/bin/sleep', ['{MARK}', '60'])\n"
        "    except OSError:\n        time.sleep(0.01)\n"
    ),
    "memory bomb": "kept = []\nwhile True:\n    kept.append(bytearray(10_000_000))\n",
    "memory bomb by children": (
        "import os\nfor _ in range(6):\n    if not os.fork():\n        break\n"
        "kept = []\nwhile True:\n    kept.append(bytearray(10_000_000))\n"
    ),
    "endless loop": "while True:\n    pass\n",
    "endless loop that ignores signals": (
        "import signal\nfor n in (signal.SIGXCPU, signal.SIGTERM, signal.SIGINT, signal.SIGALRM):\n"
        "    signal.signal(n, signal.SIG_IGN)\nwhile True:\n    pass\n"
    ),
    "reading the home directory": "import os\nfor base, _, files in os.walk({home!r}):\n    for f in files:\n"
    "        if f == {secret!r}:\n            open(os.path.join(base, f)).read()\n            raise KeyError('read')\n",
    "opening a socket": "import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2).send(b'x')\n",
    "listening on a socket": "import socket\nsocket.create_server(('127.0.0.1', 0))\n",
    "writing outside": "open({outside!r}, 'w').write('x')\n",
    "writing over the interpreter": "import os\nopen(os.__file__, 'a').write('x')\n",
    "killing its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n",
    "killing everything": "import os, signal\nos.kill(-1, signal.SIGKILL)\n",
    "flooding output": "while True:\n    print('x' * 1000)\n",
    "flooding errors": "import sys\nwhile True:\n    sys.stderr.write('x' * 1000)\n",
    "flooding the disk": (
        "n = 0\nwhile True:\n    n += 1\n    with open(f'f{n}', 'wb') as file:\n        file.write(bytes(1 << 20))\n"
    ),
}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Every hostile program has run, with a harmless one after each; what they were after is here to be looked at."""
    if not isolation().contained:
        pytest.skip(f"this machine confines by {isolation().name} only")
    folder = tmp_path_factory.mktemp("attacked")
    folder.chmod(0o777)
    secret = f".{MARK}"
    (Path.home() / secret).write_text("secret")
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            facts = {
                "home": str(Path.home()),
                "secret": secret,
                "port": server.getsockname()[1],
                "outside": str(folder / "written"),
            }
            programs = []
            for text in HOSTILE.values():
                for key, value in facts.items():
                    text = text.replace(f"{{{key}!r}}", repr(value)).replace(f"{{{key}}}", str(value))
                programs += [alone(text), program(PROGRAMS["right"])]
            began = time.monotonic()
            found = run_programs(programs, cpu_seconds=1, wall_seconds=4)
            seconds = time.monotonic() - began
            reached = True
            try:
                server.accept()
            except BlockingIOError:
                reached = False
    finally:
        (Path.home() / secret).unlink()
    yield {
        "outcomes": dict(zip(HOSTILE, found[::2], strict=True)),
        "after": [outcome.status for outcome in found[1::2]],
        "reached": reached,
        "written": (folder / "written").exists(),
        "seconds": seconds,
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_contained(name: str, attacked: dict[str, Any]) -> None:
    outcome = attacked["outcomes"][name]
    if name in ("reading the home directory", "killing everything", "killing its parent"):
        assert "KeyError" not in outcome.message  # it found nothing to read, or nobody to kill
    else:
        assert outcome.status != "passed", outcome


def test_hostile_programs_reach_nothing_and_harm_nobody_else(attacked: dict[str, Any]) -> None:
    assert not attacked["reached"] and not attacked["written"]
    assert set(attacked["after"]) == {"passed"}
    assert attacked["seconds"] < len(HOSTILE) * 6
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(MARK.encode() in line for line in running)


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
