"""The energy that a run used, measured where it can be, and what its machine cost.

Graphics cards tell their power by NVML, processors and memory by RAPL where the system lets it be
read. Elsewhere processors and memory are estimated with the published coefficients of Cloud Carbon
Footprint (https://www.cloudcarbonfootprint.org/docs/methodology/, appendix I, AWS): 0.74 W for a
core at rest to 3.5 W for a busy one, a straight line between, and 0.000392 kWh for each GB of
memory and hour. They are averages over servers' processors: right to a factor of two or so on a
server, and less for a laptop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vizsla.profiling.recorded import Profile
from vizsla.profiling.samples import Floats, Samples

_IDLE_W, _BUSY_W = 0.74, 3.5  # of one virtual core
_MEMORY_W_PER_GB = 0.392
_J_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Energy:
    """What was used while samples were taken; pauses between sessions are not in it.

    `kwh` is all of it: `gpu_kwh`, `processor_kwh`, and `memory_kwh` (0 where RAPL counts memory
    with the processor). `seconds` are those of all machines together. `measured` is the share of
    `kwh` that was measured, 0 to 1; the rest is estimated. `how` says all this in words.
    """

    gpu_kwh: float
    processor_kwh: float
    memory_kwh: float
    seconds: float
    measured: float
    how: str

    @property
    def kwh(self) -> float:
        return self.gpu_kwh + self.processor_kwh + self.memory_kwh


@dataclass(frozen=True)
class _Part:
    """Joules of one machine."""

    gpu: float
    processor: float
    memory: float
    measured: float
    unknown_gpus: int


def energy_of(profile: Profile) -> Energy | None:
    """The energy of a run over all its machines; None where no machine was sampled."""
    nodes = [profile.samples(node) for node in profile.nodes]
    nodes = [samples for samples in nodes if len(samples)]
    if not nodes:
        return None
    parts = [_of_machine(samples) for samples in nodes]
    whole = sum(one.gpu + one.processor + one.memory for one in parts)
    measured = sum(one.measured for one in parts)
    return Energy(
        gpu_kwh=sum(one.gpu for one in parts) / _J_PER_KWH,
        processor_kwh=sum(one.processor for one in parts) / _J_PER_KWH,
        memory_kwh=sum(one.memory for one in parts) / _J_PER_KWH,
        seconds=float(sum(samples.seconds.sum() for samples in nodes)),
        measured=measured / whole if whole else 0.0,
        how=_in_words(nodes, parts),
    )


def cost_of(seconds: float, price_per_hour: float) -> float:
    """What a machine costs for that long, in the price's own currency. A run on several machines
    costs that for each: `Energy.seconds` are those of all together."""
    return seconds / 3600 * price_per_hour


def _of_machine(samples: Samples) -> _Part:
    seconds = samples.seconds
    cards = [card["watts"] for card in samples.gpus if "watts" in card]
    gpu = sum(_joules(watts, seconds) for watts in cards)
    unknown = len(samples.gpus) - len(cards)
    if "watts" in samples.columns:
        processor = _joules(samples.columns["watts"], seconds)
        return _Part(gpu, processor, 0.0, gpu + processor, unknown)
    watts = _cores(samples) * (_IDLE_W + (_BUSY_W - _IDLE_W) * _use(samples))
    memory = float(_memory_gb(samples) * _MEMORY_W_PER_GB * seconds.sum())
    return _Part(gpu, _joules(watts, seconds), memory, gpu, unknown)


def _joules(watts: Floats, seconds: Floats) -> float:
    """Power over time; samples that do not know it are taken to be like the others."""
    known = ~np.isnan(watts)
    if not known.any():
        return 0.0
    mean = np.average(watts[known], weights=np.maximum(seconds[known], 1e-9))
    return float(mean * seconds.sum())


def _cores(samples: Samples) -> float:
    """Cores that count: those that the run may use, which in a container can be few of many."""
    return float(samples.about.get("cores") or samples.cpu.shape[1] or 1)


def _use(samples: Samples) -> Floats:
    """Use of those cores at each sample, 0 to 1; of the tree's alone where others share the
    machine."""
    cores = _cores(samples)
    if cores < samples.cpu.shape[1] and "tree_cpu" in samples.columns:
        return np.clip(samples.columns["tree_cpu"] / 100 / cores, 0.0, 1.0)
    if len(samples.cpu_mean):
        return samples.cpu_mean / 100
    return np.full(len(samples), 0.5)  # what the source takes where use is not known


def _memory_gb(samples: Samples) -> float:
    """Memory that is there for the run, used or not: it draws power either way."""
    about = samples.about
    installed = float(about.get("memory_bytes", 0))
    share = min(1.0, _cores(samples) / (about.get("machine_cores") or _cores(samples)))
    return min(float(about.get("memory_limit_bytes", installed)), installed * share) / 1e9


def _in_words(nodes: list[Samples], parts: list[_Part]) -> str:
    words = []
    if any(one.gpu for one in parts):
        words.append("The graphics cards' power was measured (NVML).")
    if unknown := sum(one.unknown_gpus for one in parts):
        cards = "One graphics card does" if unknown == 1 else f"{unknown} graphics cards do"
        words.append(f"{cards} not tell the power, which is left out.")
    by_rapl = ["watts" in samples.columns for samples in nodes]
    if any(by_rapl):
        words.append("The processor's power was measured (RAPL).")
    if not all(by_rapl):
        words.append(
            "Processor and memory are an estimate from their use, with Cloud Carbon Footprint's "
            f"averages of servers: {_IDLE_W} to {_BUSY_W} W a core and {_MEMORY_W_PER_GB} W a GB "
            "of memory."
        )
    words.append("Disks, network, cooling and losses of the power supply (PUE) are not counted.")
    return " ".join(words)
