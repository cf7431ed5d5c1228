"""The verdict on a program is formed where the program has no part in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_tokenizer, tiny_transformer

from mcbench.answers import split_prompt
from mcbench.catalogue import task_with
from mcbench.cli import main
from mcbench.evaluation import LanguageModel
from mcbench.sandbox import Outcome, Program, isolation, run_programs
from mcbench.sealed import Lines, read_lines
from mcbench.task import completions_of

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

SAME = "class Node:\n    def __init__(self, v): self.v = v\n    def same(self, other): return self.v == other.v\n\ndef f(x):\n    'Three.'\n"
EQUAL = "class Node:\n    def __init__(self, v): self.v = v\n    def __eq__(self, other): return self.v == other.v\n\ndef f(x):\n    'Three.'\n"
# programs under tests of other forms: prompt, completion, tests that the right answer 3 meets
FORGED_ANSWERS = {
    "ends the loop of the tests": ("def f(x):\n", "    raise StopIteration\n", "assert all(map(lambda y: f(y) == 3, [1, 2]))\n"),
    "ends the loop of the tests by its truth": (
        "def f(x):\n", "    return Ends()\nclass Ends:\n    def __bool__(self): raise StopIteration\n",
        "assert all(map(lambda y: not f(y) and f(y) == 3, [1, 2]))\n",
    ),
    "ends a loop under another name": (
        "def f(x):\n", "    raise Own\nclass Own(StopIteration): pass\n", "assert all(map(lambda y: f(y) == 3, [1]))\n",
    ),
    "brings a module of the tests": (
        "def f(x):\n", "    return 4.0\nclass math:\n    isclose = staticmethod(lambda *_: True)\n", "assert math.isclose(f(1), 3.0)\n",
    ),
    "has methods of a string": (
        "def f(x):\n", "    return Text()\nclass Text:\n    def startswith(self, part): return True\n", "assert f(1).startswith('three')\n",
    ),
    "has a type for a method": ("def f(x):\n", "    return Text()\nclass Text:\n    startswith = bool\n", "assert f(1).startswith('three')\n"),
    "has a type for the method of a named tuple": (
        "def f(x):\n", "    import collections\n    return collections.namedtuple('T', 'count')(bool)\n", "assert f(1).count(3) == 1\n",
    ),
    "has everything": (
        "def f(x):\n", "    return Any()\nclass Any:\n    def __getattr__(self, name): return lambda *_: True\n",
        "assert f(1).issubset({3}) and f(1).endswith('3')\n",
    ),
    "overrides a method of the prompt's class": (SAME, "    n = Node(x)\n    n.same = lambda _: True\n    return n\n", "assert f(1).same(Node(3))\n"),
    "overrides a method by a type": (SAME, "    n = Node(x)\n    n.same = bool\n    return n\n", "assert f(1).same(Node(3))\n"),
    "replaces an operator of the prompt's class": (EQUAL, "    return Node(x)\nNode.__eq__ = lambda *_: True\n", "assert f(1) == Node(3)\n"),
    "puts itself into the prompt's class": (
        EQUAL, "    return Node(Same())\nclass Same:\n    def __eq__(self, other): return True\n", "assert f(1) == Node(3)\n",
    ),
    "replaces the prompt's function": (
        "def right(x):\n    return x == 3\n\ndef f(x):\n    'Three.'\n", "    return x\ndef right(x): return True\n", "assert right(f(1))\n",
    ),
    "changes what was expected": (
        "def f(x):\n",
        "    import gc\n    for one in gc.get_objects():\n        if isinstance(one, list) and one == [3]:\n            one[0] = 1\n    return [1]\n",
        "expected = [3]\nassert f(1) == expected\n",
    ),
    "is of another zone": (
        "import datetime\n\ndef f(x):\n    'Three.'\n", "    return datetime.datetime(2020, 1, 3, tzinfo=datetime.timezone.utc)\n",
        "assert f(1) == datetime.datetime(2020, 1, 3)\n",
    ),
    "moves the libraries of the tests": (
        "def f(x):\n",
        "    return x\nimport os\nfolder = os.path.dirname(os.__file__)\ntop = '/' + folder.split('/')[1]\ntry:\n"
        "    os.rename(top, top + '-moved')\n    os.makedirs(folder)\n"
        "    with open(folder + '/statistics.py', 'w') as file:\n        file.write('raise SystemExit(0)')\nexcept OSError:\n    pass\n",
        "f(1)\nimport statistics\nassert f(1) == 3\n",
    ),
    "goes through what the tests lend it": (
        "def f(g):\n", "    try:\n        g.__globals__['x'] = 3\n    except Exception: pass\n    return 1\n",
        "x = 1\ndef g(): return x\nassert f(g) == 3 or x == 3\n",
    ),
}  # fmt: skip

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
    "by exit()": "    return 2 * x\nif __name__ == '__main__':\n    exit(0)\n",
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
    "a coroutine": ("async def f(x):\n", "    return x\n", "import asyncio\nassert asyncio.run(f(3)) == 3\n"),
    "what changes between calls": ("held = []\n\ndef f(x):\n    'Counts.'\n", "    held.append(x)\n    return len(held)\n", "assert [f(1), f(1)] == [1, 2]\n"),
    "a named tuple": (
        "import collections\nP = collections.namedtuple('P', 'x y')\n\ndef f(p):\n    'Turns.'\n", "    return P(p.y, p.x)\n",
        "assert f(P(1, 2)) == P(2, 1) and f(P(1, 2)).x == 2 and type(f(P(1, 2))) is P\n",
    ),
    "a named tuple of its own": (
        "def f(x):\n", "    import collections\n    return collections.namedtuple('P', 'x count')(x, 2)\n",
        "assert f(1).x == 1 and f(1) == (1, 2) and f(1).count == 2\n",
    ),
    "an enumeration of the prompt": (
        "import enum\nclass E(enum.Enum):\n    A = 1\n    B = 2\n\ndef f(e):\n    'The other.'\n", "    return E.B if e is E.A else E.A\n",
        "assert f(E.A) is E.B and f(E.B) == E.A\n",
    ),
    "a data class with slots": (
        "import dataclasses\n@dataclasses.dataclass(frozen=True, slots=True)\nclass P:\n    x: int\n\ndef f(p):\n    'One more.'\n",
        "    return P(p.x + 1)\n", "assert f(P(1)) == P(2)\n",
    ),
    "times": (
        "import datetime as d\n\ndef f(x):\n    'Itself.'\n", "    return x\n",
        "for v in (d.datetime(2020, 1, 2), d.datetime(2020, 1, 2, tzinfo=d.timezone.utc), d.time(1, 2), d.date(1, 2, 3), d.timedelta(1.5)):\n    assert f(v) == v\n",
    ),
    "keys": ("def f(x):\n", "    return {x: 1}.keys()\n", "assert f(3) == {3}\n"),
    "the end of an iterator": (
        "def f(x):\n", "    return iter([x])\n",
        "i = f(3)\nassert next(i) == 3\ntry:\n    next(i)\nexcept StopIteration:\n    pass\nelse:\n    raise AssertionError\n",
    ),
    "a match": ("import re\n\ndef f(x):\n    'Digits.'\n", "    return re.search('[0-9]+', x)\n", "assert f('a12').group() == '12' and f('a') is None\n"),
    "a near number": ("def f(x):\n", "    return x / 3\n", "assert abs(f(1) - 0.3333) < 1e-3 and round(f(1), 2) == 0.33\n"),
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
def answered_falsely() -> dict[str, Outcome]:
    programs = [Program(*parts) for parts in FORGED_ANSWERS.values()]
    return dict(zip(FORGED_ANSWERS, run_programs(programs, cpu_seconds=1, wall_seconds=4), strict=True))


@pytest.mark.parametrize("name", FORGED_ANSWERS)
def test_a_wrong_answer_does_not_pass_whatever_it_is(name: str, answered_falsely: dict[str, Outcome]) -> None:
    assert answered_falsely[name].status == "failed", answered_falsely[name]


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
    head = "import math\n\n"
    assert split_prompt(f"{head}@a\ndef f(x):\n    'Words.'\n") == (head, "f", True)
    assert split_prompt(f"{head}async def f(x):\n") == (head, "f", True)
    assert split_prompt(f"{head}class Stack:\n") == (head, "Stack", False)
    assert split_prompt("import math\n") == ("import math\n", "", False)


TASK = """
from dataclasses import dataclass

