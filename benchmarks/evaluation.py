"""How much faster are the official evaluations than with lm-eval's own transformers backend, and are the answers equal?

    MCBENCH_DATA=DIR python benchmarks/evaluation.py --out benchmarks/results/evaluation.json

Both backends answer the same requests of lm-eval's own task definitions on the same model in the same process.
lm-eval's backend first tries every experts implementation, precision and batch size on a part of the requests, the
faster ones on all of them, and then runs with the fastest; ours tries both precisions and keeps its other defaults.
Then they take turns. Before each run, the kernels that torch keeps for shapes met before are pushed out: a user asks
each question once and meets most shapes for the first time, and which run of which backend would find its own was an
accident of their order. A time is the median of the repeats. Answers are compared in fp32. Processor time is
given too, for machines that do other work. Tokens are those that the model's forward calls were given, padding
included. Where texts are written, ours is also timed without drafts: how many come true depends on how much the texts
repeat themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import itertools
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tabulate import tabulate

from mcbench.catalogue import TASKS
from mcbench.evaluation import LanguageModel
from mcbench.harness import HarnessTask
from mcbench.harness_model import HarnessLM
from mcbench.items import RowItem
from mcbench.model import load_model
from mcbench.task import items_of

Way = tuple[str, str, int]  # experts, precision, batch size
K = TypeVar("K", bound=Hashable)

# how many rows of each task: enough for a stable time on two cores, and whole subjects where examples are shared
COUNTS = {
    "mmlu-5shot": 235,  # the first two subjects
    "gsm8k": 64,
    "gsm8k-fixed": 64,
    "piqa": 200,
    "arc-easy": 200,
    "arc-challenge": 200,
    "boolq": 100,
    "hellaswag": 200,
    "winogrande": 300,
    "mathqa": 200,
    "mmlu": 235,
    "wikitext2-word": 3,
}
PILOT = 0.15  # the share of the requests with which the fastest setting is found
HOPELESS = 3  # times slower than the best on one request
NEAR = 1.5  # times slower than the best on a part of the requests: those are tried on all
EXPERTS = ("eager", "batched_mm", "grouped_mm")
PRECISIONS = ("float32", "bfloat16")
PLAIN = "ours, no drafts"  # the name of our backend where it writes one token after another
BATCH_SIZES = (1, 4, 16, 64)


@dataclass(frozen=True)
class Run:
    """One backend on one task: seconds of each repeat by the clock and of the processor, tokens, settings."""

    seconds: list[float]
    processor_seconds: list[float]
    tokens: int
    setting: dict[str, Any]

    @property
    def median(self) -> float:
        """Seconds, of the middle repeat."""
        return statistics.median(self.seconds)

    @property
    def processor(self) -> float:
        """Processor seconds, of the middle repeat: what a busy machine hardly changes."""
        return statistics.median(self.processor_seconds)


def main() -> None:
    """Prints one row a task and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(COUNTS), help="by commas")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows of each task")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", default="reference")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    ours = Ours(options.model)
    theirs = Theirs(ours.exact.model, ours.exact.tokenizer, ours.exact.window)
    table, record = [], {}
    for name in options.tasks.split(","):
        count = max(2, round(COUNTS[name] * options.scale))
        requests = requests_of(name, count)
        setting = theirs.fastest(requests)
        precision = ours.fastest(requests, theirs.backend(setting))
        found = compare(ours, precision, theirs, setting, requests, options.repeats)
        record[name] = {"rows": count, "requests": len(requests), **found}
        new = [row(name, record[name])]
        if PLAIN in found:
            new.append(row(f"{name}, no drafts", {**record[name], "ours": found[PLAIN]}))
        print(tabulate(new), flush=True)  # noqa: T201 - a script
        table += new
    heads = ["task", "rows", "lm-eval, s", "ours, s", "ratio", "of processor time"]
    heads += ["its tokens", "ours", "ratio", "its setting", "ours", "apart"]
    print(tabulate(table, heads, tablefmt="github"))  # noqa: T201
    if options.out:
        about = {
            "model": options.model,
            "threads": torch.get_num_threads(),
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "repeats": options.repeats,
        }
        options.out.write_text(json.dumps({"about": about, "tasks": record}, indent=2) + "\n", encoding="utf-8")


