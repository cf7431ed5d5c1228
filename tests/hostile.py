"""Programs that try to get out of a sandbox, harm the machine or use it up. Each comes to its end only if it succeeds.

`FREE` ones leave nothing behind, so that they may run where nothing confines them, to show that what they try works
there. The others are run only under confinement that the probe has found whole.
"""

from __future__ import annotations

import os
import platform
import secrets
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from mcbench.confinement import _FORBIDDEN
from mcbench.sandbox import Outcome, Program, run_programs

MARK = f"mcbench-{secrets.token_hex(8)}"

# ruff: noqa: E501 - programs, a line each

START = """import ctypes, os, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    made = getattr(libc, name)(*arguments)
    if made < 0:
        raise OSError(ctypes.get_errno(), name)
    return made
def system(name, *arguments):
    return call("syscall", NUMBERS[name], *arguments)
"""
NUMBERS = {
    **_FORBIDDEN.get(platform.machine(), (0, {}))[1],
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "mount_setattr": 442, "clone3": 435, "pidfd_open": 434, "clone": {"x86_64": 56}.get(platform.machine(), 220),
    "mknodat": {"x86_64": 259}.get(platform.machine(), 33), "fanotify_init": {"x86_64": 300}.get(platform.machine(), 262),
    "syslog": {"x86_64": 103}.get(platform.machine(), 116), "quotactl": {"x86_64": 179}.get(platform.machine(), 60),
}  # fmt: skip

# files, processes and networks of the machine; none of these changes anything that it does not put back
FREE = {
    "reads a file of the user": "open(FOLDER + '/secret').read()\n",
    "lists a folder of the user": "assert 'secret' in os.listdir(FOLDER)\n",
    "sees that a file is there": "os.stat(FOLDER + '/secret')\n",
    "follows a link to a file": (
        "os.symlink(FOLDER + '/secret', 'link')\ntry:\n    open('link').read()\nfinally:\n    os.unlink('link')\n"
    ),
    "writes a file of the user": "open(FOLDER + '/written', 'w').write('x')\n",
    "changes the mode of a file": "os.chmod(FOLDER + '/secret', 0o644)\n",
    "reads the list of users": "assert open('/etc/passwd').read()\n",
    "lists host /dev/shm": "os.listdir('/dev/shm')\n",
    "writes to host /dev/shm": "open('/dev/shm/' + MARK, 'w').close()\nos.unlink('/dev/shm/' + MARK)\n",
    "lists the devices": "assert len(os.listdir('/dev')) > 6\n",
    "reads /sys": "assert os.listdir('/sys')\n",
    "reads the environment of another process": "open(f'/proc/{PARENT}/environ').read()\n",
    "sees the other processes": "os.stat('/proc/1')\n",
    "signals another process": "os.kill(PARENT, 0)\n",
    "asks for the limits of another process": ("import resource\nresource.prlimit(PARENT, resource.RLIMIT_NOFILE)\n"),
    "asks for the priority of another process": "os.getpriority(os.PRIO_PROCESS, PARENT)\n",
    "opens another process by pidfd": "os.close(os.pidfd_open(PARENT))\n",
    "connects over TCP": "socket.create_connection(('127.0.0.1', PORT), timeout=1).close()\n",
    "sends a datagram": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))\n",
    "listens on a port": "socket.create_server(('127.0.0.1', 0)).close()\n",
    "connects to a socket in the file system": (
        "one = socket.socket(socket.AF_UNIX)\none.connect(FOLDER + '/socket')\none.close()\n"
    ),
    "connects to an abstract socket": ("one = socket.socket(socket.AF_UNIX)\none.connect('\\0' + MARK)\none.close()\n"),
    "asks the kernel over netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()\n",
    "makes a message queue": "call('msgctl', call('msgget', 0, 0o1600), 0, None)\n",
    "makes shared memory": "call('shmctl', call('shmget', 0, 4096, 0o1600), 0, None)\n",
    "makes a semaphore": "call('semctl', call('semget', 0, 1, 0o1600), 0, 0)\n",
    "makes a POSIX message queue": (
        "mq = ctypes.CDLL('librt.so.1', use_errno=True)\nname = ('/' + MARK).encode()\n"
        "if mq.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None) < 0:\n    raise OSError('mq_open')\n"
        "mq.mq_unlink(name)\n"
    ),
    "makes memory that is a file": "os.close(system('memfd_create', b'x', 0))\n",
    "uses a keyring": "system('add_key', b'user', MARK.encode(), b'x', 1, -3)\n",
    "sets up io_uring": "os.close(system('io_uring_setup', 4, ctypes.create_string_buffer(120)))\n",
    "watches page faults": "os.close(system('userfaultfd', 1))\n",
    "measures the kernel": (
        "what = struct.pack('IIQ', 1, 128, 0) + bytes(112)\nos.close(system('perf_event_open', what, 0, -1, -1, 0))\n"
    ),
    "loads a BPF map": "os.close(system('bpf', 0, struct.pack('IIIII', 2, 4, 4, 1, 0) + bytes(100), 120))\n",
    "has a descriptor of a file that was left open": (
        "import stat\nfound = []\nfor fd in range(3, 1024):\n    try:\n        mode = os.fstat(fd).st_mode\n"
        "    except OSError:\n        continue\n    if not stat.S_ISFIFO(mode):\n        found.append(fd)\nassert found\n"
    ),
    "has an environment": "assert os.environ\n",
    "enters a user namespace": "call('unshare', 0x10000000)\n",
    "enters a user namespace by clone": (
        "pid = system('clone', 0x10000000 | 17, 0, 0, 0, 0)\nif not pid:\n    os._exit(0)\nos.waitpid(pid, 0)\n"
    ),
    "enters a user namespace by clone3": (
        "pid = system('clone3', (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17), 88)\n"
        "if not pid:\n    os._exit(0)\nos.waitpid(pid, 0)\n"
    ),
    "gains privileges in a user namespace": (
        "user = os.getuid()\ncall('unshare', 0x10000000 | 0x20000)\n"
        "open('/proc/self/uid_map', 'w').write(f'0 {user} 1')\ncall('mount', b'none', b'/tmp', b'tmpfs', 0, None)\n"
    ),
    "makes a file system by fsopen": "os.close(system('fsopen', b'tmpfs', 0))\n",
    "clones a mount by open_tree": "os.close(system('open_tree', -100, b'/', 1))\n",
    "joins another namespace": "call('setns', os.open(f'/proc/{PARENT}/ns/net', os.O_RDONLY), 0)\n",
    "watches the file system": "os.close(system('fanotify_init', 0, 0))\n",
    "reads the messages of the kernel": "system('syslog', 10, 0, 0)\n",
    "makes a device": "system('mknodat', -100, b'disk', 0o60600, 0x800)\nos.unlink('disk')\n",
    "traces another process": "call('ptrace', 0x4206, PARENT, None, None)\ncall('ptrace', 17, PARENT, None, None)\n",
    "reads the memory of another process": (
        "system('process_vm_readv', PARENT, (ctypes.c_uint64 * 2)(4096, 1), 1, (ctypes.c_uint64 * 2)(4096, 1), 1, 0)\n"
    ),
}