from mcbench.items import CodeItem
from mcbench.kinds import CodeTask


@dataclass(frozen=True)
class Mine(CodeTask):
    def items(self):
        return [CodeItem(str(n), f"def f{n}(x):\\n", f"assert f{n}(1) == 2", ("\\ndef",), 4) for n in range(3)]
"""


def test_programs_that_have_changed_since_get_new_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(TASK)
    task = task_with(str(mine), {})
    sink = tmp_path / f"{task.protocol}.jsonl"
    model = LanguageModel(tiny_transformer("mixtral", 0), tiny_tokenizer(), tokens_per_batch=4000)
    task.evaluate(model, sink=sink, execute=False)
    file = completions_of(sink)

    def verdicts(*completions: str) -> list[bool]:
        owner, rows = read_lines(file, "programs")
        lines = Lines(file, "programs", owner)
        lines.begin()
        lines.append({**row, "completions": [text]} for row, text in zip(rows, completions, strict=True))
        assert main(["score", str(file), "--task", str(mine)]) == 0
        samples = sorted(map(json.loads, sink.read_text().splitlines()[1:]), key=lambda row: row["id"])
        assert [row["completions"] for row in samples] == [[text] for text in completions]
        return [row["statuses"] == ["passed"] for row in samples]

    right, wrong = "    return 2 * x\n", "    return 3 * x\n"
    assert verdicts(right, wrong, right) == [True, False, True]
    assert "made anew" not in capsys.readouterr().err
    assert verdicts(right, right, wrong) == [True, True, False]
    assert "mine: 2 verdicts are on other programs" in capsys.readouterr().err
    assert verdicts(right, right, wrong) == [True, True, False]
    assert "made anew" not in capsys.readouterr().err
    file.write_bytes(file.read_bytes().replace(b"3 * x", b"4 * x"))
    assert main(["score", str(file), "--task", str(mine)]) == 2
    assert "line 4 is not as it was written" in capsys.readouterr().err


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
