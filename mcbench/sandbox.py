"""Runs Python programs that nobody has read, confined as strongly as this machine allows, and says how strongly.

A program and its tests run in a process each. The program is alone in its own: without network, files, privileges or
sight of other processes, with bounds on memory, processor time, processes, file size and output. The tests ask it
through a pipe (see `mcbench.answers`), so the verdict is formed where the program has no part in it. Both are killed
with all their descendants when their time is up, and when mcbench ends, however that comes.

What confines them is found out once by running a hostile program and looking at what it could do.

This file is also what runs on the confined side, so it imports the standard library only.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mcbench.answers import Status, Verdict, answer, judge
from mcbench.confinement import (
    MECHANISMS,
    Job,
    Limits,
    Memory,
    bubblewrap_command,
    confine,
    die_with,
    enter,
    free_uids,
    part_from_tests,
    python_command,
)

__all__ = ["MECHANISMS", "Isolation", "Limits", "Outcome", "Program", "Status", "isolation", "probe", "run_programs"]


class Program(NamedTuple):
    """A prompt, what completes it, and tests. The program is prompt and completion; the tests call what it defines."""

    prompt: str
    completion: str
    tests: str


class Outcome(NamedTuple):
    """What the tests found: "passed" if they ran to their end, "failed" if they or the program raised or left early.

    "timeout": out of processor or wall-clock time; "memory": out of memory; "syntax": it is no Python; "killed": by a
    signal, or for writing too much.
    """

    status: Status
    message: str


class Isolation(NamedTuple):
    """What confines programs here; `missing` lists what the hostile program could still do."""

    name: str
    contained: bool
    missing: str
    mechanism: str


def run_programs(
    programs: Sequence[Program],
    *,
    cpu_seconds: int = 2,
    wall_seconds: float = 6.0,
    workers: int | None = None,
    mechanism: str | None = None,
) -> list[Outcome]:
    """The outcome of each program, in order; `workers` run at a time (by default one for each processor).

    Uses `isolation().mechanism` unless another is named. Whether that is enough is for the caller to decide.
    """
    from mcbench.progress import inner

    limits = Limits(cpu_seconds=cpu_seconds, wall_seconds=wall_seconds)
    workers = min(workers or os.cpu_count() or 1, max(1, len(programs)))
    with inner("programs", len(programs)) as step:
        return _serve(programs, mechanism or isolation().mechanism, limits, workers, step)


@functools.lru_cache(maxsize=1)
def isolation() -> Isolation:
    """The strongest confinement this machine offers, found by trying each on a hostile program."""
    from mcbench.progress import inner

    with inner("trying the sandbox", len(MECHANISMS)) as step:
        for mechanism in MECHANISMS:
            leaks = probe(mechanism)
            if leaks == ():
                return Isolation(MECHANISMS[mechanism], True, "", mechanism)
            step()
    missing = "not prevented: " + ", ".join(leaks) if leaks else "nothing is prevented"
    return Isolation(MECHANISMS["limits"], False, missing, "limits")


def probe(mechanism: str) -> tuple[str, ...] | None:
    """What a hostile program could do under a mechanism; None where the mechanism does not work here at all."""
    with contextlib.ExitStack() as stack:
        outside = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        outside.chmod(0o777)
        (outside / "readable").write_text("private")
        facts = {
            "folder": str(outside),
            "port": server.getsockname()[1],
            "parent": os.getpid(),
            "processes": Limits().processes,
            "memory": Limits().memory_bytes,
        }
        # the second program needs the standard library and must pass
        harmless = "import collections, decimal, hashlib, heapq, itertools, json, math, random, re, string, typing\n"
        programs = [
            Program("", f"FACTS = {facts!r}\n{_HOSTILE}", "found = leaks()\nassert not found, '; '.join(found)"),
            Program("", f"{harmless}def divisor(a, b): return math.gcd(a, b)\n", "assert divisor(4, 6) == 2\n"),
        ]
        hostile, good = _serve(programs, mechanism, Limits(), 1)
    if good.status != "passed":
        return None
    if hostile.status == "passed":
        return ()
    said = hostile.message.removeprefix("AssertionError: ")
    return tuple(said.split("; ")) if said != hostile.message else ("ending the tests",)


_HOSTILE = """
import ctypes, os, signal, socket, time
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
def connect():
    socket.create_connection(("127.0.0.1", FACTS["port"]), timeout=1).close()
def send():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", FACTS["port"]))
        one.connect(("192.0.2.1", 9))
def share():
    with open("/dev/shm/mcbench-probe", "w") as file:
        os.unlink(file.name)
