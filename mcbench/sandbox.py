"""Runs Python programs that nobody has read, confined as strongly as this machine allows, and says how strongly.

Every program has a process of its own without network, files, privileges or sight of other processes, with bounds on
memory, processor time, processes, file size and output, and is killed with all its descendants when its time is up.
What confines it is found out once by running a hostile program and looking at what it could do.

This file is also what the confined side runs (`python -I -S sandbox.py`), so it imports the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import platform
import resource
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

Status = Literal["passed", "failed", "timeout", "memory", "syntax", "killed"]

# strongest first; the first that contains the hostile program is taken
MECHANISMS = {
    "namespaces": "namespaces(mount,net,pid,ipc,uts)+uid+rlimits+seccomp",
    "user-namespaces": "namespaces(user,mount,net,pid,ipc,uts)+rlimits+seccomp",
    "bubblewrap": "bubblewrap+rlimits+seccomp",
    "landlock": "uid+landlock+rlimits+seccomp",
    "uid": "uid+rlimits",
    "limits": "rlimits",
}


class Outcome(NamedTuple):
    """How a program ended: "passed" if it ran to its end, "failed" if it raised or left early.

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


class Limits(NamedTuple):
    """What one program may use."""

    cpu_seconds: int = 2
    wall_seconds: float = 6.0
    memory_bytes: int = 256 << 20  # address space of each process
    processes: int = 8
    file_bytes: int = 1 << 20
    output_bytes: int = 1 << 18


