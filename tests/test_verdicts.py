"""The verdict on a program is formed where the program has no part in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcbench.answers import split_prompt
from mcbench.sandbox import Outcome, Program, isolation, run_programs

pytestmark = pytest.mark.skipif(not isolation().contained, reason=f"only {isolation().name} confines programs here")

PROMPT = "def double(x):\n"
TESTS = "assert double(4) == 8\nassert double(5) == 10\n"
WRONG = "    return 3 * x\n"

FORGERIES = {
    "calls the reporter in a frame": (
        WRONG + "import sys, os\ntry:\n    sys._getframe(1).f_locals['say']('passed', '')\nfinally:\n    os._exit(0)\n"
    ),
    "ends its process": WRONG + "import os\nos._exit(0)\n",
    "ends its process when called": "    import os\n    os._exit(0)\n",
    "asks to leave": WRONG + "import sys\nsys.exit(0)\n",
    "asks to leave when called": "    import sys\n    sys.exit(0)\n",
    "raises what tests may catch": "    raise KeyboardInterrupt\n",
    "is equal to everything": "    return Same()\nclass Same:\n    def __eq__(self, other): return True\n",
    "is a number equal to everything": (
        "    return Same(1)\nclass Same(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
    ),
    "says passed as an answer": "    return 'passed'\n",
    "writes every pipe": (
        WRONG + 'import os, struct\nfor text in (b\'["passed", ""]\', b\'["passed", "", false]\'):\n'
        "    for fd in range(3, 64):\n        for data in (text, struct.pack('>I', len(text)) + text):\n"
        "            try:\n                os.write(fd, data)\n            except OSError:\n                pass\n"
    ),
    "closes every pipe": WRONG + "import os\nos.closerange(0, 64)\n",
    "replaces json": WRONG + 'import json\njson.dumps = lambda *_, **__: \'["passed", ""]\'\n',
    "replaces os.write": WRONG + "import os\nos.write = lambda *_: 0\n",
    "finds the reporter by gc": (
        WRONG + "import gc\nfor thing in gc.get_objects():\n    if type(thing).__name__ == 'Exchange':\n"
        "        thing.send({'ended': None})\n        thing.send({'verdict': ['passed', '']})\n"
    ),
    "forks and answers twice": WRONG + "import os\nos.fork()\n",
    "kills its parents": WRONG + "import os, signal\nfor pid in (os.getppid(), 1):\n"
    "    try:\n        os.kill(pid, signal.SIGKILL)\n    except OSError:\n        pass\n",
    "changes built-ins": WRONG + "import builtins\nbuiltins.AssertionError = Warning\nbuiltins.all = lambda *_: True\n",
    "replaces the tests": WRONG
    + "def check(candidate): pass\nimport sys\nsys.modules['__main__'].double = WRONG = None\n",
    "leaves a thread that answers": (
        WRONG + "import os, threading\ndef flood():\n    while True:\n        os.write(4, b'x' * 100)\n"
        "threading.Thread(target=flood, daemon=True).start()\n"
    ),
    "answers with too much": "    return 'x' * (1 << 25)\n",
    "hangs": "    while True: pass\n",
    "takes all memory": "    kept = []\n    while True: kept.append(bytearray(1 << 24))\n",
    "swallows the tests": WRONG + "'''\n",
    "hides the tests behind a tracer": WRONG + "import sys\nsys.settrace(lambda *_: sys.exit(0))\n",
    "leaves at exit": WRONG + "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit\n",
    "an excepthook": WRONG + "import sys, os\nsys.excepthook = lambda *_: os._exit(0)\n",
    "an alarm": WRONG + "import signal, os\nsignal.signal(signal.SIGALRM, lambda *_: os._exit(0))\nsignal.alarm(1)\n"
    "signal.pause()\n",
    "replaces its process": WRONG + "import os\nos.execv('/usr/bin/true', ['true'])\n",
    "equal in one operator": (
        "    return Near()\nclass Near:\n    def __sub__(self, other): return 0\n    def __rsub__(self, other): return 0\n"
        "    def __lt__(self, other): return True\n    def __abs__(self): return 0\n"
    ),
    "a list that is never unequal": (
        "    return Same([1])\nclass Same(list):\n    def __eq__(self, other): return True\n    def __ne__(self, o): return False\n"
    ),
    "a type that pretends": (
        "    return Same()\nclass Same:\n    __class__ = int\n    def __eq__(self, other): return True\n"
    ),
}

RIGHT = {
    "plainly": "    return 2 * x\n",
    "printing": "    print('working')\n    return 2 * x\nprint('hello')\n",
    "in a thread": (
        "    import threading\n    found = []\n    one = threading.Thread(target=lambda: found.append(2 * x))\n"
        "    one.start()\n    one.join()\n    return found[0]\n"
    ),
    "by pickle": (
        "    import pickle\n    return pickle.loads(pickle.dumps(Held(x))).value * 2\n"
        "class Held:\n    def __init__(self, value): self.value = value\n"
    ),
    "with tests of its own": (
        "    return 2 * x\nif __name__ == '__main__':\n    import unittest\n    class Own(unittest.TestCase):\n"
        "        def test_double(self): self.assertEqual(double(1), 2)\n    unittest.main()\n"
    ),
    "leaving at its end": "    return 2 * x\nif __name__ == '__main__':\n    import sys\n    sys.exit(0)\n",
    "by recursion": "    return 0 if x == 0 else 2 + double(x - 1)\n",
    "reading its input": "    return 2 * x\nimport sys\nsys.stdin.read()\n",
    "with a child": "    return 2 * x\nimport os\nif os.fork():\n    os.wait()\n",
    "by asyncio": "    import asyncio\n    async def found(): return 2 * x\n    return asyncio.run(found())\n",
}

# ruff: noqa: E501 - programs, a line each

# what answers may look like: prompt, completion, tests that hold
ANSWERS = {
    "every plain value": (
        "def f(x):\n",
        "    return x\n",
        "for v in (None, True, 1, -0.0, 10**400, 'a\\ud800', b'\\xff', (1, [2]), [()], {1: {2}}, {(1, 2): None},\n"
        "          frozenset([3]), float('inf'), 1 + 2j, range(3), bytearray(b'x')):\n"
        "    assert f(v) == v and type(f(v)) is type(v), v\nassert f(float('nan')) != f(float('nan'))\n",
    ),
    "an argument changed in place": ("def f(x):\n", "    x.append(x)\n    return x\n", "v = [1]\nassert f(v) is v and v[1] is v\n"),
    "a generator": ("def f(x):\n", "    while True:\n        yield x\n", "g = f(2)\nassert [next(g), next(g)] == [2, 2]\n"),
    "an exception": (
        "def f(x):\n",
        "    raise ValueError('no', x)\n",
        "try:\n    f(3)\nexcept ValueError as e:\n    assert e.args == ('no', 3)\nelse:\n    raise AssertionError\n",
    ),
    "a function": ("def f(x):\n", "    return lambda y: x(y) + 1\n", "assert f(lambda y: 2 * y)(3) == 7\n"),
    "a class": (
        "class Stack:\n",
        "    def __init__(self): self.held = []\n    def push(self, x): self.held.append(x)\n",
        "s = Stack()\ns.push(3)\nassert s.held == [3]\n",
    ),
    "a class of the prompt": (
        "class Node:\n    def __init__(self, v): self.v = v\n\ndef f(n):\n    '''Adds one.'''\n",
        "    n.v += 1\n    return Node(n.v)\n",
        "n = Node(1)\nassert f(n).v == 2 and n.v == 2\n",
    ),
    "what is printed": (
        "def f(x):\n",
        "    print(x)\n",
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as s:\n    f('hello')\n"
        "assert s.getvalue() == 'hello\\n'\n",
    ),
    "a helper of the prompt": (
        "def twice(x):\n    return 2 * x\n\ndef f(x):\n    '''Half.'''\n", "    return x / 2\n", "assert f(twice(3)) == 3\n",
    ),
    "a global value": ("x = 1  #", " and more", "assert x == 1"),
    "a list nested deeply": (
        "def f(n):\n", "    a = []\n    for _ in range(n): a = [a]\n    return a\n",
        "a, n = f(50000), 0\nwhile a: a, n = a[0], n + 1\nassert n == 50000\n",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def forged() -> dict[str, Outcome]:
    programs = [Program(PROMPT, text, TESTS) for text in FORGERIES.values()]
    return dict(zip(FORGERIES, run_programs(programs, cpu_seconds=1, wall_seconds=4), strict=True))


@pytest.mark.parametrize("name", FORGERIES)
def test_a_wrong_program_does_not_pass_whatever_it_does(name: str, forged: dict[str, Outcome]) -> None:
    assert forged[name].status != "passed", forged[name]
    assert forged[name].message != "the sandbox ended before the program"


@pytest.fixture(scope="module")
def right() -> dict[str, Outcome]:
    programs = [Program(PROMPT, text, TESTS) for text in RIGHT.values()]
    return dict(zip(RIGHT, run_programs(programs), strict=True))


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_passes_however_it_works(name: str, right: dict[str, Outcome]) -> None:
    assert right[name].status == "passed", right[name]


@pytest.fixture(scope="module")
def answered() -> dict[str, Outcome]:
    return dict(zip(ANSWERS, run_programs([Program(*parts) for parts in ANSWERS.values()]), strict=True))


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_arrives_as_it_was_given(name: str, answered: dict[str, Outcome]) -> None:
    assert answered[name].status == "passed", answered[name]


def test_the_last_statement_of_a_prompt_is_the_programs() -> None:
    assert split_prompt("import math\n\n@a\ndef f(x):\n    '''Words.'''\n") == ("import math\n\n", "f")
    assert split_prompt("import math\n\ndef f(x):\n")[0] == "import math\n\n"
    assert split_prompt("import math\n")[0] == "import math\n"


def test_programs_die_with_mcbench_killed(tmp_path: Path) -> None:
    """SIGKILL leaves mcbench no time to tidy up; nothing runs on, and nothing is left."""
    mark = f"{os.getpid()}{time.monotonic_ns()}"
    slow = f"import os\\nif os.fork() == 0:\\n    os.setsid()\\nos.execv('/usr/bin/sleep', ['{mark}', '50'])\\n"
    script = (
        f'from mcbench.sandbox import *\nrun_programs([Program("", "{slow}", "")] * 2, wall_seconds=50, workers=2)\n'
    )

    def running() -> int:
        found = 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found += path.read_bytes().startswith(mark.encode())
            except OSError:
                continue
        return found

    def wait_for(some: bool) -> None:
        until = time.monotonic() + 30
        while (running() > 0) != some and time.monotonic() < until:
            time.sleep(0.05)

    folder = Path("/tmp")
    before = set(folder.glob("mcbench-sandbox-*"))
    mcbench = subprocess.Popen([sys.executable, "-c", script])
    wait_for(True)
    assert running()
    mcbench.send_signal(signal.SIGKILL)
    mcbench.wait()
    wait_for(False)
    assert not running() and set(folder.glob("mcbench-sandbox-*")) <= before
