"""How much cheaper is the quantisation error from routed tokens than replaying every MoE block, and is it the same?

    python benchmarks/calibration.py

Replaying runs a whole block once for every expert and width, as the release of MC-MoE does. Both are timed in the same
process on the same inputs (median of three, after one run to warm up) and compared number by number.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from tabulate import tabulate
from transformers import AutoConfig, AutoModelForCausalLM

from mcbench.activations import Activations
from mcbench.calibration import calibrate
from mcbench.model import MoEModel
from mcbench.store import PROJECTIONS, MinMax
from mcbench.text import CalibrationData

WIDTHS = (1, 2, 3)
SHAPES = {  # experts, top-k, width of an expert: Mixtral's, then finer grained ones of about the same size
    "8 experts, top-2": (8, 2, 192),
    "32 experts, top-4": (32, 4, 64),
    "64 experts, top-6": (64, 6, 32),
}


def main() -> None:
    """Prints one row for each shape."""
    rows = []
    for label, (experts, top_k, inner) in SHAPES.items():
        model, data = random_model(experts, top_k, inner), random_text()
        inputs = Activations(model, data)
        inputs.layer(0)  # both start from the same recorded block inputs

        def routed(model: MoEModel = model, data: CalibrationData = data, inputs: Activations = inputs) -> np.ndarray:
            stats = calibrate(model, data, ["quantization_error:minmax"], widths=WIDTHS, activations=inputs)
            return stats.quantization_error("minmax")

        def replayed(model: MoEModel = model, inputs: Activations = inputs) -> np.ndarray:
            return np.stack([replay(model, inputs, layer) for layer in range(model.layers)])

        cheap, found = timed(routed)
        dear, wanted = timed(replayed)
        difference = float(np.abs(found / wanted - 1).max())
        rows.append([label, f"{cheap:.2f}", f"{dear:.2f}", f"{dear / cheap:.1f}x", f"{difference:.1e}"])
    print(tabulate(rows, ["shape", "routed tokens, s", "replay, s", "ratio", "largest relative difference"]))  # noqa: T201 - a script


def replay(model: MoEModel, inputs: Activations, layer: int) -> np.ndarray:
    """[E, W] norm of the change of the block's output, all experts of the block run again every time."""
    at = inputs.layer(layer)
    candidates = MinMax(model)
    errors = np.zeros((model.experts, len(WIDTHS)))
    with torch.no_grad():
        before = model.run_experts(layer, at.hidden, at.index, at.weight)
        for expert in range(model.experts):
            for column, width in enumerate(WIDTHS):
                changed = {(expert, p): candidates.dequantized(layer, expert, p, width) for p in PROJECTIONS}
                after = model.run_experts(layer, at.hidden, at.index, at.weight, changed)
                errors[expert, column] = (after - before).double().norm()
    return errors


def timed(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Median seconds of three calls after one, and what the call returns."""
    result = function()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), result


def random_model(experts: int, top_k: int, inner: int) -> MoEModel:
    """Two layers of a random Mixtral, 128 wide."""
    config = AutoConfig.for_model(
        "mixtral",
        vocab_size=512,
        hidden_size=128,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
    )
    torch.manual_seed(0)
    return MoEModel(AutoModelForCausalLM.from_config(config).eval(), None, "random")


def random_text() -> CalibrationData:
    """8,192 random tokens."""
    ids = torch.randint(3, 512, (32, 256), generator=torch.Generator().manual_seed(0))
    return CalibrationData(ids, torch.ones_like(ids), "random tokens")


if __name__ == "__main__":
    main()
