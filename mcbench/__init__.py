"""mcbench: what does compressing this Mixture-of-Experts model cost, and what does it buy?

    record = mcbench.run("pmq", bits=2.05)

The names below are imported when they are first used, so that `import mcbench` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcbench.allocation import BitAllocation as BitAllocation
    from mcbench.allocation import BitBudget as BitBudget
    from mcbench.calibration import CalibrationStats as CalibrationStats
    from mcbench.method import Method as Method
    from mcbench.model import MoEModel as MoEModel
    from mcbench.model import load_model as load_model
    from mcbench.pipeline import run as run
    from mcbench.policy import RoutingPolicy as RoutingPolicy
    from mcbench.profiling import profile as profile
    from mcbench.quantization import QuantizedTensor as QuantizedTensor
    from mcbench.record import Record as Record
    from mcbench.speed import Profile as Profile
    from mcbench.task import Task as Task
    from mcbench.versus import compare as compare

__version__ = "0.1.0"

_HOMES = {
    "BitAllocation": "mcbench.allocation",
    "BitBudget": "mcbench.allocation",
    "CalibrationStats": "mcbench.calibration",
    "Method": "mcbench.method",
    "MoEModel": "mcbench.model",
    "Profile": "mcbench.speed",
    "QuantizedTensor": "mcbench.quantization",
    "Record": "mcbench.record",
    "RoutingPolicy": "mcbench.policy",
    "Task": "mcbench.task",
    "compare": "mcbench.versus",
    "load_model": "mcbench.model",
    "profile": "mcbench.profiling",
    "run": "mcbench.pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mcbench' has no attribute {name!r}")
