"""The facts about the machine that a figure means nothing without.

Read from the system and from package metadata, so that naming the machine neither imports torch
nor disturbs what is measured next. Host names and paths are left out: results are published.
"""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("vizsla", "torch", "timm", "onnxruntime", "numpy", "pillow")
# A processor without one of these emulates bf16, and vizsla then computes in float32.
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def machine_facts() -> dict[str, Any]:
    """Processor, cores, memory, versions, date, and how busy the machine was at the start."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "native_bf16": _native_bf16(),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "date": datetime.now().strftime("%Y-%m-%d"),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def machine_line(facts: dict[str, Any]) -> str:
    """The facts as one line, to stand over a table."""
    bf16 = {True: "native bf16", False: "no native bf16", None: "bf16 unknown"}[
        facts["native_bf16"]
    ]
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gb']:g} GB, {bf16}, "
        f"{facts['gpu'] or 'no GPU'}; Python {facts['python']}, "
        f"torch {facts['versions']['torch']}, vizsla {facts['versions']['vizsla']}; "
        f"{facts['date']}; "
        f"load at the start {facts['load_at_start']}"
    )


def _processor() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _native_bf16() -> bool | None:
    for line in _cpuinfo():
        if line.startswith("flags"):
            return not _BF16_FLAGS.isdisjoint(line.split())
    return None


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []


def _gpu() -> str | None:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return ", ".join(names.split("\n")).strip(", ") or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