def run_programs(
    programs: Sequence[str],
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

    found = []
    with inner("trying the sandbox", len(MECHANISMS)) as step:
        for mechanism in MECHANISMS:
            leaks = probe(mechanism)
            if leaks == ():
                return Isolation(MECHANISMS[mechanism], True, "", mechanism)
            if leaks is not None:
                found.append((len(leaks), leaks, mechanism))
            step()
    _, leaks, mechanism = min(found, key=lambda one: one[0])
    return Isolation(MECHANISMS[mechanism], False, "not prevented: " + ", ".join(leaks), mechanism)


def probe(mechanism: str) -> tuple[str, ...] | None:
    """What a hostile program could do under a mechanism; None where the mechanism does not work here at all."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        outside = Path(folder)
        outside.chmod(0o777)
        (outside / "readable").write_text("private")
        facts = {
            "folder": folder,
            "port": server.getsockname()[1],
            "parent": os.getpid(),
            "processes": Limits().processes,
            "memory": Limits().memory_bytes,
        }
        # the second program needs the standard library and must pass
        harmless = "import collections, decimal, hashlib, heapq, itertools, json, math, random, re, string, typing\n"
        programs = [f"FACTS = {facts!r}\n{_HOSTILE}", harmless + "assert math.gcd(4, 6) == 2\n"]
        hostile, good = _serve(programs, mechanism, Limits(), 1)
    if good.status != "passed" or not hostile.message.startswith("Leaks: "):
        return None
    leaks: list[str] = json.loads(hostile.message.removeprefix("Leaks: "))
    return tuple(leaks)


_HOSTILE = """
import json, os, signal, socket, time
leaks = []
def attempt(name, action):
    try:
        action()
    except (OSError, MemoryError):
        return
    leaks.append(name)
def connect():
    socket.create_connection(("127.0.0.1", FACTS["port"]), timeout=1).close()
def send():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", FACTS["port"]))
        one.connect(("192.0.2.1", 9))
def fork():
    children = []
    try:
        for _ in range(FACTS["processes"] + 2):
            child = os.fork()
            if not child:
                time.sleep(20)
                os._exit(0)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
attempt("connecting", connect)
attempt("sending datagrams", send)
attempt("reading files", lambda: open(FACTS["folder"] + "/readable").read())
attempt("writing files", lambda: open(FACTS["folder"] + "/written", "w").write("x"))
attempt("signalling other processes", lambda: os.kill(FACTS["parent"], 0))
attempt("starting processes without end", fork)
attempt("taking memory without end", lambda: bytearray(2 * FACTS["memory"]))
class Leaks(Exception):
    pass
raise Leaks(json.dumps(leaks))
"""


def _serve(
    programs: Sequence[str],
    mechanism: str,
    limits: Limits,
    workers: int,
    step: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    """Hands the programs to a server process without environment, which forks a confined child for each.

    `step` is called as each of them ends.
    """
    if not programs:
        return []
    with contextlib.ExitStack() as stack:
        shared = "/tmp" if os.access("/tmp", os.W_OK) else None  # noqa: S108 - every user can reach what is mounted here
        root = stack.enter_context(tempfile.TemporaryDirectory(dir=shared, prefix="mcbench-sandbox-"))
        Path(root).chmod(0o755)
        task = {
            "programs": list(programs),
            "mechanism": mechanism,
            "limits": list(limits),
            "workers": workers,
            "root": root,
            "bubblewrap": shutil.which("bwrap"),
        }
        server = subprocess.Popen(  # noqa: S603 - our own interpreter on this very file
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )

        def end() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)

        assert server.stdin and server.stdout
        rounds = -(-len(programs) // workers) + 1
        patience = threading.Timer(rounds * (limits.wall_seconds + 10), end)
        patience.start()
        answer: list[bytes] = []
        try:
            with contextlib.suppress(BrokenPipeError), server.stdin as tasks:
                tasks.write(json.dumps(task).encode())
            for line in server.stdout:
                answer.append(line)
                step()
        finally:
            patience.cancel()
            end()
            server.wait()
            server.stdout.close()
    # without real isolation a program can end the server: what it had not reported counts as killed
    outcomes = {}
    for line in answer:
        with contextlib.suppress(ValueError, TypeError):
            at, status, message = json.loads(line)
            outcomes[at] = Outcome(status, message)
    return [outcomes.get(at, Outcome("killed", "the sandbox ended before the program")) for at in range(len(programs))]


# -- the confined side: server -> supervisor of one program -> first process of its namespace -> the program


class _Job(NamedTuple):
    mechanism: str
    limits: Limits
    root: str
    bubblewrap: str | None
    uid: int  # of the program where the server may choose; no other process has it
    slot: int


def _server(task: dict[str, Any]) -> None:
    """Runs each program under a supervisor, `workers` at a time; writes one line for each as it ends."""
    pending = list(enumerate(task["programs"]))[::-1]
    running: dict[int, tuple[int, int, int]] = {}  # supervisor -> position, pipe to read, slot
    first = _free_uids(task["workers"])
    slots = list(range(task["workers"]))
    limits = Limits(*task["limits"])
    while pending or running:
        while pending and slots:
            at, program = pending.pop()
            slot = slots.pop()
            job = _Job(task["mechanism"], limits, task["root"], task["bubblewrap"], first + slot, slot)
            read, write = os.pipe()
            child = os.fork()
            if not child:
                os.close(read)
                _end_with(lambda: _supervise(program, job, write))  # noqa: B023 - runs before the loop goes on
            os.close(write)
            running[child] = (at, read, slot)
        child, _ = os.wait()
        if child in running:
            at, read, slot = running.pop(child)
            slots.append(slot)
            with os.fdopen(read, "rb") as pipe:
                answer = pipe.read() or json.dumps(["killed", "the sandbox could not be entered"]).encode()
            sys.stdout.write(json.dumps([at, *json.loads(answer)]) + "\n")
            sys.stdout.flush()


def _supervise(program: str, job: _Job, answer: int) -> None:
    """Starts one program, waits for it, kills all that is left of it, and writes [status, message] to `answer`."""
    os.setsid()
    try:
        enter = _ENTER[job.mechanism]
        enter(job)
    except OSError as error:
        os.write(answer, json.dumps(["killed", f"the sandbox could not be entered: {error}"]).encode())
        return
    _die_with_parent()
    nonce = secrets.token_hex(16)
    output, report, ending = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        for fd in (answer, output[0], report[0], ending[0]):
            os.close(fd)
        _end_with(lambda: _first_process(program, job, nonce, output[1], report[1], ending[1]))
    for fd in (output[1], report[1], ending[1]):
        os.close(fd)
    said, ended, reason = _watch(output[0], report[0], ending[0], job.limits)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)  # the first process of a namespace takes all others with it
        os.killpg(child, signal.SIGKILL)
    if job.mechanism in ("landlock", "uid"):
        _kill_all_of(job.uid)
    os.waitpid(child, 0)
    os.write(answer, json.dumps(_judge(said, ended, reason, nonce)).encode())


def _watch(output: int, report: int, ending: int, limits: Limits) -> tuple[bytes, bytes, str]:
    """What the program reported and how it ended, and why it was stopped if it was."""
    deadline = time.monotonic() + limits.wall_seconds
    received = {output: 0, report: 0, ending: 0}
    kept = {output: b"", report: b"", ending: b""}
    while True:
        left = deadline - time.monotonic()
        ready, _, _ = select.select(list(received), [], [], max(0.0, left))
        if not ready:
            return kept[report], kept[ending], "timeout"
        for fd in ready:
            data = os.read(fd, 1 << 16)
            if not data:
                del received[fd]
                if fd == ending:
                    return kept[report] + _rest(report), kept[ending], ""
                continue
            received[fd] += len(data)
            if fd != output:
                kept[fd] = (kept[fd] + data)[: 1 << 16]
            elif received[fd] > limits.output_bytes:
                return kept[report], kept[ending], "output"


def _rest(fd: int) -> bytes:
    """What is in a pipe now, without waiting for more."""
    os.set_blocking(fd, False)
    with contextlib.suppress(OSError):
        return os.read(fd, 1 << 16)
    return b""


def _judge(said: bytes, ended: bytes, reason: str, nonce: str) -> tuple[Status, str]:
    """Status and message from the program's report (believed only with its nonce) and from how its process ended."""
    if reason == "timeout":
        return "timeout", "out of wall-clock time"
    if reason == "output":
        return "killed", "wrote too much"
    with contextlib.suppress(ValueError, TypeError):
        token, status, message = json.loads(said)
        if token == nonce:
            return status, message
    code = int(ended or b"-9")
    if -code == signal.SIGXCPU:
        return "timeout", "out of processor time"
    if code < 0:
        return "killed", f"signal {-code}"
    return "failed", f"left with exit code {code} before its end"


def _first_process(program: str, job: _Job, nonce: str, output: int, report: int, ending: int) -> None:
    """The parent of the program: it waits for it and says how it ended. As the first process of its namespace it
    takes every descendant along when it leaves."""
    os.setpgid(0, 0)
    _die_with_parent()
    if job.mechanism == "bubblewrap":
        _exec_bubblewrap(program, job, nonce, output, report, ending)
    child = os.fork()
    if not child:
        os.close(ending)
        _end_with(lambda: _program(program, job, nonce, output, report))
    os.close(output)
    os.close(report)
    while True:
        ended, status = os.wait()
        if ended == child:
            os.write(ending, str(os.waitstatus_to_exitcode(status)).encode())
            return


def _program(program: str, job: _Job, nonce: str, output: int, report: int) -> None:
    """Gives up everything, then runs the program and reports how that went."""
    _confine(job, output, report)

    itself = os.getpid()

    def say(status: Status, message: str) -> None:
        if os.getpid() == itself:  # not a child that the program has forked
            os.write(report, json.dumps([nonce, status, message[:500]]).encode())

    try:
        code = compile(program, "program", "exec")
    except (SyntaxError, ValueError) as error:
        return say("syntax", f"{type(error).__name__}: {error}")
    except MemoryError:
        return say("memory", "")
    except RecursionError as error:
        return say("failed", f"RecursionError: {error}")
    try:
        exec(code, {"__name__": "__main__", "__builtins__": __builtins__})  # noqa: S102 - what a sandbox is for
    except MemoryError:
        return say("memory", "")
    except BaseException as error:
        return say("failed", f"{type(error).__name__}: {error}")
    return say("passed", "")


def _confine(job: _Job, output: int, report: int) -> None:
    """Descriptors, limits, identity, capabilities, files, system calls: each given up for good."""
    limits = job.limits
    null = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.closerange(3, report)
    os.closerange(report + 1, 4096)
    os.umask(0o077)
    os.environ.clear()
    files = [path for path in (sys.base_prefix, "/usr", "/lib", "/lib64", "/dev") if Path(path).exists()]
    private = f"{job.root}/private-{job.slot}"
    if job.mechanism in ("landlock", "uid", "limits"):
        shutil.rmtree(private, ignore_errors=True)
        Path(private).mkdir(0o700)
        if job.mechanism != "limits":
            os.chown(private, job.uid, job.uid)
        os.chdir(private)
    else:
        os.chdir("/tmp")  # noqa: S108 - a file system of its own
    for name, value in (
        ("CORE", 0),
        ("CPU", limits.cpu_seconds),
        ("FSIZE", limits.file_bytes),
        ("NOFILE", 64),
        ("AS", limits.memory_bytes),
        ("DATA", limits.memory_bytes),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
        ("NPROC", limits.processes),
    ):
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            soft, hard = value, value + (name == "CPU")
            ceiling = resource.getrlimit(kind)[1]
            if ceiling != resource.RLIM_INFINITY:
                soft, hard = min(soft, ceiling), min(hard, ceiling)
            resource.setrlimit(kind, (soft, hard))
    if job.mechanism in ("namespaces", "landlock", "uid"):
        _become(job.uid)
    _drop_capabilities()
    if job.mechanism == "landlock":
        _restrict_files(read=files, write=[private])
    if job.mechanism not in ("uid", "limits"):
        _restrict_calls()


# -- ways of entering a sandbox

_NEW = {"mount": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000, "pid": 0x20000000}
_NEW_NET = 0x40000000
_BIND, _RECURSIVE, _PRIVATE, _REMOUNT = 4096, 16384, 1 << 18, 32
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXEC = 1, 2, 4, 8


def _enter_namespaces(job: _Job) -> None:
    """As root: mounts and namespaces first; the program changes its user later."""
    if os.geteuid():
        raise PermissionError("only root can do without a user namespace")
    _unshare(_NEW["mount"] | _NEW["uts"] | _NEW["ipc"] | _NEW["pid"] | _NEW_NET)
    _change_root(job.root)


def _enter_user_namespaces(job: _Job) -> None:
    """As anyone: a user namespace in which all the others may be made."""
    if not os.geteuid():
        _become(job.uid)
        _call("prctl", 4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: else /proc/self belongs to root, and so does its uid_map
    user, group = os.getuid(), os.getgid()
    _unshare(_NEW["user"] | _NEW["mount"] | _NEW["uts"] | _NEW["ipc"] | _NEW["pid"] | _NEW_NET)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"1000 {user} 1")
    Path("/proc/self/gid_map").write_text(f"1000 {group} 1")
    _change_root(job.root)


def _enter_bubblewrap(job: _Job) -> None:
    if not job.bubblewrap:
        raise FileNotFoundError("bubblewrap is not installed")


def _enter_as_user(job: _Job) -> None:
    if os.geteuid():
        raise PermissionError("only root can become another user")


def _enter_nothing(job: _Job) -> None:
    """Limits need no preparation."""


_ENTER: dict[str, Callable[[_Job], None]] = {
    "namespaces": _enter_namespaces,
    "user-namespaces": _enter_user_namespaces,
    "bubblewrap": _enter_bubblewrap,
    "landlock": _enter_as_user,
    "uid": _enter_as_user,
    "limits": _enter_nothing,
}


def _change_root(root: str) -> None:
    """A file system of its own: Python and the system's libraries read-only, an empty /tmp, nothing else."""
    _call("mount", b"none", b"/", None, _RECURSIVE | _PRIVATE, None)
    _call("mount", b"tmpfs", root.encode(), b"tmpfs", _NO_SUID | _NO_DEVICES, b"size=32m,mode=755")
    for path in _library_folders():
        if Path(path).is_symlink():  # /lib -> usr/lib
            Path(f"{root}{path}").symlink_to(Path(path).readlink())
            continue
        target = Path(f"{root}{path}")
        target.mkdir(parents=True, exist_ok=True)
        _bind(path, str(target), read_only=True)
    Path(f"{root}/dev").mkdir()
    for device in ("null", "zero", "random", "urandom"):
        Path(f"{root}/dev/{device}").touch()
        _bind(f"/dev/{device}", f"{root}/dev/{device}", read_only=False)
    private = Path(root, "tmp")
    private.mkdir()
    private.chmod(0o777)
    os.chroot(root)
    os.chdir("/")


def _library_folders() -> list[str]:
    """What Python needs to import its standard library; no folder that lies inside another."""
    wanted = [path for path in ("/usr", "/lib", "/lib64", sys.base_prefix, sys.base_exec_prefix) if Path(path).exists()]
    return [p for p in dict.fromkeys(wanted) if not any(p != q and Path(p).is_relative_to(q) for q in wanted)]


def _bind(source: str, target: str, read_only: bool) -> None:
    _call("mount", source.encode(), target.encode(), None, _BIND | _RECURSIVE, None)
    if read_only:
        # what the mount has locked must be asked for again
        locked = os.statvfs(source).f_flag & (_NO_SUID | _NO_DEVICES | _NO_EXEC)
        flags = _BIND | _REMOUNT | _READ_ONLY | _NO_SUID | _NO_DEVICES | locked
        _call("mount", None, target.encode(), None, flags, None)


def _exec_bubblewrap(program: str, job: _Job, nonce: str, output: int, report: int, ending: int) -> NoReturn:
    """Becomes bubblewrap, which runs this file as its confined program."""
    assert job.bubblewrap
    source, sink = os.pipe()
    if not os.fork():
        os.close(source)
        with os.fdopen(sink, "wb") as pipe:
            pipe.write(json.dumps([program, list(job.limits), nonce, output, report, ending]).encode())
        os._exit(0)
    os.close(sink)
    os.dup2(source, 0)
    for fd in (output, report, ending):
        os.set_inheritable(fd, True)
    here = str(Path(__file__).resolve())
    command = [job.bubblewrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    for path in _library_folders():
        command += (
            ["--symlink", str(Path(path).readlink()), path] if Path(path).is_symlink() else ["--ro-bind", path, path]
        )
    command += ["--dev", "/dev", "--tmpfs", "/tmp", "--ro-bind", here, "/sandbox.py", "--chdir", "/tmp"]  # noqa: S108
    os.execv(job.bubblewrap, [*command, os.path.realpath(sys.executable), "-I", "-S", "/sandbox.py", "bubblewrap"])  # noqa: S606


def _inside_bubblewrap() -> None:
    """What runs inside bubblewrap: the same as the first process of a namespace made by ourselves."""
    program, limits, nonce, output, report, ending = json.load(sys.stdin)
    job = _Job("inside", Limits(*limits), "/", None, 0, 0)
    _first_process(program, job, nonce, output, report, ending)


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _free_uids(count: int) -> int:
    """The first of `count` users that run no process, from the range for short-lived services."""
    used = set()
    for status in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            used.add(status.stat().st_uid)
    start = 61184 + os.getpid() * 16 % 4000
    candidates = (61184 + (start - 61184 + step) % 4000 for step in range(4000))
    return next((uid for uid in candidates if not used & set(range(uid, uid + count))), 65000)


def _kill_all_of(uid: int) -> None:
    """Kills every process of a user, from a process of that user (kill(-1) reaches all that it may signal)."""
    child = os.fork()
    if not child:
        _become(uid)
        with contextlib.suppress(OSError):
            os.kill(-1, signal.SIGKILL)
        os._exit(0)
    os.waitpid(child, 0)


# -- what the standard library has no words for


@functools.lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> int:
    """A function of the C library; OSError where it fails."""
    result = int(getattr(_libc(), name)(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _unshare(flags: int) -> None:
    _call("unshare", flags)


def _die_with_parent() -> None:
    """Killed when the process that started this one is gone."""
    if sys.platform == "linux":
        _call("prctl", 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _drop_capabilities() -> None:
    """No capability, and none to be gained by running a program that has some."""
    if sys.platform != "linux":
        return
    _call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    header = struct.pack("Ii", 0x20080522, 0)  # version 3, this process
    with contextlib.suppress(OSError):
        _call("capset", header, struct.pack("6I", *[0] * 6))


# numbers of the system calls that a function completion has no use for, by machine
_FORBIDDEN: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41, "ptrace": 101, "mount": 165, "umount2": 166, "chroot": 161, "pivot_root": 155,
            "unshare": 272, "setns": 308, "keyctl": 250, "add_key": 248, "request_key": 249, "bpf": 321,
            "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "process_vm_readv": 310,
            "process_vm_writev": 311, "kexec_load": 246, "init_module": 175, "finit_module": 313, "shmget": 29,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "socket": 198, "ptrace": 117, "mount": 40, "umount2": 39, "chroot": 51, "pivot_root": 41,
            "unshare": 97, "setns": 268, "keyctl": 219, "add_key": 217, "request_key": 218, "bpf": 280,
            "perf_event_open": 241, "userfaultfd": 282, "io_uring_setup": 425, "process_vm_readv": 270,
            "process_vm_writev": 271, "kexec_load": 104, "init_module": 105, "finit_module": 273, "shmget": 194,
        },
    ),
}  # fmt: skip


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _restrict_calls() -> None:
    """A seccomp filter: sockets, mounts, namespaces, tracing and kernel interfaces fail with EPERM.

    Other machines than x86_64 and aarch64 go without; what that leaves open the probe finds.
    """
    machine = platform.machine()
    if machine not in _FORBIDDEN:
        return
    audit, calls = _FORBIDDEN[machine]
    load, equal, at_least, back = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | 1, 0x80000000
    numbers = sorted(calls.values())
    code = [(load, 0, 0, 4), (equal, 1, 0, audit), (back, 0, 0, kill), (load, 0, 0, 0)]
    if machine == "x86_64":  # the x32 calls have numbers of their own
        code += [(at_least, 0, 1, 0x40000000), (back, 0, 0, kill)]
    code += [(equal, len(numbers) - n, 0, number) for n, number in enumerate(numbers)]
    code += [(back, 0, 0, allow), (back, 0, 0, refuse)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
    program = _Filter(len(code), ctypes.cast(packed, ctypes.c_void_p))
    _call("prctl", 22, 2, ctypes.byref(program), 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _restrict_files(read: Sequence[str], write: Sequence[str]) -> None:
    """Landlock: only these folders can be read or written, no TCP, no signal to a process outside (as far as known)."""
    version = _syscall(444, None, 0, 1)
    files = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    network, scope = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    rules = struct.pack("QQQ", files, network, scope)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _syscall(444, rules, size, 0)
    readable = 1 << 0 | 1 << 2 | 1 << 3  # execute, read file, read folder
    for path, access in (*((p, readable) for p in read), *((p, files) for p in write)):
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _syscall(445, ruleset, 1, struct.pack("=Qi", access, folder), 0)
        os.close(folder)
    _syscall(446, ruleset, 0)
    os.close(ruleset)


def _syscall(number: int, *arguments: Any) -> int:
    return _call("syscall", number, *arguments)


def _end_with(action: Callable[[], None]) -> NoReturn:
    """Runs an action in a forked child and leaves without the parent's clean-up."""
    code = 1
    try:
        action()
        code = 0
    finally:
        os._exit(code)


def _main(arguments: Sequence[str]) -> None:
    if arguments:
        _inside_bubblewrap()
    else:
        _server(json.load(sys.stdin))


if __name__ == "__main__":
    _main(sys.argv[1:])
