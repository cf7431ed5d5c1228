"""Does pruning experts at run time save time, and does watching the attention stay within memory?

    python benchmarks/routing.py                 # time of a wide MoE model by the share skipped
    python benchmarks/routing.py --length 32768  # extra memory of attention received, on the reference architecture

Time: one forward pass of a Mixtral of one layer, wide enough for experts to dominate, under the router alone and under
a policy that skips a share; alternated in one process, median of the repeats. Rows are counted where experts compute.
Memory: the peak of a process that runs one forward pass under a policy that needs attention, beside that of a process
that runs it without.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

import torch
from tabulate import tabulate
from transformers import AutoConfig, AutoModelForCausalLM

from mcbench.composition import compose
from mcbench.experts import Experts
from mcbench.model import MoEModel
from mcbench.policy import fit
from mcbench.text import CalibrationData

SHARES = (0.0, 0.15, 0.25, 0.4, 0.5)
# the shape of the reference model's attention; its experts do not matter here
REFERENCE = {"hidden_size": 128, "intermediate_size": 224, "num_hidden_layers": 4, "num_attention_heads": 2}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--length", type=int, default=None, help="measure memory at this length instead")
    parser.add_argument("--policy", default=None, help="with --length: the policy of this process; for internal use")
    options = parser.parse_args()
    if options.policy is not None:
        print(json.dumps(one_pass(options.length, options.policy)))  # noqa: T201 - a script
    elif options.length is not None:
        print(memory(options.length))  # noqa: T201
    else:
        print(times(options))  # noqa: T201
    return 0


def times(options: Any) -> str:
    """A row for each share: what ran, and how long a pass took beside one under the router alone."""
    sizes = {"hidden_size": options.width, "intermediate_size": options.inner, "num_hidden_layers": 1}
    model = random_model(**sizes, num_attention_heads=8)
    ids = random_ids(8, options.tokens // 8)
    data = CalibrationData(ids, torch.ones_like(ids), "random tokens")
    policies = {}
    for share in SHARES:
        part = compose(f"none+naee(skip={share})").policy
        assert part is not None
        policies[share] = fit(str(part), part.method, model, data)
    seconds: dict[float | None, list[float]] = {share: [] for share in (None, *SHARES)}
    rows: dict[float | None, int] = {}
    for _ in range(options.repeats + 1):  # the first warms up
        for share in seconds:
            with ExitStack() as stack:
                if share is not None:
                    stack.enter_context(policies[share].applied(model))
                started = time.perf_counter()
                model.logits(ids)
                seconds[share].append(time.perf_counter() - started)
    for share in seconds:
        with ExitStack() as stack:
            if share is not None:
                stack.enter_context(policies[share].applied(model))
            rows[share] = counted_rows(model, ids)
    plain = statistics.median(seconds[None][1:])
    lines = []
    for share, found in seconds.items():
        median = statistics.median(found[1:])
        spread = f"{min(found[1:]):.2f} to {max(found[1:]):.2f}"
        label = "router alone" if share is None else f"{100 * share:g}"
        lines.append(
            [label, rows[share], f"{rows[share] / rows[None]:.3f}", f"{median:.2f}", spread, f"{median / plain:.3f}"]
        )
    heads = ["skipped, % asked", "expert rows", "of all", "seconds, median", "from to", "of the router alone"]
    return tabulate(lines, heads, tablefmt="github", disable_numparse=True)


def counted_rows(model: MoEModel, ids: torch.Tensor) -> int:
    """The rows that experts compute in one pass, counted where they do."""
    count, compute = 0, Experts.output

    def output(self: Experts, expert: int, hidden: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        nonlocal count
        count += len(hidden)
        return compute(self, expert, hidden, *rest, **options)

    Experts.output = output  # type: ignore[method-assign]
    try:
        model.logits(ids)
    finally:
        Experts.output = compute  # type: ignore[method-assign]
    return count


def memory(length: int) -> str:
    """Peak memory of a process with and without attention received."""
    found = {}
    for policy in ("none", "odp"):
        command = [sys.executable, __file__, "--length", str(length), "--policy", policy]
        found[policy] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603 - this file
    lines = [[name, f"{row['peak_mb']:.0f}", f"{row['seconds']:.1f}"] for name, row in found.items()]
    extra = found["odp"]["peak_mb"] - found["none"]["peak_mb"]
    text = tabulate(lines, [f"{length} tokens, policy", "peak MB", "seconds"], tablefmt="github", disable_numparse=True)
    return f"{text}\n\nextra: {extra:.0f} MB"


def one_pass(length: int, policy: str) -> dict[str, float]:
    """Peak memory in MB of this process, and the seconds of one pass over `length` tokens."""
    model = random_model(**REFERENCE, num_key_value_heads=1, head_dim=32, max_position_embeddings=length)
    ids = random_ids(1, length)
    with ExitStack() as stack:
        if policy != "none":
            part = compose(f"none+{policy}(quantile=0.5)").policy
            assert part is not None
            short = ids[:, :512]
            data = CalibrationData(short, torch.ones_like(short), "random tokens")
            stack.enter_context(fit(str(part), part.method, model, data).applied(model))
        started = time.perf_counter()
        model.logits(ids)
        seconds = time.perf_counter() - started
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "seconds": seconds}


def random_model(**sizes: Any) -> MoEModel:
    """A random Mixtral with 8 experts, top-2."""
    config = AutoConfig.for_model("mixtral", vocab_size=1046, num_local_experts=8, num_experts_per_tok=2, **sizes)
    torch.manual_seed(0)
    return MoEModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), None, "random Mixtral")


def random_ids(sequences: int, length: int) -> torch.Tensor:
    return torch.randint(0, 1046, (sequences, length), generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    sys.exit(main())