def requests_of(name: str, count: int) -> list[Any]:
    """The requests of the first rows of a task."""
    task = TASKS.get(name)()
    assert isinstance(task, HarnessTask)
    items = [item for item in items_of(task)[:count] if isinstance(item, RowItem)]
    return [request for each in task._ask(items) for request in each.requests]


class Ours:
    """Our backend in both precisions, each with its own copy of the model."""

    def __init__(self, name: str) -> None:
        models = {precision: load_model(name, dtype=precision) for precision in PRECISIONS}
        self.backends = {precision: LanguageModel(moe.model, moe.tokenizer) for precision, moe in models.items()}

    @property
    def exact(self) -> LanguageModel:
        """The one in fp32."""
        return self.backends["float32"]

    def fastest(self, requests: Sequence[Any], other: Any) -> str:
        """The precision that answers all requests in the least time, by turns with the other backend."""
        backends: dict[str, Any] = {name: HarnessLM(lm) for name, lm in self.backends.items()}
        backends["other"] = other
        least = by_turns(list(backends), lambda name: timed(lambda: answers(backends[name], requests))[0])
        return min(self.backends, key=least.__getitem__)


def part_of(requests: Sequence[Any]) -> list[Any]:
    """Whole rows, spread over the task, so that lengths and repeated prompts are those of the task."""
    rows = [list(group) for _, group in itertools.groupby(requests, key=lambda request: request.metadata[1])]
    return [request for row in rows[:: max(1, round(1 / PILOT))] for request in row]


class Theirs:
    """lm-eval's own backend in every setting it may be fastest in; each precision has its own copy of the model."""

    def __init__(self, model: Any, tokenizer: Any, window: int) -> None:
        self.tokenizer, self.window = tokenizer, window
        self.models = {name: copy.deepcopy(model).to(getattr(torch, name)) for name in PRECISIONS}

    def backend(self, setting: dict[str, Any]) -> Any:
        """A backend of that setting."""
        from lm_eval.models.huggingface import HFLM

        model = self.models[setting["precision"]]
        model.set_experts_implementation(setting["experts"])
        return HFLM(
            pretrained=model, tokenizer=self.tokenizer, batch_size=setting["batch_size"], max_length=self.window
        )

    def fastest(self, requests: Sequence[Any]) -> dict[str, Any]:
        """The setting that answers the requests in the least time, of all that are not far slower on a part of them.

        Where a way is hopeless on a single request (`batched_mm` copies an expert's weights for every token), it is
        left out at once.
        """
        part = part_of(requests)
        ways = by_turns(list(itertools.product(EXPERTS, PRECISIONS, [1])), lambda way: self.seconds(way, part[:1]))
        hopeful = [way[:2] for way, taken in ways.items() if taken <= HOPELESS * min(ways.values())]
        tried = by_turns([(*way, size) for way in hopeful for size in BATCH_SIZES], lambda way: self.seconds(way, part))
        near = [way for way, taken in tried.items() if taken <= NEAR * min(tried.values())]
        taken = by_turns(near, lambda way: self.seconds(way, requests))
        return named(min(taken, key=taken.__getitem__))

    def seconds(self, way: Way, requests: Sequence[Any]) -> float:
        """How long a run takes; forever where the setting does not work."""
        try:
            backend = self.backend(named(way))
            return timed(lambda: answers(backend, requests))[0]
        except (RuntimeError, NotImplementedError, ValueError):
            return float("inf")


def named(way: Way) -> dict[str, Any]:
    """A setting of lm-eval's backend."""
    return dict(zip(("experts", "precision", "batch_size"), way, strict=True))


def by_turns(names: Sequence[K], seconds: Callable[[K], float]) -> dict[K, float]:
    """How long each takes: the better of two runs that have those of the others between them."""
    turns = [{name: seconds(name) for name in names} for _ in range(2)]
    return {name: min(turn[name] for turn in turns) for name in names}