CONFINED = {
    "mounts": "call('mount', b'none', b'/tmp', b'tmpfs', 0, None)\n",
    "mounts a device": "call('mount', b'proc', b'/tmp', b'proc', 0, None)\n",
    "unmounts": "call('umount2', b'/tmp', 2)\n",
    "makes its root writable": "call('mount', None, b'/usr', None, 32 | 4096, None)\n",
    "makes its root writable by mount_setattr": (
        "system('mount_setattr', -100, b'/usr', 0, struct.pack('QQQQ', 0, 1, 0, 0), 32)\n"
    ),
    "moves a mount": "system('move_mount', -100, b'/usr', -100, b'/tmp', 0)\n",
    "changes its root": "os.chroot('/tmp')\n",
    "leaves its root": "os.chroot('.')\nos.chdir('../../../../..')\nassert os.listdir('/etc')\n",
    "writes over the interpreter": "open(os.__file__, 'a').write('x')\n",
    "writes over the system": "open('/usr/bin/' + MARK, 'w').write('x')\n",
    "writes to its root": "open('/' + MARK, 'w').close()\n",
    "puts a folder in the place of libraries": (
        "moved = 0\nfor name in os.listdir('/'):\n    try:\n        os.rename('/' + name, f'/{name}-{MARK}')\n"
        "        moved += 1\n    except OSError:\n        pass\nassert moved\n"
    ),
    "becomes root": "os.setuid(0)\n",
    "becomes another user": "os.setresuid(PARENT % 60000 + 1, -1, -1)\n",
    "gives itself capabilities": (
        "header = struct.pack('Ii', 0x20080522, 0)\ncall('capset', header, struct.pack('6I', *[0xffffffff] * 6))\n"
    ),
    "runs a program that gives privileges": (
        "import subprocess\nfor name in ('/usr/bin/su', '/usr/bin/mount', '/usr/bin/newgrp', '/usr/bin/passwd'):\n"
        "    if os.path.exists(name) and os.stat(name).st_mode & 0o4000:\n"
        "        said = subprocess.run(['/usr/bin/cat', '/proc/self/status'], capture_output=True).stdout\n"
        "        assert b'NoNewPrivs:\\t0' in said\n        break\nelse:\n    raise OSError\n"
    ),
    "changes the name of the machine": "socket.sethostname(MARK)\n",
    "changes the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())\n",
    "runs before all others": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\n",
    "raises its priority": "os.setpriority(os.PRIO_PROCESS, 0, -5)\n",
    "raises its limits": (
        "import resource\nfor what in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC):\n"
        "    resource.setrlimit(what, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
    ),
    "kills everything": "os.kill(-1, signal.SIGKILL)\nraise OSError\n",
    "kills its parents": "os.kill(os.getppid(), signal.SIGKILL)\nraise OSError\n",
    "forks without end": "while True:\n    os.fork()\n",
    "forks sleepers": (
        "made = 0\nfor _ in range(64):\n    if not os.fork():\n        time.sleep(30)\n        os._exit(0)\n"
        "    made += 1\n"
    ),
    "starts threads without end": (
        "for _ in range(200):\n    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()\n"
    ),
    "takes memory": "kept = [bytearray(1 << 20) for _ in range(1024)]\n",
    "takes memory by mapping": (
        "import mmap\nkept = []\nfor _ in range(1024):\n    one = mmap.mmap(-1, 1 << 20)\n    one.write(b'x' * (1 << 20))\n"
        "    kept.append(one)\n"
    ),
    "takes memory in several processes": (
        "children = []\nfor _ in range(5):\n    pid = os.fork()\n    if not pid:\n        kept = [bytearray(b'x' * (1 << 20)) for _ in range(150)]\n"
        "        time.sleep(2.5)\n        os._exit(0)\n    children.append(pid)\n"
        "for pid in children:\n    assert os.waitpid(pid, 0)[1] == 0\n"
    ),
    "takes memory in pipes": (
        "import fcntl\nkept = 0\nwhile kept < (64 << 20):\n    read, write = os.pipe()\n"
        "    fcntl.fcntl(write, 1031, 1 << 20)\n    kept += os.write(write, bytes(1 << 20))\n"
    ),
    "fills the disk": (
        "for n in range(256):\n    with open(f'f{n}', 'wb') as file:\n        file.write(bytes(1 << 20))\n"
    ),
    "fills the disk with one file": "with open('f', 'wb') as file:\n    file.write(bytes(200 << 20))\n",
    "makes files without end": (
        "for n in range(200_000):\n    open(f'f{n}', 'w').close()\n"
    ),
    "floods its output": "for _ in range(100_000):\n    print('x' * 1000)\n",
    "floods its errors": "for _ in range(100_000):\n    sys.stderr.write('x' * 1000)\n",
    "ignores all signals": (
        "for one in (signal.SIGXCPU, signal.SIGTERM, signal.SIGINT, signal.SIGALRM):\n    signal.signal(one, signal.SIG_IGN)\n"
        "while True:\n    pass\n"
    ),
    "sleeps": "time.sleep(3600)\n",
    "stops itself": "os.kill(os.getpid(), signal.SIGSTOP)\n",
    "leaves a process behind": (
        "if not os.fork():\n    os.setsid()\n    if not os.fork():\n"
        "        os.execv('/usr/bin/sleep', [MARK, '60'])\n    os._exit(0)\ntime.sleep(1)\nraise OSError\n"
    ),
}  # fmt: skip


