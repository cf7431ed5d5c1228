"""A sweep on Ray gives what a sweep in one process gives, whatever is lost on the way, and needs no Ray elsewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sealing import cells
from tiny import tiny_folder

from mcbench import ray_engine
from mcbench.catalogue import select_tasks
from mcbench.cli import main
from mcbench.errors import BadInput, NotInstalled
from mcbench.pipeline import Exam
from mcbench.ray_engine import (
    Fleet,
    Job,
    RayEngine,
    RayWorker,
    on_loopback,
    require_answer,
    require_files,
    require_outcome,
)
from mcbench.record import Record
from mcbench.store import ExpertStore
from mcbench.sweep import JOURNAL, Grid, Outcome, sweep
from mcbench.task import SampleFile

with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (pip install 'mcbench[ray]')"
)

MOST_SECONDS = 180  # of a test, on a busy machine

# kills the process that started it, once; in a worker of Ray that is its node
LOSES = '''
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcbench.allocation import cheapest
from mcbench.method import Method


@dataclass(frozen=True)
class Loses(Method):
    """Loses the node on which it runs, the first time."""

    def allocate(self, stats, budget):
        lost = Path(__file__).with_name("lost")
        if not lost.exists():
            lost.write_text(str(os.getppid()))
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        return cheapest(np.ones((*stats.token_count.shape, len(budget.widths))), budget)
'''

FAILS = '''
from dataclasses import dataclass
from pathlib import Path

from mcbench.method import Method


@dataclass(frozen=True)
class Fails(Method):
    """Fails, and notes each time that it was tried."""

    def allocate(self, stats, budget):
        with Path(__file__).with_name("tried").open("a") as file:
            file.write("once\\n")
        raise RuntimeError("no bits left")
'''


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("model")
    rng = random.Random(0)
    text = folder / "calibration.txt"
    text.write_text(" ".join(rng.choice(("red", "green", "blue", "seven", "of")) for _ in range(2000)))
    model = tiny_folder(folder / "tiny", max_position_embeddings=1024)
    tasks = "mini-perplexity,mini-piqa"
    return {"model": str(model), "calibration": str(text), "samples": 8, "length": 64, "tasks": tasks, "limit": 4}


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """No test of this file waits for a cluster for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError("the test took too long")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as a worker of one processor has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def comparable(record: Record) -> Record:
    """A record without what is about the moment and the machine."""
    results = tuple(dataclasses.replace(result, seconds=0.0) for result in record.results)
    return dataclasses.replace(record, stages={}, created="", results=results)


def contents(outcomes: tuple[Outcome, ...]) -> dict[str, tuple[str, Record | None, dict[str, bytes]]]:
    """Of each cell its state, its record and its samples."""
    return {
        o.cell: (
            o.state,
            comparable(Record.load(o.record)) if o.record else None,
            {path.name: path.read_bytes() for path in Path(o.record).parent.glob("*.jsonl")} if o.record else {},
        )
        for o in outcomes
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head that runs no cells, and two nodes that run one each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="ray is not installed (pip install 'mcbench[ray]')")
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", tempfile.gettempdir())  # Ray's sockets want a short path
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("nodes")))
        made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        for _ in range(2):
            made.add_node(num_cpus=1, object_store_memory=small["object_store_memory"])
    yield made
    made.shutdown()


