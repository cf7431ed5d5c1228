"""What a program that nobody has read is confined by: namespaces or bubblewrap, with limits on what it may use.

Every way gives a program a file system of its own (Python and the system's libraries, read-only, and an empty /tmp), a
network without an interface, no sight of other processes, no privileges and no way to regain any. Which of them holds
on this machine is not believed but tried, see `mcbench.sandbox`. No way leaves anything on the disk, so that there is
nothing to tidy up after a kill.

This file also runs inside the sandbox, so it imports the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

# strongest first; the last confines nothing
MECHANISMS = {
    "namespaces": "namespaces(mount,net,pid,ipc,uts)+uid+rlimits+seccomp",
    "user-namespaces": "namespaces(user,mount,net,pid,ipc,uts)+rlimits+seccomp",
    "bubblewrap": "bubblewrap+rlimits+seccomp",
    "limits": "rlimits",
}


class Limits(NamedTuple):
    """What one program may use."""

    cpu_seconds: int = 2
    wall_seconds: float = 6.0
    memory_bytes: int = 256 << 20  # address space of each process; in sum, half as much again may be in use
    processes: int = 8
    file_bytes: int = 1 << 20
    output_bytes: int = 1 << 18


class Job(NamedTuple):
    """How programs are confined, and what is its own of one at a time."""

    mechanism: str
    limits: Limits
    bubblewrap: str | None
    uid: int  # of the program where root may choose; the tests have the next one, and no other process has either
    folder: str  # where "limits" lets it write; empty elsewhere


# -- the supervisor of one program


def enter(job: Job) -> None:
    """Namespaces and files of the supervisor, which are those of all that it starts; OSError where they are refused."""
    if job.mechanism == "namespaces":
        if os.geteuid():
            raise PermissionError("only root can do without a user namespace")
        _unshare(_NEW_MOUNT | _NEW_UTS | _NEW_IPC | _NEW_PID | _NEW_NET)
        _change_root()
    elif job.mechanism == "user-namespaces":
        _give_up_root(job)
        user, group = os.getuid(), os.getgid()
        _unshare(_NEW_USER | _NEW_MOUNT | _NEW_UTS | _NEW_IPC | _NEW_PID | _NEW_NET)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"1000 {user} 1")
        Path("/proc/self/gid_map").write_text(f"1000 {group} 1")
        _change_root()
    elif job.mechanism == "bubblewrap":
        if not job.bubblewrap:
            raise FileNotFoundError("bubblewrap is not installed")
        _give_up_root(job)


def part_from_tests(job: Job) -> None:
    """The next child shares neither processes nor files with the tests, which this process has started before."""
    if job.mechanism in ("namespaces", "user-namespaces"):
        _unshare(_NEW_PID | _NEW_MOUNT)
        _own_tmp("/tmp")  # noqa: S108 - a file system of its own


def confine(job: Job, keep: Collection[int], output: int | None, uid: int) -> None:
    """Descriptors, limits, identity, capabilities, system calls: each given up for good.

    `keep` are the descriptors that stay open; what is printed goes to `output`, or nowhere.
    """
    null = os.open("/dev/null", os.O_RDWR)
    for target, source in enumerate((null, null if output is None else output, null if output is None else output)):
        os.dup2(source, target)
    below = 3
    for kept in (*sorted(keep), 1 << 16):
        os.closerange(below, kept)
        below = kept + 1
    os.umask(0o077)
    os.environ.clear()
    os.chdir(job.folder or "/tmp")  # noqa: S108 - a file system of its own
    limits = job.limits
    # in a user namespace those who watch over a program count as its own
    processes = limits.processes + (0 if job.mechanism == "namespaces" else 5)
    for name, value in (
        ("CORE", 0),
        ("CPU", limits.cpu_seconds),
        ("FSIZE", limits.file_bytes),
        ("NOFILE", 64),
        ("AS", limits.memory_bytes),
        ("DATA", limits.memory_bytes),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
        ("NPROC", processes),
    ):
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            soft, hard = value, value + (name == "CPU")
            ceiling = resource.getrlimit(kind)[1]
            if ceiling != resource.RLIM_INFINITY:
                soft, hard = min(soft, ceiling), min(hard, ceiling)
            resource.setrlimit(kind, (soft, hard))
    if job.mechanism == "namespaces":
        become(uid)
    if job.mechanism != "limits":
        _drop_capabilities()
        _restrict_calls()


def bubblewrap_command(job: Job, package: Path, arguments: list[str]) -> list[str]:
    """The command that runs this package's sandbox, and so one side of it, inside bubblewrap.

    Nothing inside can make a user namespace of its own, in which it would have all capabilities again.
    """
    assert job.bubblewrap
    command = [job.bubblewrap, "--unshare-user", "--disable-userns", "--unshare-ipc", "--unshare-pid", "--unshare-net"]
    command += ["--unshare-uts", "--unshare-cgroup-try", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += ["--clearenv", "--as-pid-1"]
    for path in library_folders():
        linked = Path(path).is_symlink()
        command += ["--symlink", str(Path(path).readlink()), path] if linked else ["--ro-bind", path, path]
    command += ["--tmpfs", "/dev"]
    for device in _DEVICES:
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    command += ["--remount-ro", "/dev", "--size", str(32 << 20), "--tmpfs", "/tmp"]  # noqa: S108 - of its own
    for name in ("__init__", "answers", "confinement", "sandbox"):
        command += ["--ro-bind", str(package / f"{name}.py"), f"/mcbench-sandbox/mcbench/{name}.py"]
    command += ["--remount-ro", "/", "--chdir", "/"]
    return [*command, *python_command("/mcbench-sandbox"), *arguments]


def python_command(folder: str) -> list[str]:
    """Python on the sandbox of the package in a folder, without site packages, environment or current folder."""
    boot = "import sys; sys.path.insert(0, sys.argv[1]); import mcbench.sandbox as s; del sys.path[0]; s.main()"
    return [os.path.realpath(sys.executable), "-I", "-S", "-c", boot, folder]


def become(uid: int) -> None:
    """Changes to a user and its group, for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def free_uids(count: int) -> int:
    """The first of `count` users that run no process, from the range for short-lived services."""
    used = set()
    for status in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            used.add(status.stat().st_uid)
    start = 61184 + os.getpid() * 16 % 4000
    candidates = (61184 + (start - 61184 + step) % 4000 for step in range(4000))
    return next((uid for uid in candidates if not used & set(range(uid, uid + count))), 65000)


