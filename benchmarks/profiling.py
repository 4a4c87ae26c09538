"""What the profiler costs, and how long the report of a long run takes.

Sampler: the processor time of its thread at 500 ms, as a share of one core, in a process that does
nothing and in one with four children and a hundred threads. Timeline: what saying and writing the
phases of a step costs, in a loop that does nothing else, against the steps of a ResNet-18 (64
pixels, batches of 16) and of a head on kept outputs in vizsla's own loop. Report: a run of 133
classes, 20 epochs, 36,000 samples and 20,000 steps, built by `vizsla report` in a fresh process and
opened in headless Chromium, until every figure is drawn.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child_process import measure, vizsla_command
from benchmarks.drawn_pictures import draw
from benchmarks.large_run import write_large_run
from benchmarks.results import machine_facts, parser, publish, verdict

QUICK = ["--seconds", "3", "--steps", "5", "--samples", "500"]
TARGET_SAMPLER, TARGET_TIMELINE = 0.3, 0.5
TARGET_BUILD_S, TARGET_DRAW_S, TARGET_MB = 5.0, 2.0, 6.0
_LOOP = 5000


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    machine = machine_facts()
    with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as name:
        scratch = Path(name)
        sampler = _sampler_cost(scratch, options.seconds)
        timeline = _timeline_cost(scratch, options.steps)
        report = _report(scratch, options.samples)
    rows = [
        (f"sampler, {what}", f"{share:.2f} % of a core", f"{TARGET_SAMPLER:g} %",
         verdict(share, TARGET_SAMPLER, at_most=True))
        for what, share in sampler.items()
    ]  # fmt: skip
    for what in ("resnet18", "head"):
        share = 100 * timeline["cost_us"] / (1000 * timeline[f"{what}_ms"])
        rows.append(
            (f"timeline, {timeline['cost_us']:.1f} µs a step; {what}, "
             f"{timeline[f'{what}_ms']:.2f} ms", f"{share:.3f} % of the step",
             f"{TARGET_TIMELINE:g} %", verdict(share, TARGET_TIMELINE, at_most=True))
        )  # fmt: skip
    pages = [
        ("vizsla report, imports included", f"{report['build_s']:.2f} s", f"{TARGET_BUILD_S:g} s",
         verdict(report["build_s"], TARGET_BUILD_S, at_most=True)),
        ("opened and drawn", f"{report['draw_s']:.2f} s", f"{TARGET_DRAW_S:g} s",
         verdict(report["draw_s"], TARGET_DRAW_S, at_most=True)),
        ("the file", f"{report['mb']:.2f} MB", f"{TARGET_MB:g} MB",
         verdict(report["mb"], TARGET_MB, at_most=True)),
    ]  # fmt: skip
    publish(
        "profiling",
        machine,
        {"seconds": options.seconds, "steps": options.steps, "samples": options.samples},
        {"sampler_percent": sampler, "timeline": timeline, "report": report},
        [
            ("What the profiler costs", ("what", "measured", "target", ""), rows),
            (
                f"Report of 133 classes, 20 epochs, {options.samples:,} samples",
                ("what", "measured", "target", ""),
                pages,
            ),
        ],
        options.results,
    )


def _options(arguments: list[str] | None) -> Any:
    made = parser("profiling", __doc__)
    made.add_argument("--seconds", type=float, default=60, help="of each sampling")
    made.add_argument("--steps", type=int, default=100, help="of each network")
    made.add_argument("--samples", type=int, default=36_000, help="in the report")
    return made.parse_args(arguments)


def _sampler_cost(scratch: Path, seconds: float) -> dict[str, float]:
    """Percent of one core."""
    from vizsla.profiling.sampler import Sampler

    def share(folder: str) -> float:
        (scratch / folder).mkdir()
        with Sampler(scratch / folder) as sampler:
            time.sleep(seconds)
            return 100 * sampler.cpu_seconds / seconds

    idle = share("idle")
    with _crowd(children=4, threads=100):
        return {"process of one thread": idle, "four children, a hundred threads": share("crowd")}


@contextlib.contextmanager
def _crowd(children: int, threads: int) -> Iterator[None]:
    """This process with children and threads that wait."""
    done = threading.Event()
    waiting = [threading.Thread(target=done.wait, daemon=True) for _ in range(threads)]
    for one in waiting:
        one.start()
    sleep = [sys.executable, "-c", "import time; time.sleep(3600)"]
    processes = [subprocess.Popen(sleep) for _ in range(children)]
    try:
        yield
    finally:
        done.set()
        for process in processes:
            process.kill()
            process.wait()


def _timeline_cost(scratch: Path, steps: int) -> dict[str, float]:
    return {
        "cost_us": _phases_us(scratch),
        "resnet18_ms": _resnet18_ms(steps),
        "head_ms": _head_ms(scratch),
    }


def _phases_us(scratch: Path) -> float:
    """Microseconds that a step's five phases take where they are timed and written."""
    from vizsla.phases import phase, timed_by
    from vizsla.profiling.timeline import Timeline

    def loop(end: Any) -> float:
        started = time.perf_counter()
        for _ in range(_LOOP):
            for name in ("data_wait", "transfer", "forward", "backward", "optimiser"):
                with phase(name):
                    pass
            end()
        return 1e6 * (time.perf_counter() - started) / _LOOP

    more = []
    for number in range(7):
        timeline = Timeline()
        folder = scratch / f"timeline-{number}"
        folder.mkdir()
        timeline.open(folder)
        plain = loop(lambda: None)
        with timed_by(timeline):
            more.append(loop(timeline.step) - plain)
        timeline.close()
    return statistics.median(more)


def _resnet18_ms(steps: int) -> float:
    """Milliseconds of a step, the median."""
    import torch

    from vizsla.models.build import build_network
    from vizsla.settings import Recipe

    torch.manual_seed(0)
    recipe = Recipe(model="resnet18", weights="none", unfreeze="all", size_px=64)
    network = build_network(recipe, recipe, 10).module.train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    pictures, labels = torch.randn(16, 3, 64, 64), torch.randint(0, 10, (16,))
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(pictures), labels).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds))


def _head_ms(scratch: Path) -> float:
    """Milliseconds of a step of vizsla's own loop that trains a head on kept outputs."""
    import os

    import vizsla
    from vizsla.settings import Recipe

    os.environ["VIZSLA_CACHE"] = str(scratch / "cache")
    pictures = draw(scratch / "dogs", breeds=5, pictures_per_breed=100, size_px=64)
    recipe = Recipe(model="mobilenetv2_100", weights="none", unfreeze="head", size_px=64, epochs=10)
    run = vizsla.train(pictures, recipe, runs=scratch / "runs")
    return 1000 * float(np.median([line["seconds"] for line in run.steps()]))


def _report(scratch: Path, samples: int) -> dict[str, float]:
    run = write_large_run(scratch / "large", samples=samples)
    built = min(measure([vizsla_command(), "report", str(run)]).seconds for _ in range(3))
    page = run / "report.html"
    return {
        "build_s": built,
        "draw_s": statistics.median(_draw_s(page) for _ in range(3)),
        "mb": page.stat().st_size / 1e6,
    }


def _draw_s(page: Path) -> float:
    """Seconds from asking for the page to the last figure's being there."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        started = time.perf_counter()
        opened.goto(page.resolve().as_uri())
        opened.wait_for_function(
            """() => [...document.querySelectorAll(".figure")].every(
                (place) => place.querySelector("svg.main-svg .infolayer"))"""
        )
        seconds = time.perf_counter() - started
        browser.close()
        return seconds


if __name__ == "__main__":
    main()
