"""What the debugger costs: in step time, on disk, and reading back.

Step time: a ResNet-18 (64 pixels, batches of 16) trains inside `watch` with the default capture and
rules, recording every fourth step. Of each four steps the first records and the second may feel the
recorder's thread, the other two are plain: what recording costs is the median over many such fours
of the first two less the last two. A step that does not record costs what the hooks on the loss and
the optimiser take, measured on a network of ten numbers, whose steps cost little else. From both
follows the cost at any interval. Neighbouring steps are compared since the machine's own speed
changes by a tenth within minutes. Disk: 1,000 steps of a ResNet-50 at the default. Reading: 1,000
recorded steps of 400 tensors, in a fresh process.
"""

from __future__ import annotations

import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import machine_facts, parser, publish, verdict

QUICK = ["--fours", "5", "--disk-steps", "60", "--read-steps", "50"]
TARGETS = {50: 1.0, 10: 4.0}
TARGET_MB, TARGET_READ_S = 2.0, 1.0
_TENSORS = 400


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    machine = machine_facts()
    logging.getLogger("vizsla").setLevel(logging.ERROR)  # what is found in random labels
    with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as name:
        scratch = Path(name)
        cost = {**_recording_cost(scratch / "fours", options.fours), **_hook_cost(scratch)}
        disk = _disk(scratch / "resnet50", options.disk_steps)
        read = _reading(scratch / "many", options.read_steps)
    slower = {
        every: {
            end: 100 * (cost[f"recording_{end}_ms"] / every + cost["hooks_ms"]) / cost["plain_ms"]
            for end in ("low", "median", "high")
        }
        for every in TARGETS
    }
    rows = [
        (
            f"every {every} steps",
            f"{slower[every]['median']:.2f} % ({slower[every]['low']:.2f} to "
            f"{slower[every]['high']:.2f})",
            f"{target:g} %",
            verdict(slower[every]["median"], target, at_most=True),
        )
        for every, target in TARGETS.items()
    ]
    others = [
        (
            f"ResNet-50, {options.disk_steps:,} steps, default capture, on disk",
            f"{disk['mb']:.2f} MB",
            f"{TARGET_MB:g} MB",
            verdict(disk["mb"], TARGET_MB, at_most=True),
        ),
        (
            f"reading {options.read_steps:,} steps of {_TENSORS} tensors, all reductions",
            f"{read['matrix_s']:.2f} s",
            f"{TARGET_READ_S:g} s",
            verdict(read["matrix_s"], TARGET_READ_S, at_most=True),
        ),
        ("the same as one pandas frame", f"{read['frame_s']:.2f} s", "none set", ""),
    ]
    publish(
        "debugging",
        machine,
        {"fours": options.fours, "disk_steps": options.disk_steps},
        {"cost": cost, "slower_percent": slower, "disk": disk, "reading": read},
        [
            (
                f"A step of a ResNet-18, 64 px, batch of 16: {cost['plain_ms']:.1f} ms. One that "
                f"records takes {cost['recording_median_ms']:.1f} ms more, one that does not "
                f"{1000 * cost['hooks_ms']:.0f} µs more",
                ("capture", "slower (quartiles)", "target", ""),
                rows,
            ),
            ("Disk and reading", ("what", "measured", "target", ""), others),
        ],
        options.results,
    )


def _options(arguments: list[str] | None) -> Any:
    made = parser("debugging", __doc__)
    made.add_argument("--fours", type=int, default=150, help="four steps each")
    made.add_argument("--disk-steps", type=int, default=1000)
    made.add_argument("--read-steps", type=int, default=1000)
    return made.parse_args(arguments)


class _Training:
    """A network that trains on random pictures."""

    def __init__(self, model: str, size_px: int, batch_size: int) -> None:
        import torch

        from vizsla.models.build import build_network
        from vizsla.settings import Recipe

        torch.manual_seed(0)
        recipe = Recipe(model=model, weights="none", unfreeze="all", size_px=size_px)
        self.network = build_network(recipe, recipe, 10).module.train()
        self.optimizer = torch.optim.SGD(self.network.parameters(), 1e-3, momentum=0.9)
        self.loss_fn = torch.nn.CrossEntropyLoss()
        self._pictures = torch.randn(batch_size, 3, size_px, size_px)

    def step(self) -> None:
        import torch

        # New labels each step: what is learnt by heart has gradients so small that they are slow.
        labels = torch.randint(0, 10, (len(self._pictures),))
        self.optimizer.zero_grad()
        self.loss_fn(self.network(self._pictures), labels).backward()
        self.optimizer.step()


