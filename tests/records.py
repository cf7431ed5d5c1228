"""Small records for tests: `from records import sample_record`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mcbench.allocation import BitAllocation, WeightCount
from mcbench.record import Bits, Calibration, Environment, Model, Pairs, Part, Record, Result, Routing, Unpruned
from mcbench.task import Estimate

COUNT = WeightCount(layers=2, experts=4, per_expert=1000, attention=2000, shared=0, router=64, other=3000)


def sample_result(task: str = "mini-piqa", **changes: Any) -> Result:
    """A multiple-choice result: 60 of 100 right, the uncompressed model 70."""
    settings: dict[str, Any] = {
        "task": task,
        "counterpart": task.removeprefix("mini-"),
        "protocol": f"{task}@0123abcd",
        "metric": "acc",
        "higher_is_better": True,
        "value": 0.6,
        "n": 100,
        "k": 60,
        "standard_error": 0.049,
        "chance": 0.5,
        "baseline": 0.7,
        "difference": -0.1,
        "difference_error": 0.03,
        "lost": 12,
        "gained": 2,
        "partial": False,
        "skipped": "",
        "truncated": 0,
        "seconds": 1.5,
        "samples": f"{task}.jsonl",
        "also": {"acc_norm": Estimate(0.62, 100, 0.0488, 62)},
    }
    return Result(**{**settings, **changes})


def sample_perplexity(**changes: Any) -> Result:
    """Perplexity 7.5, that of the uncompressed model 6."""
    settings: dict[str, Any] = {
        "metric": "perplexity",
        "higher_is_better": False,
        "value": 7.5,
        "n": 40,
        "k": None,
        "standard_error": 0.3,
        "chance": None,
        "baseline": 6.0,
        "difference": 1.5,
        "difference_error": 0.1,
        "lost": None,
        "gained": None,
        "also": {},
    }
    return sample_result("mini-perplexity", **{**settings, **changes})


def sample_record(**changes: Any) -> Record:
    """A run of PMQ on a model of 2 layers and 4 experts; `changes` are fields of the record."""
    widths = np.array([[1, 2, 3, 2], [2, 1, 2, 3]])  # [L, E]
    settings: dict[str, Any] = {
        "method": "pmq+gptq",
        "asked": "pmq",
        "parts": (
            Part("pmq", ("allocate",), {"alpha": 1.0, "beta": 1.5}),
            Part("gptq", ("quantize",), {"group_size": 128}),
        ),
        "model": Model("reference", "a" * 64, "MixtralForCausalLM", 2, 4, 2, COUNT),
        "bits": Bits(2.4, "label", 2.0, 2.4, 5.69, 6.1, {"experts": 2600, "attention": 1100, "other": 6200}),
        "allocation": BitAllocation(widths),
        "results": (sample_perplexity(), sample_result()),
        "environment": Environment(
            {"python": "3.11.7", "torch": "2.13.0"}, "Linux", "a processor", 2, 2**33, "cpu", "float32"
        ),
        "calibration": Calibration("reference world", "c" * 64, 32, 512, 16384, 0, "d" * 64),
        "baseline": "b" * 64,
        "fingerprint": "e" * 64,
        "stages": {"load": 1.0, "calibrate": 12.5, "quantise": 20.0, "evaluate": 41.0},
        "command": ("mcbench", "run"),
        "created": "2026-01-02T03:04:05+00:00",
    }
    return Record(**{**settings, **changes})


def with_routing(record: Record, **changes: Any) -> Record:
    """The same run under a routing policy that skips a sixth in prefill and a fourth in decode."""
    settings: dict[str, Any] = {
        "policy": "odp(skip=0.15)",
        "key": "f" * 64,
        "causal": False,
        "prefix_cacheable": False,
        "layers": (0, 1),
        "facts": {"quantile": 0.31, "skipped": 0.15, "rounds": 2},
        "tables": {"threshold": [["-inf", 0.4], ["-inf", 0.5]]},
        "provenance": {"data": "c" * 64, "tokens": 16384},
        "prefill": Pairs(600, (1200, 1200), (1000, 1000), (12, 12)),
        "decode": Pairs(40, (80, 80), (50, 70), (0, 0)),
        "active_bytes_per_token": 1500.0,
        "router_bytes_per_token": 1800.0,
        "unpruned": (Unpruned("mini-perplexity", 7.1, 0.4, 0.05), Unpruned("mini-piqa", 0.61, -0.01, 0.02)),
    }
    return dataclasses.replace(record, routing=Routing(**{**settings, **changes}))


def with_bits(record: Record, **changes: Any) -> Record:
    """The same run at other bits."""
    return dataclasses.replace(record, bits=dataclasses.replace(record.bits, **changes))