def fork():
    children = []
    try:
        for _ in range(FACTS["processes"] + 8):
            child = os.fork()
            if not child:
                time.sleep(20)
                os._exit(0)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
def clone3():
    made = libc.syscall(435, (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17), 88)
    if made == 0:
        os._exit(0)
    if made < 0:
        raise OSError("clone3")
ATTEMPTS = {
    "connecting": connect,
    "sending datagrams": send,
    "reading files": lambda: open(FACTS["folder"] + "/readable").read(),
    "writing files": lambda: open(FACTS["folder"] + "/written", "w").write("x"),
    "seeing files": lambda: os.stat(FACTS["folder"] + "/readable"),
    "listing files": lambda: os.listdir(FACTS["folder"]),
    "changing files": lambda: os.chmod(FACTS["folder"] + "/readable", 0o644),
    "memory shared with the machine": share,
    "seeing processes": lambda: os.stat("/proc/1"),
    "signalling other processes": lambda: os.kill(FACTS["parent"], 0),
    "user namespaces": lambda: call("unshare", 0x10000000),
    "user namespaces by clone3": clone3,
    "mounting": lambda: call("syscall", 430, b"tmpfs", 0),
    "message queues": lambda: call("msgget", 0, 0o1600),
    "shared memory": lambda: call("shmget", 0, 4096, 0o1600),
    "semaphores": lambda: call("semget", 0, 1, 0o1600),
    "starting processes without end": fork,
    "taking memory without end": lambda: bytearray(2 * FACTS["memory"]),
}
def leaks():
    found = []
    for name, action in ATTEMPTS.items():
        try:
            action()
        except (OSError, MemoryError, AttributeError):
            continue
        found.append(name)
    return found
"""


def _serve(
    programs: Sequence[Program],
    mechanism: str,
    limits: Limits,
    workers: int,
    step: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    """Hands the programs to a server process without environment, which forks a supervisor for each.

    `step` is called as each of them ends.
    """
    if not programs:
        return []
    task = {
        "programs": programs,
        "mechanism": mechanism,
        "limits": limits,
        "workers": workers,
        "bubblewrap": shutil.which("bwrap"),
        "parent": os.getpid(),
    }
    server = subprocess.Popen(  # noqa: S603 - our own interpreter on this very file
        [*python_command(str(Path(__file__).resolve().parent.parent)), "server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    )
    assert server.stdin and server.stdout
    rounds = -(-len(programs) // workers) + 1
    patience = threading.Timer(rounds * (limits.wall_seconds + 10), server.terminate)
    patience.daemon = True
    patience.start()
    answers: list[bytes] = []
    try:
        with contextlib.suppress(BrokenPipeError), server.stdin as tasks:
            tasks.write(json.dumps(task).encode())
        for line in server.stdout:
            answers.append(line)
            step()
    finally:
        patience.cancel()
        server.terminate()  # it takes all that it has started along
        server.wait()
        server.stdout.close()
    outcomes = {}
    for line in answers:
        with contextlib.suppress(ValueError, TypeError):
            at, status, message = json.loads(line)
            outcomes[at] = Outcome(status, message)
    return [outcomes.get(at, Outcome("killed", "the sandbox ended before the program")) for at in range(len(programs))]


# -- what runs apart. mcbench starts a server, the server a supervisor for each program, and the supervisor a keeper:
# the first process of a namespace, with which all others in it die. The keeper starts the tests, then a second keeper
# in a namespace within the first, and that one the program, which so cannot see the tests. Each of them is killed when
# the one that started it is gone.


def main() -> None:
    """What this file does as a process of its own."""
    role = sys.argv[2]
    if role == "server":
        _server(json.load(sys.stdin))
    else:
        _inside_bubblewrap(role)


def _server(task: dict[str, Any]) -> None:
    """Runs each program under a supervisor, `workers` at a time; writes one line for each as it ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    die_with(task["parent"], by=signal.SIGTERM)
    for name in _COMMON:
        __import__(name)  # once, not once for each program
    pending = list(enumerate(task["programs"]))[::-1]
    running: dict[int, tuple[int, int, int]] = {}  # supervisor -> position, pipe to read, slot
    workers, mechanism = task["workers"], task["mechanism"]
    first = 0 if os.geteuid() else free_uids(2 * workers)
    slots = list(range(workers))
    limits, itself = Limits(*task["limits"]), os.getpid()
    gc.freeze()  # forked processes copy no page on its account
    with tempfile.TemporaryDirectory(prefix="mcbench-") if mechanism == "limits" else contextlib.nullcontext("") as at:
        try:
            while pending or running:
                while pending and slots:
                    place, program = pending.pop()
                    slot = slots.pop()
                    folder = f"{at}/{slot}" if at else ""
                    job = Job(mechanism, limits, task["bubblewrap"], first + 2 * slot, folder)
                    read, write = os.pipe()
                    child = os.fork()
                    if not child:
                        signal.signal(signal.SIGTERM, signal.SIG_DFL)
                        os.close(read)
                        _end_with(lambda: _supervise(Program(*program), job, itself, write))  # noqa: B023 - runs at once
                    os.close(write)
                    running[child] = (place, read, slot)
                child, _ = os.wait()
                if child in running:
                    place, read, slot = running.pop(child)
                    slots.append(slot)
                    with os.fdopen(read, "rb") as pipe:
                        said = pipe.read() or json.dumps(["killed", "the sandbox could not be entered"]).encode()
                    sys.stdout.write(json.dumps([place, *json.loads(said)]) + "\n")
                    sys.stdout.flush()
        finally:
            for child in running:
                os.kill(child, signal.SIGKILL)
            for child in running:
                os.waitpid(child, 0)