class Attack(NamedTuple):
    """What came of all programs of a suite under one way of confinement.

    through: the outcomes of those that came to their end, by name. harmed: what was found harmed afterwards.
    """

    tried: int
    through: dict[str, Outcome]
    harmed: tuple[str, ...]
    seconds: float


def attack(mechanism: str, suite: dict[str, str]) -> Attack:
    """Runs a suite, with a harmless program after each, and looks at what became of the machine."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="mcbench-hostile-")))
        folder.chmod(0o777)
        (folder / "secret").write_text("secret")
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.setblocking(False)
        for address in (str(folder / "socket"), f"\0{MARK}"):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.bind(address)
            one.listen()
        facts = f"FOLDER, MARK, PORT = {str(folder)!r}, {MARK!r}, {server.getsockname()[1]}\n"
        programs = []
        for text in suite.values():
            start = f"{START}{facts}NUMBERS, PARENT = {NUMBERS!r}, {os.getpid()}\n"
            programs += [
                Program("", start + text, ""),
                Program("", "def double(x): return 2 * x\n", "assert double(4) == 8"),
            ]
        began = time.monotonic()
        found = run_programs(programs, cpu_seconds=1, wall_seconds=4, mechanism=mechanism)
        seconds = time.monotonic() - began
        harmed = [name for name, o in zip(suite, found[1::2], strict=True) if o.status != "passed"]
        try:
            server.accept()
            harmed.append("it was connected to")
        except BlockingIOError:
            pass
        harmed += [f"{path} is there" for path in (folder / "written", Path("/dev/shm", MARK)) if path.exists()]
        harmed += [f"{line!r} runs on" for line in _running() if line.startswith(MARK.encode())]
    through = {name: o for name, o in zip(suite, found[::2], strict=True) if o.status == "passed"}
    return Attack(len(suite), through, tuple(harmed), seconds)


def _running() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return found