def answers(backend: Any, requests: Sequence[Any]) -> list[Any]:
    """What a backend of lm-eval says to requests of one kind, without its progress bars."""
    with contextlib.redirect_stderr(io.StringIO()):
        found: list[Any] = getattr(backend, requests[0].request_type)(list(requests))
    return found


def compare(
    ours: Ours, precision: str, theirs: Theirs, setting: dict[str, Any], requests: Sequence[Any], repeats: int
) -> dict[str, Any]:
    """All backends in turn."""
    chosen = ours.backends[precision]
    settings = {"lm-eval": setting, "ours": chosen.settings()}
    backends = {"lm-eval": theirs.backend(setting), "ours": HarnessLM(chosen)}
    models = {"lm-eval": theirs.models[setting["precision"]], "ours": chosen.model}
    if requests[0].request_type == "generate_until":
        plain = LanguageModel(chosen.model, chosen.tokenizer, shortcuts=False)
        settings[PLAIN], backends[PLAIN], models[PLAIN] = plain.settings(), HarnessLM(plain), chosen.model
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    processor: dict[str, list[float]] = {name: [] for name in backends}
    tokens, said = {}, {}
    for turn in range(repeats + 1):  # the first warms up and is not counted
        for name in backends:
            with counted(models[name]) as count:
                taken, used, said[name] = timed(lambda name=name: answers(backends[name], requests))  # type: ignore[misc]
            tokens[name] = sum(count)
            if turn:
                seconds[name].append(taken)
                processor[name].append(used)
    if setting["precision"] != "float32":
        exact = theirs.backend({**setting, "precision": "float32"})
        said["lm-eval"] = answers(exact, requests)
    if precision != "float32":
        said["ours"] = answers(HarnessLM(ours.exact), requests)
    runs = {name: asdict(Run(seconds[name], processor[name], tokens[name], settings[name])) for name in backends}
    return {**runs, **difference(said["ours"], said["lm-eval"])}


def difference(ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, Any]:
    """How far our answers are from those of lm-eval's backend in fp32."""
    if isinstance(ours[0], str):
        return {"different_texts": sum(a != b for a, b in zip(ours, theirs, strict=True))}
    value = [a[0] if isinstance(a, tuple) else a for a in ours]
    other = [b[0] if isinstance(b, tuple) else b for b in theirs]
    return {"largest_difference_nats": max(abs(a - b) for a, b in zip(value, other, strict=True))}


def row(name: str, found: dict[str, Any]) -> list[Any]:
    """One line of the table."""
    theirs, ours = (Run(**found[key]) for key in ("lm-eval", "ours"))
    apart = found.get("largest_difference_nats")
    return [
        name,
        found["rows"],
        f"{theirs.median:.2f}",
        f"{ours.median:.2f}",
        f"{theirs.median / ours.median:.2f}x",
        f"{theirs.processor / ours.processor:.2f}x",
        theirs.tokens,
        ours.tokens,
        f"{theirs.tokens / ours.tokens:.2f}x",
        " ".join(map(str, theirs.setting.values())),
        ours.setting["dtype"],
        f"{apart:.1e} nats" if apart is not None else f"{found['different_texts']} texts",
    ]


@torch.inference_mode()
def forget_kernels() -> None:
    """Fills oneDNN's cache, which holds 1024 kernels, with others; others than those are not kept between calls."""
    weight = torch.zeros(8, 8, dtype=torch.bfloat16)
    for rows in range(1, 1200):
        torch.nn.functional.linear(torch.zeros(rows, 8, dtype=torch.bfloat16), weight)


def timed(function: Callable[[], list[Any]]) -> tuple[float, float, list[Any]]:
    """Seconds by the clock and of the processor, and what the call returns."""
    forget_kernels()
    started, used = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - started, time.process_time() - used, result


@contextlib.contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The tokens of each forward of the model inside the block."""
    tokens: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _module, arguments: tokens.append(arguments[0].numel())
    )
    try:
        yield tokens
    finally:
        hook.remove()


if __name__ == "__main__":
    main()