def _recording_cost(folder: Path, fours: int) -> dict[str, float]:
    """What a step that records takes more than one that does not, in ms: median and quartiles."""
    from vizsla.debugging import watch

    training = _Training("resnet18", 64, 16)
    for _ in range(10):
        training.step()
    seconds = []
    with watch(
        training.network, folder, loss_fn=training.loss_fn, optimizer=training.optimizer, every=4
    ) as debugger:
        for _ in range(4 * fours):
            started = time.perf_counter()
            training.step()
            debugger.step()
            seconds.append(1000 * (time.perf_counter() - started))
    table = np.array(seconds).reshape(-1, 4)[1:]  # the first one makes ready
    more = table[:, :2].sum(axis=1) - table[:, 2:].sum(axis=1)
    low, median, high = np.percentile(more, [25, 50, 75])
    return {
        "plain_ms": float(np.median(table[:, 2:])),
        "recording_low_ms": float(low),
        "recording_median_ms": float(median),
        "recording_high_ms": float(high),
    }


def _hook_cost(scratch: Path) -> dict[str, float]:
    """What a step that does not record takes more than one that nobody watches, in ms."""
    import torch

    from vizsla.debugging import watch

    network, loss_fn = torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    pictures, labels = torch.randn(8, 4), torch.randint(0, 2, (8,))

    def seconds(end: Any = None, steps: int = 2000) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            loss_fn(network(pictures), labels).backward()
            optimizer.step()
            if end is not None:
                end()
        return time.perf_counter() - started

    seconds()
    more = []
    for number in range(7):
        with watch(
            network, scratch / f"hooks-{number}", loss_fn=loss_fn, optimizer=optimizer,
            capture="losses,weights,gradients", every=1_000_000, rules="none",
        ) as debugger:  # fmt: skip
            watched = seconds(debugger.step)
        more.append((watched - seconds()) / 2000)
    return {"hooks_ms": 1000 * statistics.median(more)}


def _disk(folder: Path, steps: int) -> dict[str, float]:
    """What a ResNet-50 leaves; its pictures are small, which its weights do not know."""
    from vizsla.debugging import watch

    training = _Training("resnet50", 32, 16)
    with watch(
        training.network, folder, loss_fn=training.loss_fn, optimizer=training.optimizer
    ) as debugger:
        for _ in range(steps):
            training.step()
            debugger.step()
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"mb": sum(sizes) / 1e6, "files": len(sizes), "steps": steps}


_READ = """
import json, sys, time
from vizsla.debugging.format import REDUCTIONS
from vizsla.debugging.tensors import open_tensors
started = time.perf_counter()
tensors = open_tensors(sys.argv[1])
values = [tensors.matrix(name).values for name in REDUCTIONS]
matrix_s = time.perf_counter() - started
started = time.perf_counter()
import pandas
imported_s = time.perf_counter() - started
started = time.perf_counter()
rows = len(open_tensors(sys.argv[1]).to_pandas())
print(json.dumps({"matrix_s": matrix_s, "frame_s": time.perf_counter() - started,
                  "import_pandas_s": imported_s, "rows": rows, "shape": values[0].shape}))
"""


def _reading(folder: Path, steps: int) -> dict[str, Any]:
    """Seconds of a fresh process, imports aside."""
    import json

    from vizsla.debugging.format import BINS, STORED
    from vizsla.debugging.store import StepRecord, TensorWriter

    folder.mkdir()
    chance = np.random.default_rng(0)
    table = tuple(
        (f"layer{number}.weight", "weights", (64, 64, 3, 3), "float32")
        for number in range(_TENSORS)
    )
    writer = TensorWriter(folder, 0, {})
    for step in range(steps):
        arrays: dict[str, Any] = {
            "reductions": chance.random((_TENSORS, len(STORED)), np.float32),
            "histograms": chance.integers(0, 99, (_TENSORS, BINS), np.uint16),
        }
        writer.add(StepRecord("train", step, losses={"loss": 1.0}, table=table, arrays=arrays))
    writer.flush()
    command = [sys.executable, "-c", _READ, str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(told)
    return found


if __name__ == "__main__":
    main()
