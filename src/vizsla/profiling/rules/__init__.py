"""The rules by name. A family lies in a file; `choosing.py` makes rules from what people type."""

from __future__ import annotations

from vizsla.profiling.rules.base import ProfileRule
from vizsla.profiling.rules.bottlenecks import CPUBottleneck, IOBottleneck
from vizsla.profiling.rules.cores import CrowdedMachine, ThermalThrottle, ThreadOversubscription
from vizsla.profiling.rules.gains import FrozenWork, PrecisionUnused
from vizsla.profiling.rules.loading import Dataloader, DataStarved
from vizsla.profiling.rules.memory import GPUMemoryIncrease, MemoryLeak
from vizsla.profiling.rules.overall import OverallFrameworkMetrics, OverallSystemUsage
from vizsla.profiling.rules.start import MaxInitializationTime, SlowStart
from vizsla.profiling.rules.steps import StepOutlier
from vizsla.profiling.rules.usage import BatchSize, LoadBalancing, LowGPUUtilization

_ALL: tuple[type[ProfileRule], ...] = (
    BatchSize, CPUBottleneck, IOBottleneck, GPUMemoryIncrease, LowGPUUtilization, LoadBalancing,
    MaxInitializationTime, StepOutlier, Dataloader, OverallSystemUsage, OverallFrameworkMetrics,
    DataStarved, ThreadOversubscription, CrowdedMachine, MemoryLeak, SlowStart, ThermalThrottle,
    PrecisionUnused, FrozenWork,
)  # fmt: skip

RULES: dict[str, type[ProfileRule]] = {rule.name: rule for rule in _ALL}

# What is judged unless rules are named: all that find faults. Two give statistics alone.
DEFAULT_RULES: tuple[str, ...] = tuple(
    name for name in RULES if name not in (OverallSystemUsage.name, OverallFrameworkMetrics.name)
)

__all__ = ["DEFAULT_RULES", "RULES"]
