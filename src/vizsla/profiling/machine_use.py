"""How a machine was used, in words: a line a resource."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from vizsla.profiling.samples import Samples
from vizsla.thinning import Floats
from vizsla.words import counted, size

_TOLD = 10.0  # percent of the cores that others take, from which on it is told


def machine_lines(samples: Samples) -> list[tuple[str, str]]:
    """Name and words for each resource of a machine: what it has, what was used of it, and what
    could not be counted. Resources without a number are left out."""
    return list(_lines(samples))


def cores_of(samples: Samples) -> int:
    """Cores that the run may use; 0 where nobody knows."""
    told = samples.about.get("cores")
    return int(told) if isinstance(told, int | float) else samples.cpu.shape[1]


def _lines(samples: Samples) -> Iterator[tuple[str, str]]:
    about = samples.about
    yield "machine", _what_it_is(samples)
    if processor := _processor(samples):
        yield "processor", processor
    if memory := _memory(samples):
        yield "memory", memory
    for name, into, out, words in (
        ("disk", "read_bytes", "write_bytes", ("read", "written")),
        ("network", "received_bytes", "sent_bytes", ("received", "sent")),
    ):
        if traffic := _traffic(samples, into, out, words):
            yield name, traffic
    for number, readings in enumerate(samples.gpus):
        yield f"GPU {number}", _gpu(about, number, readings)
    if missing := _missing(about):
        yield "missing", missing


def _what_it_is(samples: Samples) -> str:
    about = samples.about
    parts = [samples.node]
    host = about.get("host")
    if host and host != samples.node:
        parts[0] += f" ({host})"
    if cores := cores_of(samples):
        machine = about.get("machine_cores")
        of = f" of {machine}" if isinstance(machine, int) and machine != cores else ""
        parts.append(f"{cores}{of} {'core' if cores == 1 and not of else 'cores'}")
    if about.get("processor"):
        parts.append(str(about["processor"]))
    gpus = Counter(str(gpu.get("name", "GPU")) for gpu in _gpus(about))
    parts += [name if count == 1 else f"{count} × {name}" for name, count in gpus.items()]
    return ", ".join(parts if gpus else [*parts, "no GPU"])


def _processor(samples: Samples) -> str:
    use, tree = samples.cpu_mean, samples.columns.get("tree_cpu")
    cores, parts = cores_of(samples), []
    if tree is not None and _known(tree):
        parts.append(f"{np.nanmean(tree) / 100:.1f} of {counted(cores, 'core')} used by the run")
    if len(use) and _known(use):
        busiest = np.nanmax(_means(samples.cpu))
        parts.append(f"all cores {np.nanmean(use):.0f} % busy, the busiest one {busiest:.0f} %")
        if tree is not None and (others := _others(use, tree / samples.cpu.shape[1])) >= _TOLD:
            parts.append(f"other programs took {others:.0f} %")
    if len(samples.iowait_mean) and _known(samples.iowait_mean):
        waited = np.nanmean(samples.iowait_mean)
        if waited >= 1:
            parts.append(f"{waited:.0f} % of the time waiting for the disk")
    return "; ".join(parts)


def _others(use: Floats, tree: Floats) -> float:
    """What others than the run took of all cores, percent; 0 where it is not known."""
    known = ~np.isnan(use) & ~np.isnan(tree)
    return max(0.0, float(np.mean(use[known] - tree[known]))) if known.any() else 0.0


def _memory(samples: Samples) -> str:
    used, own = samples.columns.get("memory_bytes"), samples.columns.get("tree_bytes")
    whole, limit = (samples.about.get(one) for one in ("memory_bytes", "memory_limit_bytes"))
    parts = [f"limited to {size(limit)} here"] if isinstance(limit, int | float) else []
    if used is not None and _known(used):
        of = f" of {size(whole)}" if isinstance(whole, int | float) and whole else ""
        parts.append(f"{size(np.nanmax(used))}{of} at most")
    if own is not None and _known(own):
        parts.append(f"{size(np.nanmax(own))} by the run and its children")
    return "; ".join(parts)


def _traffic(samples: Samples, into: str, out: str, words: tuple[str, str]) -> str:
    parts = []
    for name, word in zip((into, out), words):
        column = samples.columns.get(name)
        if column is not None and _known(column):
            most = float(np.nanmax(column))
            parts.append(
                f"{size(float(np.nanmean(column)))}/s {word}, {size(most)}/s at most"
                if most
                else f"nothing {word}"
            )
    return "; ".join(parts)


def _gpu(about: Any, number: int, readings: Any) -> str:
    known = {name: column for name, column in readings.items() if _known(column)}
    gpus = _gpus(about)
    facts = gpus[number] if number < len(gpus) else {}
    parts = []
    if "utilization" in known:
        parts.append(f"{np.nanmean(known['utilization']):.0f} % busy")
    if "memory_bytes" in known:
        whole = facts.get("memory_bytes")
        of = f" of {size(whole)}" if whole else ""
        parts.append(f"{size(np.nanmax(known['memory_bytes']))}{of} at most")
    if "watts" in known:
        parts.append(f"{np.nanmean(known['watts']):.0f} W")
    if "celsius" in known:
        parts.append(f"{np.nanmax(known['celsius']):.0f} °C at most")
    return ", ".join(parts) or "no readings"


def _gpus(about: Any) -> list[dict[str, Any]]:
    return [gpu for gpu in about.get("gpus") or [] if isinstance(gpu, dict)]


def _missing(about: Any) -> str:
    missing = about.get("missing") or []
    return "; ".join(map(str, missing)) if isinstance(missing, list) else str(missing)


def _known(column: Floats) -> bool:
    return bool((~np.isnan(column)).any())


def _means(matrix: Floats) -> Floats:
    """The mean of each column that has a number."""
    known = ~np.isnan(matrix)
    sums: Floats = np.where(known, matrix, 0.0).sum(axis=0)
    some = known.any(axis=0)
    means: Floats = sums[some] / known.sum(axis=0)[some]
    return means
