"""Runs the cells of a sweep on a Ray cluster: this machine's processors, or many machines.

Workers are Ray actors with declared needs; each keeps one model loaded and is asked for one cell after another. They
send records and samples back as bytes, and this process alone writes the output folder and the journal, so machines
need not share a disk and a cell that ran twice counts once. What a worker or a node was doing when it was lost is asked
of another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcbench import __version__, interrupts
from mcbench.bounds import require_settings, shown
from mcbench.datasets import FOLDER_VARIABLE
from mcbench.errors import BadInput, CheckFailed, NotInstalled, UnknownName
from mcbench.files import write_whole
from mcbench.locks import alone, in_turn
from mcbench.pipeline import UNCOMPRESSED, Exam
from mcbench.progress import muted
from mcbench.record import FILE_NAME
from mcbench.sweep import Grid, Outcome, Survey, Workplace

SHARES = 10_000  # of one CPU, GPU or byte: the finest that Ray tells apart
TRIES = 4  # of a cell whose worker or node is lost; what fails by itself is not tried again
ANSWER_SECONDS = 20.0  # for a cluster to say that it is there
NODE_SECONDS = 120.0  # for a node with enough resources to come back where the last one was lost
LOOK_SECONDS = 1.0  # between two looks at which nodes are alive
LEAVE_SECONDS = 10.0  # for idle workers to clean up
LOOPBACK = "127.0.0.1"
CLUSTERS_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # Ray's own; it holds on every system
STORE_BYTES = 256 * 2**20  # of Ray's object store on this machine: records and samples pass through it, weights do not

LARGEST_FILE = 2**31  # bytes of one file that comes back
MOST_FILES = 10_000
# what a run writes: one folder, one file in it; neither hidden nor a way up
_NAME = r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,250}"
_FILE = re.compile(rf"{_NAME}/{_NAME}\.jsonl?")

Files = Mapping[str, bytes]  # by path under an output folder


@dataclass(frozen=True)
class RayEngine:
    """Cells of a sweep on a Ray cluster.

    address: "host:port" of a cluster that runs, "auto" for the one that this machine belongs to; empty starts one on
    this machine for as long as the sweep takes. cpus, gpus, memory_gb: what Ray sets aside for each worker, and with it
    for the cell that it runs; cpus is the number of its threads as well, and 0 GB (of 10^9 bytes) leave memory alone.
    Raises NotInstalled where Ray is absent, BadInput for needs that cannot be.
    """

    address: str = ""
    cpus: int = 1
    gpus: float = 0.0
    memory_gb: float = 0.0

    def __post_init__(self) -> None:
        require_settings(cpus=self.cpus, gpus=self.gpus, memory_gb=self.memory_gb)
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise BadInput(f"gpus are a whole number or a share of one, not {self.gpus:g}")
        if self.address and self.address != "auto":
            host_and_port(self.address)
        _ray()

    @property
    def needs(self) -> dict[str, float]:
        """What a worker takes of each of Ray's resources."""
        asked = {"CPU": float(self.cpus), "GPU": self.gpus, "memory": self.memory_gb * 1e9}
        return {name: amount for name, amount in asked.items() if amount}

    @contextmanager
    def start(self, grid: Grid, exam: Exam) -> Iterator[Fleet]:
        """Connects, and leaves the cluster as it was; BadInput where it does not answer or no node has enough."""
        ray = _ray()
        if grid.device.startswith("cuda") and not self.gpus:
            raise BadInput(f"Ray hides the GPUs from who asks for none: give --gpus with --device {grid.device}")
        if ray.is_initialized():
            raise BadInput("this process is connected to Ray already; call ray.shutdown() first")
        with ExitStack() as stack:
            if not self.address:
                stack.enter_context(on_loopback())
            stack.callback(ray.shutdown)
            self._connect()
            if not (nodes := _nodes()):
                raise BadInput("the cluster has no node")
            if not _room(nodes, self.needs):
                raise BadInput(_too_much(nodes, self.needs))
            fleet = Fleet(self, Job.of(grid, exam, shared=not self.address), exam.out)
            stack.callback(fleet.leave)
            yield fleet
            fleet.finished = True

    def _connect(self) -> None:
        ray = _ray()
        if self.address:
            require_answer(self.address)
        usual: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not self.address:
            usual |= {"_node_ip_address": LOOPBACK, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        try:
            with interrupts.kept():
                ray.init(address=self.address or "local", **usual)
        except (Exception, SystemExit) as error:  # Ray ends the process where it meets no cluster
            reason = " ".join(str(error).split())
            raise BadInput(f"Ray at {self.address or 'this machine'} cannot be used: {reason}") from error


@dataclass(frozen=True)
class Job:
    """All that a worker has to know, in plain values."""

    grid: Grid
    exam: Exam
    name: str  # the same for each sweep into the same folder
    folder: str
    data: str
    version: str

    @classmethod
    def of(cls, grid: Grid, exam: Exam, *, shared: bool) -> Job:
        """shared: workers keep what calibration gives in the output folder, for it is on their own machine."""
        place = exam.out.resolve()
        name = hashlib.sha256(f"{socket.gethostname()} {place}".encode()).hexdigest()[:12]
        kept = place / "calibration" if shared else None
        plain = dataclasses.replace(exam, tasks=(), shared=kept)  # tasks may come from files: workers read them anew
        data = str(Path(grid.data_dir).resolve()) if grid.data_dir else os.environ.get(FOLDER_VARIABLE, "")
        return cls(grid, plain, name, str(Path.cwd()), data, __version__)


class RayWorker:
    """One process on a node: a model, and a folder of its own in which runs are made before they are sent."""

    def __init__(self, job: Job, threads: int) -> None:
        self.job, self.threads, self.where = job, threads, socket.gethostname()
        self._open = ExitStack()
        self._place: Workplace | None = None
        self._root = self._out = Path()
        self._knows = False  # what the uncompressed model answers

    def ready(self) -> None:
        """Answers when the model is loaded; raises BadInput where it cannot be."""
        self._workplace()

    def survey(self) -> Survey:
        """What every cell depends on, as this node sees it."""
        return self._workplace().survey()

    def uncompressed(self, known: Files) -> Files:
        """What the uncompressed model answers; `known` are samples that were made before."""
        place = self._workplace()
        self._take(known)
        self._knows = True
        with contextlib.suppress(Exception):  # every cell meets it again and says so
            place.bench.baseline()
        return self._changed({})

    def run(self, place: int, key: str, known: Sequence[Any]) -> tuple[Outcome, Files]:
        """One cell and the files that it made; `known` holds a reference to the answers of the uncompressed model.

        Raises BadInput where the cell would not be what the sweep began with.
        """
        here = self._workplace()
        if here.key(place) != key:
            raise BadInput(
                f"node {self.where} has another model, method, task or calibration text than the one the sweep began "
                "on; give all nodes the same files"
            )
        if not self._knows:
            self._take(_ray().get(known[0]))
            self._knows = True
        before = self._stamps()
        ((_, outcome),) = here.run([place])
        if outcome.record:
            record = str(Path(outcome.record).relative_to(self._out))
            outcome = dataclasses.replace(outcome, record=record)
        return outcome, self._changed(before)

    def leave(self, finished: bool) -> None:
        """Removes this worker's folder, and all that the sweep kept on this node where it is finished."""
        self._open.close()
        if self._place is not None:
            shutil.rmtree(self._root if finished else self._out, ignore_errors=True)

    # -- the workplace

    def _workplace(self) -> Workplace:
        """The model, loaded when it is first needed: what is wrong with it is told then, and no worker dies of it."""
        if self._place is not None:
            return self._place
        import torch

        from mcbench.catalogue import select_tasks
        from mcbench.composition import defaults

        job = self.job
        if job.version != __version__:
            raise BadInput(f"node {self.where} has mcbench {__version__}, the sweep was started by {job.version}")
        torch.set_num_threads(self.threads)
        if Path(job.folder).is_dir():
            os.chdir(job.folder)  # so that relative paths are those of the shell
        if job.data:
            os.environ[FOLDER_VARIABLE] = job.data
        self._root = _own_folder(f"mcbench-{os.getuid()}-{job.name}")
        with in_turn(self._root / ".lock"):
            _remove_abandoned(self._root)
            self._out = Path(tempfile.mkdtemp(prefix="worker-", dir=self._root))
            self._open.enter_context(alone(self._out))
        self._open.enter_context(muted())
        shared = job.exam.shared or self._root / "calibration"
        tasks = select_tasks(job.grid.tasks or defaults()["tasks"])
        self._place = Workplace(job.grid, dataclasses.replace(job.exam, tasks=tasks, out=self._out, shared=shared))
        return self._place

    # -- files

    def _take(self, files: Files) -> None:
        for name, content in files.items():
            write_whole(self._out / name, content)

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """When each file of the runs was last written, and its size."""
        found = {}
        for path in self._out.glob("*/*"):
            if path.name.startswith(".") or not path.is_file():
                continue
            state = path.stat()
            found[str(path.relative_to(self._out))] = (state.st_mtime_ns, state.st_size)
        return found

    def _changed(self, before: Mapping[str, tuple[int, int]]) -> Files:
        changed = [name for name, stamp in self._stamps().items() if before.get(name) != stamp]
        return {name: (self._out / name).read_bytes() for name in changed}


@dataclass(frozen=True)
class _Call:
    """What is asked of a worker."""

    place: int
    method: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class _Lost:
    """A call that took every worker with it that it was given to, or raised what it should not."""

    reason: str


class Fleet:
    """The workers of a sweep, as many as the cluster has room for."""

    def __init__(self, engine: RayEngine, job: Job, out: Path) -> None:
        self.engine, self.job, self.out = engine, job, out
        self.finished = False
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, _Call | None]] = {}  # by the awaited answer; None: the model is being loaded
        self._survey: Survey | None = None
        self._looked, self._had_room, self._room = float("-inf"), time.monotonic(), 0

    def survey(self) -> Survey:
        """The cells as the first worker sees them; later ones must see the same."""
        ((_, answer),) = self._answers([_Call(0, "survey")])
        if isinstance(answer, _Lost):
            raise BadInput(f"no worker could load the model: {answer.reason}")
        assert isinstance(answer, Survey)
        self._survey = answer
        return answer

    def run(self, places: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
        """Runs the cells wherever there is room, and yields each as it comes back."""
        assert self._survey is not None
        if not places:
            return
        known = [_ray().put(self._uncompressed())]
        asked = [_Call(place, "run", (place, self._survey.keys[place], known)) for place in places]
        for place, answer in self._answers(asked):
            if isinstance(answer, _Lost):
                yield place, Outcome(self._survey.planned[place].cell, "failed", reason=answer.reason)
                continue
            outcome, files = answer
            require_files(files)
            require_outcome(outcome, files, self._survey.planned[place].cell)
            self._write(files)
            record = str(self.out / outcome.record) if outcome.record else ""
            yield place, dataclasses.replace(outcome, record=record)

    def leave(self) -> None:
        """Ends every worker; idle ones clean up."""
        ray = _ray()
        with contextlib.suppress(ray.exceptions.RayError):
            if left := [worker.leave.remote(self.finished) for worker in self._idle]:
                ray.wait(left, num_returns=len(left), timeout=LEAVE_SECONDS)
        self._dismiss([*self._idle, *(worker for worker, _ in self._busy.values())])

    def _uncompressed(self) -> Files:
        """The samples of the uncompressed model, evaluated once; those of an earlier sweep are used."""
        kept = {
            str(path.relative_to(self.out)): path.read_bytes()
            for path in sorted(self.out.glob(f"*-{UNCOMPRESSED}-*/*"))
            if path.is_file() and path.name != FILE_NAME
        }
        ((_, answer),) = self._answers([_Call(0, "uncompressed", (kept,))])
        if isinstance(answer, _Lost):
            raise BadInput(f"the uncompressed model could not be evaluated: {answer.reason}")
        files: Files = answer
        self._write(files)
        return files

    def _write(self, files: Files) -> None:
        """Records after the samples that they name; BadInput for what no worker of ours sends."""
        require_files(files)
        for name in sorted(files, key=lambda name: (Path(name).name == FILE_NAME, name)):
            write_whole(self.out / name, files[name])

    def _answers(self, calls: Sequence[_Call]) -> Iterator[tuple[int, Any]]:
        """The answer to each call, once, in the order in which they come."""
        ray = _ray()
        waiting, losses = deque(calls), dict.fromkeys((call.place for call in calls), 0)
        stillborn = 0
        while waiting or any(call for _, call in self._busy.values()):
            room = self._look()
            while waiting and self._idle:
                self._ask(self._idle.pop(), waiting.popleft())
            loading = sum(call is None for _, call in self._busy.values())
            for _ in range(min(len(waiting) - loading, room - len(self._busy))):
                self._ask(self._hire(), None)
            if not self._busy:
                time.sleep(LOOK_SECONDS)
                continue
            answered, _ = ray.wait(list(self._busy), num_returns=1, timeout=LOOK_SECONDS)
            for reference in answered:
                worker, call = self._busy.pop(reference)
                try:
                    answer = ray.get(reference)
                except ray.exceptions.RayTaskError as error:  # its own fault, so another try would end the same way
                    self._idle.append(worker)
                    reason = f"{type(error.cause).__name__}: {error.cause}"
                    if isinstance(error.cause, BadInput | UnknownName | CheckFailed):
                        raise error.cause from None
                    if call is None:
                        raise BadInput(f"a worker could not load the model: {reason}") from None
                    yield call.place, _Lost(reason)
                except ray.exceptions.RayError as error:  # the worker or its node is gone
                    self._dismiss([worker, *self._idle])  # idle ones may have been on that node
                    self._idle.clear()
                    reason = f"its worker was lost {TRIES} times; {type(error).__name__}: {_gist(error)}"
                    if call is None:
                        stillborn += 1
                        if stillborn >= TRIES:
                            raise BadInput(f"workers do not start on the cluster: {_gist(error)}") from None
                        continue
                    losses[call.place] += 1
                    if losses[call.place] < TRIES:
                        waiting.appendleft(call)
                    else:
                        yield call.place, _Lost(reason)
                else:
                    stillborn = 0
                    self._idle.append(worker)
                    if call is not None:
                        yield call.place, answer

    def _ask(self, worker: Any, call: _Call | None) -> None:
        answer = worker.ready.remote() if call is None else getattr(worker, call.method).remote(*call.arguments)
        self._busy[answer] = worker, call

    def _look(self) -> int:
        """How many workers the nodes that are alive hold; BadInput where there has been room for none too long."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            nodes = _nodes()
            self._looked, self._room = now, _room(nodes, self.engine.needs)
            self._had_room = now if self._room else self._had_room
            if now - self._had_room > NODE_SECONDS:
                raise BadInput(f"{_too_much(nodes, self.engine.needs)}; what was finished is kept")
        return self._room

    def _dismiss(self, workers: Sequence[Any]) -> None:
        for worker in workers:
            with contextlib.suppress(_ray().exceptions.RayError):
                _ray().kill(worker)

    def _hire(self) -> Any:
        ray, engine = _ray(), self.engine
        options: dict[str, Any] = {"num_cpus": engine.cpus, "num_gpus": engine.gpus, "max_restarts": 0}
        if engine.memory_gb:
            options["memory"] = int(engine.memory_gb * 1e9)
        return ray.remote(RayWorker).options(**options).remote(self.job, engine.cpus)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Ray that is started inside listens on this machine alone, so that nobody else can reach what it runs.

    Ray replaces a loopback address by that of the network, except where clusters are switched off.
    """
    from ray._private import ray_constants

    before, allowed = os.environ.get(CLUSTERS_VARIABLE), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[CLUSTERS_VARIABLE], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = allowed
        os.environ.pop(CLUSTERS_VARIABLE)
        if before is not None:
            os.environ[CLUSTERS_VARIABLE] = before


def require_files(files: object) -> None:
    """Raises BadInput unless these are files of runs by name: a folder, a file in it, nothing above or beside them."""
    if not isinstance(files, Mapping) or len(files) > MOST_FILES:
        raise BadInput("a worker sent something else than the files of a run; give all nodes the same mcbench")
    for name, content in files.items():
        if not isinstance(name, str) or not isinstance(content, bytes) or not _FILE.fullmatch(name):
            raise BadInput(f"a worker sent a file {shown(name)}, which no run writes; give all nodes the same mcbench")
        if len(content) > LARGEST_FILE:
            raise BadInput(f"a worker sent {shown(name)} with {len(content):,} bytes; {LARGEST_FILE:,} are the most")


def require_outcome(outcome: object, files: Files, cell: str) -> None:
    """Raises BadInput unless the outcome is of that cell, and names a record among the files that came with it."""
    if not isinstance(outcome, Outcome) or outcome.cell != cell or outcome.state not in ("done", "failed"):
        raise BadInput(f"a worker answered for another cell than {cell}; give all nodes the same mcbench")
    if outcome.state == "done" and (Path(outcome.record).name != FILE_NAME or outcome.record not in files):
        raise BadInput(f"a worker sent no record of {cell}; give all nodes the same mcbench")


def host_and_port(address: str) -> tuple[str, int]:
    """The two halves of an address; BadInput where it is none."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise BadInput(f"a Ray address is host:port of the cluster's head, such as 10.0.0.1:6379, not {address!r}")
    return host, int(port)


def require_answer(address: str) -> None:
    """BadInput within seconds where no Ray cluster answers there; Ray itself would try for minutes."""
    if address != "auto":
        try:
            socket.create_connection(host_and_port(address), timeout=ANSWER_SECONDS).close()
        except OSError as error:
            raise BadInput(f"nothing answers at the Ray address {address!r}: {error.strerror or error}") from None
    asked = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        healthy = not subprocess.run(asked, capture_output=True, timeout=ANSWER_SECONDS, check=False).returncode  # noqa: S603
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        where = "this machine belongs to" if address == "auto" else f"what answers at {address!r} is"
        raise BadInput(f"{where} no Ray cluster, or not a healthy one; `ray start --head` starts one")


def _ray() -> Any:
    """The package, quiet and sending nothing home; NotInstalled where it is absent."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a note about the future on every start
    try:
        import ray
    except ImportError as error:
        raise NotInstalled(f"--engine ray needs the package 'ray': pip install 'mcbench[ray]' ({error})") from error
    return ray


def _nodes() -> list[dict[str, Any]]:
    """What each node that is alive has in all."""
    return [dict(node["Resources"]) for node in _ray().nodes() if node["Alive"]]


def _room(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """How many workers the nodes hold together, counted in whole shares as Ray counts."""

    def shares(amount: float) -> int:
        return round(amount * SHARES)

    return sum(
        min(shares(node.get(name, 0.0)) // max(1, shares(need)) for name, need in needs.items()) for node in nodes
    )


def _too_much(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> str:
    def words(amounts: Mapping[str, float]) -> str:
        written = {"CPU": "{:g} CPUs", "GPU": "{:g} GPUs", "memory": "{:.1f} GB of memory"}
        return ", ".join(
            written[name].format(amounts.get(name, 0.0) / (1e9 if name == "memory" else 1)) for name in needs
        )

    held = "; ".join(dict.fromkeys(words(node) for node in nodes)) or "none"
    return f"no node of the cluster has the {words(needs)} that a cell asks for (nodes have: {held})"


def _gist(error: Exception) -> str:
    """The first and the last line of one of Ray's messages, which are long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))


def _own_folder(name: str) -> Path:
    """A folder for temporary files that nobody else can have put there."""
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise BadInput(f"{str(folder)!r} belongs to somebody else; remove it or set TMPDIR")
    return folder


def _remove_abandoned(root: Path) -> None:
    """Removes the folders of workers that were killed: nobody holds their lock."""
    for folder in root.glob("worker-*"):
        with contextlib.suppress(BadInput), alone(folder):
            shutil.rmtree(folder, ignore_errors=True)