class _Pipes(NamedTuple):
    """Descriptors: where the tests ask, the program answers, both tell how they ended, and what the program prints."""

    asked: int
    asking: int
    answered: int
    answering: int
    verdict: int
    judging: int
    ended: int
    ending: int
    printed: int
    printing: int


def _supervise(program: Program, job: Job, server: int, result: int) -> None:
    """Starts a program and its tests, waits, kills all that is left of them, and writes [status, message]."""
    os.setsid()
    die_with(server)
    memory = Memory()
    if job.folder:
        Path(job.folder).mkdir(0o700)
    try:
        enter(job)
    except OSError as error:
        os.write(result, json.dumps(["killed", f"the sandbox could not be entered: {error}"]).encode())
        return
    die_with(server)  # a change of user forgets it
    pipes = _Pipes(*os.pipe(), *os.pipe(), *os.pipe(), *os.pipe(), *os.pipe())
    alive, itself = os.pipe(), os.getpid()
    children = []
    sides = ("tests", "program") if job.mechanism == "bubblewrap" else ("both",)
    for side in sides:
        child = os.fork()
        if not child:
            os.close(alive[1])
            die_with(0 if job.mechanism.endswith("namespaces") else itself)
            if select.select([alive[0]], [], [], 0)[0]:
                return  # the supervisor was gone before that
            if side == "both":
                _end_with(lambda: _keep_both(program, job, pipes))
            _end_with(lambda: _exec_bubblewrap(side, program, job, pipes))  # noqa: B023 - runs at once
        children.append(child)
    for fd in (pipes.asked, pipes.asking, pipes.answered, pipes.answering, pipes.judging, pipes.ending, pipes.printing):
        os.close(fd)
    outcome = _watch(pipes, job.limits, lambda: sum(memory.used(child) for child in children))
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # the first process of a namespace takes all others with it
        if job.mechanism == "limits":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if job.folder:
        shutil.rmtree(job.folder, ignore_errors=True)
    os.write(result, json.dumps(outcome).encode())


def _watch(pipes: _Pipes, limits: Limits, memory: Callable[[], int]) -> Outcome:
    """Waits for the verdict, or for what makes one impossible."""
    deadline = time.monotonic() + limits.wall_seconds
    looked = time.monotonic()
    kept = {pipes.verdict: b"", pipes.ended: b"", pipes.printed: b""}
    printed = 0
    open_ones = set(kept)
    while True:
        now = time.monotonic()
        if now >= deadline:
            return Outcome("timeout", "out of wall-clock time")
        if now - looked >= _LOOK_SECONDS:
            if memory() > limits.memory_bytes * 3 // 2:
                return Outcome("memory", "out of memory in all its processes together")
            looked = time.monotonic()
        ready, _, _ = select.select(list(open_ones), [], [], max(0.0, min(deadline - now, _LOOK_SECONDS)))
        for fd in ready:
            data = os.read(fd, 1 << 16)
            if not data:
                open_ones.discard(fd)
            elif fd == pipes.printed:
                printed += len(data)
            else:
                kept[fd] = (kept[fd] + data)[: 1 << 16]
        if printed > limits.output_bytes:
            return Outcome("killed", "wrote too much")
        if pipes.verdict not in open_ones:
            ended = dict(line.split() for line in kept[pipes.ended].decode().splitlines())
            verdict = _verdict(kept[pipes.verdict])
            if verdict and not verdict.gone:
                return Outcome(verdict.status, verdict.message)
            who = "program" if verdict else "tests"
            if who in ended:
                return _explained(int(ended[who]), who)
            # it has closed its pipes and may live on; it has a moment to end
            deadline = min(deadline, time.monotonic() + _LOOK_SECONDS)
            if pipes.ended not in open_ones or time.monotonic() >= deadline:
                return Outcome("failed", f"the {who} stopped answering")


