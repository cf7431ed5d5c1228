"""What does going through the columns of many experts at once save, and how good are the codes?

    python benchmarks/quantization.py [--model reference] [--out FILE]

Time: GPTQ of eight expert matrices at 1, 2 and 3 bits in one call, against one call for each matrix and width, which is
what GPTQ implementations do; same process, codes compared bit by bit. Error: the layer error tr(dW H dW^T) on every
expert matrix of a model, each divided by round-to-nearest's on the same matrix, geometric mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from tabulate import tabulate
from torch import Tensor

from mcbench.composition import compose
from mcbench.gptq import layer_error
from mcbench.model import load_model
from mcbench.quantization import QuantizedTensor, round_to_nearest
from mcbench.store import ExpertStore
from mcbench.text import calibration_data

SHAPES = ((192, 128), (128, 192), (512, 512), (1024, 1024))
EXPERTS = 8
WIDTHS = (1, 2, 3)
METHODS = (
    "rtn",
    "rtn(search=False)",
    "hqq",
    "gptq(variant='mcmoe')",
    "gptq(act_order=False, rounds=1, refit=0)",
    "gptq(rounds=1, refit=0)",
    "gptq(rounds=1)",
    "gptq(act_order=False)",
    "gptq",
)


def main() -> None:
    """Prints both tables, and writes the same as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference", help="model whose experts are quantised (default reference)")
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file as well")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    tables = {"time": [timed(*shape) for shape in SHAPES], "error": errors(options.model)}
    for rows in tables.values():
        print(tabulate(rows, headers="keys", floatfmt=".3g"), end="\n\n")  # noqa: T201 - a script
    if options.out:
        options.out.write_text(json.dumps(tables | {"torch": torch.__version__}, indent=1) + "\n")


def timed(rows: int, columns: int) -> dict[str, Any]:
    """Median seconds of both ways through the same random experts."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(EXPERTS, rows, columns, generator=generator) / 20
    x = torch.randn(EXPERTS, 2 * columns, columns, generator=generator) * torch.rand(columns, generator=generator) ** 2
    hessian = x.mT @ x / columns
    gptq = quantizer("gptq")

    def alone(n: int, bits: int) -> QuantizedTensor:
        return gptq.quantize(weights[n : n + 1], (bits,), hessian[n : n + 1])[bits]

    batched, together = median_seconds(lambda: gptq.quantize(weights, WIDTHS, hessian))
    single, apart = median_seconds(lambda: {bits: [alone(n, bits) for n in range(EXPERTS)] for bits in WIDTHS})
    pairs = [(together[bits][n], apart[bits][n]) for bits in WIDTHS for n in range(EXPERTS)]
    return {
        "8 experts of": f"{rows} x {columns}",
        "one call (s)": batched,
        "24 calls (s)": single,
        "times faster": single / batched,
        "same bytes": all(
            torch.equal(t, theirs.tensors()[k]) for ours, theirs in pairs for k, t in ours.tensors().items()
        ),
    }


def errors(name: str) -> list[dict[str, Any]]:
    """For each method its layer error as a share of round-to-nearest's, at each width."""
    layers = expert_layers(name)
    plain = {
        (i, bits): error(w, h, round_to_nearest(w, bits)) for i, (w, h) in enumerate(layers) for bits in (*WIDTHS, 4)
    }
    rows = []
    for method in METHODS:
        logs: dict[int, list[Tensor]] = {bits: [] for bits in (*WIDTHS, 4)}
        for i, (weights, hessian) in enumerate(layers):
            for bits, codes in quantizer(method).quantize(weights, tuple(logs), hessian).items():
                logs[bits].append((error(weights, hessian, codes) / plain[i, bits]).log())
        ratios = {f"{bits} bits": float(torch.cat(ratio).mean().exp()) for bits, ratio in logs.items()}
        rows.append({"layer error / rtn": method, **ratios})
    return rows


def error(weights: Tensor, hessian: Tensor, codes: QuantizedTensor) -> Tensor:
    """The layer error of each matrix [N]."""
    return layer_error(weights, codes.dequantize(), hessian).sum(1)


def expert_layers(name: str) -> list[tuple[Tensor, Tensor]]:
    """Weights [E, out, in] and Hessians [E, in, in] of every layer's experts, as a quantiser gets them."""
    model = load_model(name)
    layers: list[tuple[Tensor, Tensor]] = []

    class Listens:
        needs_hessian: ClassVar[bool] = True

        def quantize(
            self, weights: Tensor, widths: Sequence[int], hessian: Tensor | None
        ) -> dict[int, QuantizedTensor]:
            assert hessian is not None
            if len(weights) > 1:  # a stack of experts, not an attention linear
                layers.append((weights, hessian))
            return {bits: round_to_nearest(weights, bits) for bits in widths}

    ExpertStore(model, calibration_data(model, None), Listens(), "listens", (2,)).prepare()
    return layers


def quantizer(method: str) -> Any:
    """The method of that string which owns `quantize`."""
    return compose(method).quantizer


def median_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Median time of five runs after one to warm up, or of as many as fit into ten seconds, and the result."""
    result = work()
    seconds: list[float] = []
    while len(seconds) < 5 and sum(seconds) < 10:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


if __name__ == "__main__":
    main()
