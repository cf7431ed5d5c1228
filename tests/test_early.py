"""What is missing or misspelt is refused before torch is imported, let alone a weight read."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from mcbench import inputs
from mcbench.cli import main
from mcbench.errors import BadInput, UnknownName
from mcbench.inputs import require_device
from mcbench.pipeline import run

# each is refused with exit code 2 and these words; "open" folders and files are made before
REFUSED = {
    "run --method pmq": "'pmq' needs a budget: --bits",
    "run --method mc": "'mc' needs a budget",
    "run --method pmq+otp": "needs a budget",
    "run --method ./absent.py --bits 2": "absent.py",
    "run --method pmp --bits 2": "did you mean 'pmq'?",
    "run --method none --bits 2": "takes no budget",
    "run --method none --save packed2": "nothing to save",
    "run --bits 2 --tasks mini-pika": "did you mean 'mini-piqa'?",
    "run --bits 2 --tasks zeroshot9": "did you mean 'zeroshot8'?",
    "run --bits 2 --tasks ./absent.py": "absent.py",
    "run --bits 2 --calibration absent.txt": "no calibration text at 'absent.txt'",
    "run --bits 2 --calibration full": "'full' is no calibration text; name a file",
    "run --bits 2 --data-dir absent": "no data folder at 'absent'",
    "run --bits 2 --model ./absent": "no model folder './absent'",
    "run --bits 2 --model full": "'full' is no model folder: it has no config.json",
    "run --bits 2 --model pakced": "did you mean 'packed'?",
    "run --bits 2 --model models/mixtral-8x7": "did you mean 'models/mixtral-8x7b'?",
    "run --bits 2 --model referense": "did you mean 'reference'?",
    "run --bits 2 --model 'a model'": "there is no model folder 'a model'",
    "run --bits 2 --model a/b/c": "there is no model folder 'a/b/c'",
    "run --bits 2 --model models/my-moe": "(the folder 'models' is there, but has no 'my-moe'), and HF_HUB",
    "run --bits 2 --model full/text.txt": "is a file",
    "run --bits 2 --save full": "holds something else",
    "run --bits 2 --save /": "no name for a new folder",
    "run --bits 2 --out full/text.txt": "the output folder 'full/text.txt' cannot be written",
    "run --bits 2 --device mps": "'mps' does not compute in float64",
    "run --bits 2 --device meta": "no weights to compress",
    "run --bits 2 --device warp": "there is no device 'warp'",
    "run --bits 2 --device cudda": "did you mean 'cuda'?",
    "run --bits 2 --device cuda:x": "a kind and a number from 0",
    "run --bits 2 --device cpu:3": "there is one device 'cpu'",
    "run --bits 2 --widths 5": "widths must be some of",
    "sweep --methods pmq": "needs budgets",
    "sweep absent.toml": "cannot be read",
    "sweep typo.toml": "no setting 'metods'; did you mean 'methods'?",
    "sweep dtype.toml": "there is no dtype 'float23'; did you mean 'float32'?",
    "sweep device.toml": "did you mean 'cuda'?",
    "sweep model.toml": "did you mean 'packed'?",
    "sweep model.toml --dry-run": "did you mean 'packed'?",
    "sweep --methods pmq --bits 2 --calibration absent.txt": "absent.txt",
    "sweep --methods pmq --bits 2 --data-dir absent": "no data folder",
    "profile --method pmq": "needs a budget",
    "profile --method pmp --bits 2": "did you mean 'pmq'?",
    "profile --model ./absent": "no model folder './absent'",
    "profile --device mps": "float64",
    "profile --calibration absent.txt": "absent.txt",
    "reproduce tabel7": "did you mean 'table7'?",
    "reproduce latency --model ./absent": "no model folder",
    "reproduce table7 --device cudda": "did you mean 'cuda'?",
    "compare absent absent": "no record or folder 'absent'",
    "leaderboard absent": "no record or folder 'absent'",
    "figure treadoff": "did you mean 'tradeoff'?",
    "figure tradeoff absent": "no record or folder 'absent'",
    "audit --table T99": "T99",
    "show pmp": "did you mean 'pmq'?",
    "check pmp": "did you mean 'pmq'?",
    "data check absent": "absent",
    "score absent.completions.jsonl": "absent.completions.jsonl",
}
TRIAL = """
import contextlib, io, json, sys
from mcbench.cli import main
found = {}
for line, words in json.load(sys.stdin).items():
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    heavy = sorted({"torch", "transformers", "lm_eval", "datasets"} & set(sys.modules))
    found[line] = [code, said.getvalue(), heavy]
    for name in [n for n in sys.modules if n.partition(".")[0] in heavy]:
        del sys.modules[name]  # so that each line answers for itself
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    """Exit code, message and heavy imports of each line, all in one process that has imported nothing yet."""
    here = tmp_path_factory.mktemp("early")
    for folder in ("full", "packed", "models/mixtral-8x7b"):
        (here / folder).mkdir(parents=True)
    (here / "full" / "text.txt").write_text("some text")
    (here / "typo.toml").write_text('metods = "pmq"\n')
    for name, value in {"dtype": "float23", "device": "cudda", "model": "pakced"}.items():
        (here / f"{name}.toml").write_text(f'methods = "pmq"\nbits = "2"\n{name} = "{value}"\n')
    asked = json.dumps({line: shlex.split(line) for line in REFUSED})
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRIAL],
        input=asked,
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not list(here.rglob("record.json"))
    found: dict[str, tuple[int, str, list[str]]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("line", REFUSED)
def test_a_refusal_imports_nothing_heavy(line: str, refusals: dict[str, tuple[int, str, list[str]]]) -> None:
    code, said, heavy = refusals[line]
    assert code == 2 and REFUSED[line] in said, said
    assert said.startswith("mcbench: ") and said.count("\n") == 1
    assert not heavy


def test_a_device_that_is_not_there_is_refused_before_the_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mcbench.pipeline.Bench.load", never)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["run", "--bits", "2", "--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "'cuda' cannot be used: this " in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert main(["run", "--bits", "2", "--device", "cuda:7", "--out", str(tmp_path)]) == 2
    assert "there is no 'cuda:7': this machine has 2, counted from cuda:0" in capsys.readouterr().err
    require_device("cuda:1")
    with pytest.raises(BadInput, match="device 'xpu' cannot be used here"):
        require_device("xpu")


def test_every_device_that_torch_knows_is_known() -> None:
    with pytest.raises(RuntimeError, match="Expected one of") as caught:
        torch.device("nowhere")
    listed = str(caught.value).partition("Expected one of ")[2].partition(" device type")[0]
    obsolete = {"mkldnn", "opengl", "opencl", "ideep", "hip", "ve", "fpga", "lazy"}
    assert set(listed.split(", ")) - obsolete <= set(inputs.DEVICES)


@pytest.fixture
def hub_there() -> Iterator[str]:
    """A hub on loopback that has one model, one that is gated and one without a config; its address."""
    answers = {"some/gated": (403, "GatedRepo"), "some/bare": (404, "EntryNotFound"), "some/model": (200, "")}

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            name = self.path.partition("/resolve/")[0].strip("/")
            status, code = answers.get(name, (404, "RepoNotFound"))
            self.send_response(status)
            for key, value in {"X-Error-Code": code, "X-Repo-Commit": "0" * 40, "ETag": "0" * 40}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", "2")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


ASK = """
import sys
from mcbench.errors import BadInput
from mcbench.inputs import require_model
for name in sys.argv[1:]:
    try:
        require_model(name)
        print("taken", file=sys.stderr)
    except BadInput as error:
        print(error, file=sys.stderr)
print("torch" in sys.modules)
"""


def asked(names: Sequence[str], folder: Path, **environment: str) -> tuple[list[str], float]:
    """What is said about names of models in a process that has another hub, and the seconds that it took."""
    around = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    around |= {"HF_HOME": str(folder / "home"), **environment}
    words = [sys.executable, "-c", ASK, *names]
    started = time.monotonic()
    done = subprocess.run(words, cwd=folder, env=around, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    return done.stderr.splitlines(), time.monotonic() - started


def test_a_name_that_only_the_hub_can_know_is_looked_for_there_and_this_is_said(tmp_path: Path, hub_there: str) -> None:
    names = ("some/model", "some/absent", "some/gated", "some/bare", "absent")
    said, _ = asked(names, tmp_path, HF_ENDPOINT=hub_there)
    assert said[:2] == [
        "mcbench: there is no folder 'some/model' here; the model of that name on the hub is taken",
        "taken",
    ]
    reasons = ["no model of that name", "those who have accepted its terms", "holds no config.json", "no model of that"]
    for name, line, reason in zip(names[1:], said[2:], reasons, strict=True):
        assert line.startswith(f"the model {name!r} cannot be loaded: there is no such folder, and ") and reason in line


def test_without_network_a_name_for_the_hub_is_refused_in_seconds_unless_it_was_downloaded(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        (said,), seconds = asked(["some/model"], tmp_path, HF_ENDPOINT=nobody)
        assert said.startswith(
            "the model 'some/model' cannot be loaded: there is no such folder, and the hub cannot be "
        )
        assert "127.0.0.1 gives no connection" in said and seconds < 10
        kept = tmp_path / "home" / "hub" / "models--some--model"
        (kept / "refs").mkdir(parents=True)
        (kept / "refs" / "main").write_text("0" * 40)
        (kept / "snapshots" / ("0" * 40)).mkdir(parents=True)
        (kept / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
        taken, _ = asked(["some/model"], tmp_path, HF_ENDPOINT=nobody)
        assert taken[0].endswith("; the model of that name in the Hugging Face cache is taken") and len(taken) == 2
    (said,), _ = asked(["other/model"], tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE keeps the hub away" in said


def test_a_dtype_is_checked_from_python_as_well(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="there is no dtype 'float8'"):
        run("pmq", bits=2.0, dtype="float8", out=tmp_path)