_LOOK_SECONDS = 0.1


def _verdict(said: bytes) -> Verdict | None:
    """What the tests' side reported, if it did."""
    try:
        return Verdict(*json.loads(said))
    except (ValueError, TypeError):
        return None


def _explained(code: int, who: str) -> Outcome:
    """The outcome where a side ended without a verdict, by its exit code."""
    if -code == signal.SIGXCPU:
        return Outcome("timeout", "out of processor time")
    if code < 0:
        return Outcome("killed", f"signal {-code}")
    return Outcome("failed", f"the {who} left with exit code {code} before the end")


def _keep_both(program: Program, job: Job, pipes: _Pipes) -> None:
    """The first process: starts the tests, then, in a namespace within its own, the keeper of the program."""
    os.setpgid(0, 0)
    tests = os.fork()
    if not tests:
        _end_with(lambda: _judge(program, job, pipes))
    part_from_tests(job)
    itself = os.getpid()
    keeper = os.fork()
    if not keeper:
        die_with(0 if job.mechanism.endswith("namespaces") else itself)
        _end_with(lambda: _keep("program", job, pipes, lambda: _answer(program, job, pipes)))
    _tell_ends({tests: "tests", keeper: ""}, pipes)


def _keep(side: str, job: Job, pipes: _Pipes, action: Callable[[], None]) -> None:
    """The first process of one side's namespace: starts it and tells how it ends, and all of it ends with that."""
    child = os.fork()
    if not child:
        _end_with(action)
    _tell_ends({child: side}, pipes)


def _tell_ends(children: dict[int, str], pipes: _Pipes) -> None:
    """Waits for some children, and for whoever has become one, and says how those with a name have ended."""
    for fd in set(pipes) - {pipes.ending}:
        with contextlib.suppress(OSError):
            os.close(fd)
    while children:
        child, status = os.wait()
        if side := children.pop(child, ""):
            os.write(pipes.ending, f"{side} {os.waitstatus_to_exitcode(status)}\n".encode())


def _judge(program: Program, job: Job, pipes: _Pipes) -> None:
    confine(job, (pipes.answered, pipes.asking, pipes.judging), None, job.uid + 1)
    verdict = judge(program.prompt, program.tests, pipes.answered, pipes.asking)
    os.write(pipes.judging, json.dumps(verdict).encode())


def _answer(program: Program, job: Job, pipes: _Pipes) -> None:
    confine(job, (pipes.asked, pipes.answering), pipes.printing, job.uid)
    answer(f"{program.prompt}{program.completion}\n", pipes.asked, pipes.answering)


def _exec_bubblewrap(side: str, program: Program, job: Job, pipes: _Pipes) -> NoReturn:
    """Becomes bubblewrap, which runs one side."""
    source, sink = os.pipe()
    if not os.fork():
        os.close(source)
        with os.fdopen(sink, "wb") as pipe:
            pipe.write(json.dumps([program, job, pipes]).encode())
        os._exit(0)
    os.close(sink)
    os.dup2(source, 0)
    mine = (
        (pipes.answered, pipes.asking, pipes.judging)
        if side == "tests"
        else (pipes.asked, pipes.answering, pipes.printing)
    )
    for fd in pipes:
        if fd in mine or fd == pipes.ending:
            os.set_inheritable(fd, True)
        else:
            os.close(fd)
    command = bubblewrap_command(job, Path(__file__).resolve().parent, [side])
    os.execv(command[0], command)  # noqa: S606


def _inside_bubblewrap(side: str) -> None:
    """The first process of a side that bubblewrap confines."""
    program, job, pipes = json.load(sys.stdin)
    inside, found = _Pipes(*pipes), Job(job[0], Limits(*job[1]), *job[2:])
    action = _judge if side == "tests" else _answer
    _keep(side, found, inside, lambda: action(Program(*program), found, inside))


def _end_with(action: Callable[[], None]) -> NoReturn:
    """Runs an action in a forked child and leaves without the parent's clean-up."""
    code = 1
    try:
        action()
        code = 0
    finally:
        os._exit(code)


# what tests and programs import most
_COMMON = ("collections", "copy", "functools", "heapq", "itertools", "math", "random", "re", "string", "typing")
