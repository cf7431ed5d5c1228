"""Calibration: what a run over some text tells about every expert, measured once and read by every method."""

from __future__ import annotations

from mcbench.stats import CalibrationStats

__all__ = ["CalibrationStats"]