def die_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Has this process killed when its parent is gone, however that came; `parent` is 0 where it cannot be seen."""
    if sys.platform != "linux":
        return
    _call("prctl", 1, by, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)  # it was gone already


class Memory:
    """The memory in use by a process and all its descendants.

    Opened before the root is changed; it sees nothing where the kernel lists no children.
    """

    def __init__(self) -> None:
        self._proc = -1
        with contextlib.suppress(OSError):
            self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)

    def used(self, process: int) -> int:
        """Bytes, a page that several share counted once."""
        total = 0
        for line in self._read(f"{process}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) << 10
        with contextlib.suppress(OSError):
            folder = os.open(f"{process}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._proc)
            try:
                threads = os.listdir(folder)  # noqa: PTH208 - a descriptor
            finally:
                os.close(folder)
            for thread in threads:
                total += sum(self.used(int(c)) for c in self._read(f"{process}/task/{thread}/children").split())
        return total

    def _read(self, path: str) -> str:
        try:
            file = os.open(path, os.O_RDONLY, dir_fd=self._proc)
        except OSError:
            return ""
        try:
            return os.read(file, 1 << 16).decode()
        except OSError:
            return ""
        finally:
            os.close(file)


# -- files


_DEVICES = ("null", "zero", "random", "urandom")
_BIND, _RECURSIVE, _PRIVATE, _REMOUNT = 4096, 16384, 1 << 18, 32
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXEC = 1, 2, 4, 8


def library_folders() -> list[str]:
    """What Python needs to import its standard library; no folder that lies inside another."""
    wanted = [path for path in ("/usr", "/lib", "/lib64", sys.base_prefix, sys.base_exec_prefix) if Path(path).exists()]
    return [p for p in dict.fromkeys(wanted) if not any(p != q and Path(p).is_relative_to(q) for q in wanted)]


def _change_root() -> None:
    """A file system of its own: Python and the system's libraries read-only, an empty /tmp, nothing else.

    It is mounted over a folder that exists everywhere and is not needed. Only this mount namespace sees it.
    """
    needed = [*library_folders(), "/dev"]
    places = ("/mnt", "/media", "/srv", "/opt", "/tmp", "/var/tmp")  # noqa: S108 - nothing is written there
    free = [p for p in places if Path(p).is_dir() and not any(Path(n).is_relative_to(p) for n in needed)]
    if not free:
        raise FileNotFoundError(f"none of {', '.join(places)} is free to mount a root on")
    root = free[0]
    _call("mount", b"none", b"/", None, _RECURSIVE | _PRIVATE, None)
    _call("mount", b"tmpfs", root.encode(), b"tmpfs", _NO_SUID | _NO_DEVICES, b"size=32m,nr_inodes=8k,mode=755")
    for path in library_folders():
        target = Path(f"{root}{path}")
        if Path(path).is_symlink():  # /lib -> usr/lib
            target.symlink_to(Path(path).readlink())
            continue
        target.mkdir(parents=True, exist_ok=True)
        _bind(path, str(target), read_only=True)
    Path(f"{root}/dev").mkdir()
    for device in _DEVICES:
        Path(f"{root}/dev/{device}").touch()
        _bind(f"/dev/{device}", f"{root}/dev/{device}", read_only=False)
    private = Path(root, "tmp")
    private.mkdir()
    _own_tmp(str(private))
    # tests and program share this root: who could write there could move the libraries of the other
    _call("mount", None, root.encode(), None, _BIND | _REMOUNT | _READ_ONLY | _NO_SUID | _NO_DEVICES, None)
    os.chroot(root)
    os.chdir("/")


def _own_tmp(path: str) -> None:
    _call("mount", b"tmpfs", path.encode(), b"tmpfs", _NO_SUID | _NO_DEVICES, b"size=32m,nr_inodes=8k,mode=1777")


def _bind(source: str, target: str, read_only: bool) -> None:
    _call("mount", source.encode(), target.encode(), None, _BIND | _RECURSIVE, None)
    if read_only:
        # what the mount has locked must be asked for again
        locked = os.statvfs(source).f_flag & (_NO_SUID | _NO_DEVICES | _NO_EXEC)
        flags = _BIND | _REMOUNT | _READ_ONLY | _NO_SUID | _NO_DEVICES | locked
        _call("mount", None, target.encode(), None, flags, None)


# -- privileges, and what the standard library has no words for

_NEW_MOUNT, _NEW_UTS, _NEW_IPC = 0x00020000, 0x04000000, 0x08000000
_NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000


def _give_up_root(job: Job) -> None:
    """Root becomes the program's own user, whose number of processes the kernel limits; its own it does not."""
    if not os.geteuid():
        become(job.uid)
        _call("prctl", 4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: else /proc/self belongs to root, and so does its uid_map


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


def _drop_capabilities() -> None:
    """No capability, and none to be gained by running a program that has some."""
    if sys.platform != "linux":
        return
    _call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    header = struct.pack("Ii", 0x20080522, 0)  # version 3, this process
    with contextlib.suppress(OSError):
        _call("capset", header, struct.pack("6I", *[0] * 6))


# Numbers of the system calls that a function completion has no use for, by machine. Namespaces confine without them;
# this closes what they do not bound: memory that belongs to no process, keyrings, and interfaces of the kernel that
# have had faults.
_FORBIDDEN: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41, "ptrace": 101, "mount": 165, "umount2": 166, "chroot": 161, "pivot_root": 155,
            "unshare": 272, "setns": 308, "keyctl": 250, "add_key": 248, "request_key": 249, "bpf": 321,
            "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "process_vm_readv": 310,
            "process_vm_writev": 311, "kexec_load": 246, "init_module": 175, "finit_module": 313, "shmget": 29,
            "semget": 64, "msgget": 68, "mq_open": 240, "memfd_create": 319, "memfd_secret": 447,
            "name_to_handle_at": 303, "open_by_handle_at": 304, "pidfd_getfd": 438,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "socket": 198, "ptrace": 117, "mount": 40, "umount2": 39, "chroot": 51, "pivot_root": 41,
            "unshare": 97, "setns": 268, "keyctl": 219, "add_key": 217, "request_key": 218, "bpf": 280,
            "perf_event_open": 241, "userfaultfd": 282, "io_uring_setup": 425, "process_vm_readv": 270,
            "process_vm_writev": 271, "kexec_load": 104, "init_module": 105, "finit_module": 273, "shmget": 194,
            "semget": 190, "msgget": 186, "mq_open": 180, "memfd_create": 279, "memfd_secret": 447,
            "name_to_handle_at": 264, "open_by_handle_at": 265, "pidfd_getfd": 438,
        },
    ),
}  # fmt: skip
# open_tree to fspick, mount_setattr: numbers that all machines share
_FORBIDDEN_EVERYWHERE = (428, 429, 430, 431, 432, 433, 442)


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _restrict_calls() -> None:
    """A seccomp filter: the calls above fail with EPERM; clone3, whose flags no filter can read, does not exist.

    Other machines than x86_64 and aarch64 go without; what that leaves open the probe finds.
    """
    machine = platform.machine()
    if machine not in _FORBIDDEN:
        return
    audit, calls = _FORBIDDEN[machine]
    clone, clone3 = {"x86_64": 56, "aarch64": 220}[machine], 435
    load, equal, at_least, any_of, back = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, absent, kill = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38, 0x80000000
    spaces = _NEW_MOUNT | _NEW_UTS | _NEW_IPC | _NEW_USER | _NEW_PID | _NEW_NET | 0x02000000  # cgroup
    numbers = sorted((*calls.values(), *_FORBIDDEN_EVERYWHERE))
    code = [(load, 0, 0, 4), (equal, 1, 0, audit), (back, 0, 0, kill), (load, 0, 0, 0)]
    if machine == "x86_64":  # the x32 calls have numbers of their own
        code += [(at_least, 0, 1, 0x40000000), (back, 0, 0, kill)]
    code += [(equal, 0, 1, clone3), (back, 0, 0, absent)]
    code += [(equal, 0, 4, clone), (load, 0, 0, 16), (any_of, 0, 1, spaces), (back, 0, 0, refuse), (back, 0, 0, allow)]
    code += [(equal, len(numbers) - n, 0, number) for n, number in enumerate(numbers)]
    code += [(back, 0, 0, allow), (back, 0, 0, refuse)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
    program = _Filter(len(code), ctypes.cast(packed, ctypes.c_void_p))
    _call("prctl", 22, 2, ctypes.byref(program), 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