@pytest.mark.usefixtures("one_thread")
def test_a_sweep_whose_node_is_killed_loses_nothing_and_counts_nothing_twice(
    settings: dict[str, Any], tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loses.py").write_text(LOSES)
    (tmp_path / "fails.py").write_text(FAILS)
    (tmp_path / "lost").touch()
    methods = ("none", "pmq", str(tmp_path / "loses.py"), str(tmp_path / "fails.py"), "uniform+rtn")
    grid = Grid(methods, expert_bits=(1.5, 2.0), **settings)
    usual = sweep(grid, out=tmp_path / "here")
    (tmp_path / "lost").unlink()
    (tmp_path / "tried").unlink()
    dismissed: list[int] = []
    original = Fleet._dismiss

    def counted(fleet: Fleet, gone: Sequence[Any]) -> None:
        dismissed.append(len(gone))
        original(fleet, gone)

    monkeypatch.setattr(Fleet, "_dismiss", counted)

    found = sweep(grid, out=tmp_path / "there", engine=RayEngine(cluster.address))
    raylets = {n.all_processes["raylet"][0].process for n in cluster.worker_nodes}
    (killed,) = [process.pid for process in raylets if process.poll() == -signal.SIGKILL]
    assert killed == int((tmp_path / "lost").read_text())
    assert dismissed[0] >= 1  # a call was lost with its worker

    assert contents(found) == contents(usual)
    assert [o.state for o in found].count("done") == 6 and [o.state for o in found].count("failed") == 2
    assert (tmp_path / "tried").read_text() == "once\n" * 2  # what fails by itself is not tried again
    assert {o.reason for o in found if o.state == "failed"} == {"RuntimeError: no bits left"}
    kept = cells(tmp_path / "there" / JOURNAL)
    assert len(kept) == len(found) == 1 + 2 * 4
    folders = [sorted(p.parent.name for p in (tmp_path / at).glob("*/record.json")) for at in ("here", "there")]
    assert folders[0] == folders[1]
    assert not list(tmp_path.glob("**/worker-*"))


@pytest.mark.parametrize(
    ("engine", "changes", "reason"),
    [
        ({"cpus": 3}, {}, "no node of the cluster has the 3 CPUs that a cell asks for"),
        ({"gpus": 1}, {}, "1 CPUs, 1 GPUs that a cell asks for"),
        ({"memory_gb": 1e5}, {}, "100000.0 GB of memory that a cell asks for"),
        ({}, {"device": "cuda"}, "give --gpus"),
    ],
)
def test_what_the_cluster_can_never_give_is_refused_at_once(
    settings: dict[str, Any], tmp_path: Path, cluster: Any, engine: Any, changes: Any, reason: str
) -> None:
    grid = Grid(("pmq",), expert_bits=(2.0,), **{**settings, **changes})
    started = time.monotonic()
    with pytest.raises(BadInput, match=reason):
        sweep(grid, out=tmp_path, engine=RayEngine(cluster.address, **engine))
    assert time.monotonic() - started < 30


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_sweep_that_loses_every_node_ends_and_keeps_what_it_has(
    settings: dict[str, Any], tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "NODE_SECONDS", 3.0)
    (tmp_path / "loses.py").write_text(LOSES.replace("if not lost.exists():", "if True:"))
    grid = Grid(("none", str(tmp_path / "loses.py")), expert_bits=(2.0,), **settings)
    with pytest.raises(BadInput, match="no node of the cluster has the 1 CPUs .* what was finished is kept"):
        sweep(grid, out=tmp_path / "runs", engine=RayEngine(cluster.address))
    (kept,) = cells(tmp_path / "runs" / JOURNAL)
    assert (kept["state"], kept["cell"]) == ("done", "none, seed 0")
    assert Record.load(tmp_path / "runs" / kept["record"]).method == "none"


@with_ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_sweep_on_this_machine_goes_on_with_either_engine(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    arguments = ["--methods", "none,pmq,fnorm", "--expert-bits", "1.5,1.75,2", "--quiet"]
    arguments += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    asked = [sys.executable, "-m", "mcbench", "sweep", *arguments, "--engine", "ray", "--out", str(tmp_path / "runs")]
    journal = tmp_path / "runs" / JOURNAL
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as going:
        while going.poll() is None and not (journal.is_file() and cells(journal)):
            time.sleep(0.01)
        going.send_signal(signal.SIGINT)
        shown, told = going.communicate()
    assert going.returncode == 130 and "the same command goes on from here" in told and not shown
    before = cells(journal)
    assert 1 <= len(before) < 7
    again = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert "7 done" in again.stdout and all(line.startswith("mcbench: ") for line in again.stderr.splitlines())
    after = cells(journal)
    assert len(after) == 7 and all(cell in after for cell in before)
    grid = Grid(("none", "pmq", "fnorm"), expert_bits=(1.5, 1.75, 2.0), **settings)
    assert contents(sweep(grid, out=tmp_path / "runs")) == contents(sweep(grid, out=tmp_path / "here"))


@pytest.mark.usefixtures("one_thread")
def test_workers_of_a_node_share_codes_and_the_answers_of_the_uncompressed_model(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "_ray", lambda: SimpleNamespace(get=lambda reference: reference))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    quantised: list[int] = []
    answered: list[int] = []
    quantise, append = ExpertStore._quantize_layer, SampleFile.append

    def quantising(store: ExpertStore, layer: int) -> Any:
        quantised.append(layer)
        return quantise(store, layer)

    def appending(file: SampleFile, rows: Any) -> None:
        answered.extend(rows)
        append(file, rows)

    monkeypatch.setattr(ExpertStore, "_quantize_layer", quantising)
    monkeypatch.setattr(SampleFile, "append", appending)
    grid = Grid(("pmq", "fnorm"), expert_bits=(2.0,), **settings)
    job = Job.of(grid, Exam(select_tasks(grid.tasks), tmp_path / "runs", grid.limit, False), shared=False)
    first, second = RayWorker(job, 1), RayWorker(job, 1)
    survey = first.survey()
    assert second.survey() == survey
    known = first.uncompressed({})
    assert {Path(name).suffix for name in known} == {".jsonl"} and len(known) == 2
    outcome, files = first.run(0, survey.keys[0], [known])
    assert outcome.state == "done" and outcome.record in files and len(files) == 3
    assert len(answered) == 2 * 2 * 4  # by two models, of two tasks, four items each
    outcome, files = second.run(1, survey.keys[1], [known])
    assert outcome.state == "done" and outcome.record in files and len(files) == 3
    assert sorted(quantised) == [0, 1, 2]
    assert len(answered) == 3 * 2 * 4
    with pytest.raises(BadInput, match="another model, method, task or calibration text"):
        second.run(1, survey.keys[0], [known])
    (root,) = tmp_path.glob("mcbench-*")
    first.leave(False)
    assert (root / "calibration").is_dir() and len(list(root.glob("worker-*"))) == 1
    second.leave(True)
    assert not root.exists()


def test_a_node_with_another_mcbench_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    grid = Grid(("pmq",), expert_bits=(2.0,), **settings)
    job = Job.of(grid, Exam(select_tasks(grid.tasks), tmp_path, None, False), shared=False)
    with pytest.raises(BadInput, match=r"has mcbench .*, the sweep was started by 0\.0\.0"):
        RayWorker(dataclasses.replace(job, version="0.0.0"), 1).survey()


@with_ray
@pytest.mark.parametrize("listens", [False, True])
def test_an_address_at_which_no_ray_answers_is_refused_in_seconds(
    listens: bool, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "ANSWER_SECONDS", 3.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        if listens:
            mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        started = time.monotonic()
        grid = Grid(("pmq",), expert_bits=(2.0,), **settings)
        with pytest.raises(BadInput, match="no Ray cluster" if listens else "nothing answers at the Ray address"):
            sweep(grid, out=tmp_path, engine=RayEngine(address))
        assert time.monotonic() - started < 10


@with_ray
def test_a_machine_whose_cluster_is_gone_is_told_so_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "ANSWER_SECONDS", 5.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(BadInput, match="this machine belongs to no Ray cluster"):
            require_answer("auto")


def test_a_running_cluster_answers(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    require_answer(cluster.address)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    require_answer("auto")


def test_workers_look_for_sets_where_the_grid_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCBENCH_DATA", "elsewhere")
    monkeypatch.chdir(tmp_path)
    exam = Exam((), tmp_path, None, False)
    found = [Job.of(Grid(("none",), data_dir=folder), exam, shared=True).data for folder in ("sets", "")]
    assert found == [str(tmp_path.resolve() / "sets"), "elsewhere"]


def test_room_is_counted_node_by_node() -> None:
    nodes = [{"CPU": 4.0, "memory": 8e9}, {"CPU": 2.0, "GPU": 2.0, "memory": 64e9}]
    assert ray_engine._room(nodes, {"CPU": 1.0}) == 6
    assert ray_engine._room(nodes, {"CPU": 3.0}) == 1
    assert ray_engine._room(nodes, {"CPU": 1.0, "GPU": 0.5}) == 2
    assert ray_engine._room(nodes, {"CPU": 1.0, "memory": 4e9}) == 4
    assert ray_engine._room([{"CPU": 16.0, "GPU": 1.0}], {"CPU": 1.0, "GPU": 0.1}) == 10
    assert ray_engine._room([{"CPU": 16.0, "GPU": 1.0}], {"CPU": 1.0, "GPU": 0.4}) == 2
    assert ray_engine._room(nodes, {"CPU": 8.0}) == ray_engine._room([], {"CPU": 1.0}) == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--engine", "ray", "--cpus", "0"], "the cpus must lie between 1 and 4,096, not"),
        (["--engine", "ray", "--gpus", "1.5"], "a whole number or a share of one"),
        (["--engine", "ray", "--gpus", "nan"], "the gpus must lie between"),
        (["--engine", "ray", "--memory", "-1"], "the memory in GB must lie between"),
        (["--engine", "ray", "--ray-address", "ray://head:10001"], "host:port"),
        (["--engine", "ray", "--ray-address", " "], "address is empty"),
        (["--cpus", "2"], "add --engine ray"),
        (["--ray-address", "head:6379"], "add --engine ray"),
    ],
)
def test_wrong_needs_and_addresses_are_refused_in_one_sentence(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "--methods", "pmq", "--bits", "2", *arguments, "--quiet"]) == 2
    told = capsys.readouterr()
    assert reason in told.err and told.err.count("\n") == 1 and not told.out


def test_without_ray_the_engine_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(NotInstalled, match=r"mcbench\[ray\]"):
        RayEngine()
    assert main(["sweep", "--methods", "pmq", "--bits", "2", "--engine", "ray", "--quiet"]) == 2
    assert "pip install 'mcbench[ray]'" in capsys.readouterr().err


def test_without_ray_the_usual_engine_sweeps(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (outcome,) = sweep(Grid(("uniform+rtn",), expert_bits=(2.0,), **settings), out=tmp_path)
    assert outcome.state == "done"


@with_ray
def test_ray_on_this_machine_listens_on_loopback_alone() -> None:
    psutil = pytest.importorskip("psutil", reason="psutil says which ports are open")
    ray = pytest.importorskip("ray")
    us = psutil.Process()

    def listening() -> set[tuple[str, int]]:
        processes = (us, *us.children(recursive=True))
        return {c.laddr for p in processes for c in p.net_connections() if c.status == "LISTEN"}

    before = listening()  # the cluster of other tests is made to be reached
    with on_loopback():
        RayEngine()._connect()
        try:
            opened = listening() - before
        finally:
            ray.shutdown()
    assert opened and {ip.removeprefix("::ffff:") for ip, _ in opened} == {"127.0.0.1"}


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../up.json", "a/../b.json", "a/b/c.json", "record.json", "a/.hidden.json", ".a/b.json", "a/b.py",
     "a/b.json/", "a\\..\\b/c.json", "a/\x00.json", "a/b\n.json", "", f"a/{'b' * 300}.json", 5],
)  # fmt: skip
def test_only_files_that_a_run_writes_are_taken_from_a_worker(name: Any, tmp_path: Path) -> None:
    fleet = Fleet(
        RayEngine(), Job.of(Grid(("none",)), Exam((), tmp_path, None, False), shared=False), tmp_path / "runs"
    )
    with pytest.raises(BadInput, match="a worker sent"):
        fleet._write({"run/record.json": b"{}", name: b"x"})
    assert not list(tmp_path.rglob("*.json"))
    fleet._write({"run 1/record.json": b"{}", "run 1/mini-piqa@1234abcd.pairs.json": b"{}"})
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_what_else_a_worker_may_not_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "LARGEST_FILE", 3)
    for files in (
        {"a/b.json": b"1234"},
        {"a/b.json": "text"},
        ["a/b.json"],
        {f"a/{n}.json": b"" for n in range(10_001)},
    ):
        with pytest.raises(BadInput, match="a worker sent"):
            require_files(files)
    done = Outcome("cell", "done", record="a/record.json")
    require_outcome(done, {"a/record.json": b""}, "cell")
    require_outcome(Outcome("cell", "failed", reason="it did"), {}, "cell")
    for wrong, files in (
        (dataclasses.replace(done, record="/etc/record.json"), {"a/record.json": b""}),
        (dataclasses.replace(done, record=""), {}),
        (dataclasses.replace(done, record="a/other.json"), {"a/other.json": b""}),
        (dataclasses.replace(done, cell="another"), {"a/record.json": b""}),
        ("done", {}),
    ):
        with pytest.raises(BadInput, match="a worker"):
            require_outcome(wrong, files, "cell")
