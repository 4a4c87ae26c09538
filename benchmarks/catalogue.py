"""A catalogue of a million pictures: how long, and how much memory.

Manifests of 120 classes and paths of realistic length are generated; the files that they name
need not exist, since no picture is opened. What is measured runs in a process of its own, whose
peak memory includes Python and the imports. The target is for opening and dividing; what else
`vizsla train` does with the whole catalogue before the first step is measured beside it.
"""

from __future__ import annotations

import csv
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.child_process import measure
from benchmarks.results import machine_facts, parser, publish, verdict

QUICK = ["--rows", "20000"]
TARGET_SECONDS, TARGET_MB = 30.0, 500.0
_CLASSES = 120
_LAYOUTS = {"csv": False, "parquet": False, "csv with splits": True}
_STAGES = ("open", "divide", "judge", "fingerprint", "write")
_Result = TypeVar("_Result")


def main(arguments: list[str] | None = None) -> None:
    made = parser("catalogue", __doc__)
    made.add_argument("--rows", type=int, default=1_000_000)
    made.add_argument("--child", type=Path, help="measure this manifest in this process")
    options = made.parse_args(arguments)
    if options.child is not None:
        print(json.dumps(_measure_here(options.child)))
        return
    machine = machine_facts()
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as name:
        for layout, divided in _LAYOUTS.items():
            print(f"catalogue: {layout} …", file=sys.stderr, flush=True)
            manifest = Path(name) / f"manifest.{layout.split()[0]}"
            if layout == "parquet":
                _write_parquet(manifest, options.rows)
            else:
                _write_csv(manifest, options.rows, divided)
            child = measure(
                [sys.executable, "-m", "benchmarks.catalogue", "--child", str(manifest)]
            )
            facts[layout] = json.loads(child.output.splitlines()[-1])
            facts[layout]["manifest_mb"] = manifest.stat().st_size / 1e6
            manifest.unlink()
    settings = {"rows": options.rows, "classes": _CLASSES}
    publish("catalogue", machine, settings, {"layouts": facts}, [_table(facts)], options.results)


def _measure_here(manifest: Path) -> dict[str, Any]:
    """Seconds of each stage; peak memory after the stages that the target is for, and after all."""
    from vizsla.data.integrity import CATALOGUE_RULES
    from vizsla.data.sources import open_source
    from vizsla.data.splits import divide
    from vizsla.findings import judge_all

    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], _Result]) -> _Result:
        started = time.perf_counter()
        result = work()
        seconds[stage] = time.perf_counter() - started
        return result

    before_mb = _peak_mb()
    catalogue = timed("open", lambda: open_source(manifest))
    catalogue = timed("divide", lambda: divide(catalogue, 0))
    peak_mb = _peak_mb()
    timed("judge", lambda: list(judge_all(CATALOGUE_RULES, catalogue)))
    timed("fingerprint", lambda: (catalogue.fingerprint(), catalogue.fingerprint(divided=True)))
    timed("write", lambda: catalogue.write_csv(manifest.with_name("catalogue.csv")))
    return {
        "pictures": len(catalogue),
        "seconds": seconds,
        "open_and_divide_seconds": seconds["open"] + seconds["divide"],
        "mb_before": before_mb,
        "peak_mb": peak_mb,
        "peak_mb_of_all_stages": _peak_mb(),
    }


def _peak_mb() -> float:
    """Peak resident memory of this process so far, in megabytes (10^6 bytes).

    Linux's `ru_maxrss` also counts the parent before exec, so the kernel's mark for this
    address space alone is read where there is one.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _rows(count: int) -> Iterator[tuple[str, str, str]]:
    """Path, label and split of each row, classes mixed as an export from a database has them."""
    names = [
        f"{number + 1:03d}.Breed_of_{'long' * (number % 3)}_name" for number in range(_CLASSES)
    ]
    for row in range(count):
        folder = names[row * 7919 % _CLASSES]
        split = ("train", "train", "train", "train", "valid", "test")[row // _CLASSES % 6]
        yield f"dogImages/pictures/{folder}/{folder[4:]}_{row:08d}.jpg", folder, split


def _write_csv(path: Path, count: int, divided: bool) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split") if divided else ("path", "label"))
        writer.writerows(row if divided else row[:2] for row in _rows(count))


def _write_parquet(path: Path, count: int) -> None:
    import pyarrow
    from pyarrow import parquet

    paths, labels, _ = zip(*_rows(count), strict=True)
    parquet.write_table(pyarrow.table({"path": paths, "label": labels}), path)


def _table(facts: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    header = ["manifest", "open + divide s", "target s", "", "peak MB", "target MB", " "]
    header += [f"{stage} s" for stage in _STAGES] + ["peak MB, all stages"]
    rows = []
    for layout, one in facts.items():
        seconds, peak = one["open_and_divide_seconds"], one["peak_mb"]
        rows.append(
            [
                layout,
                f"{seconds:.1f}",
                f"< {TARGET_SECONDS:g}",
                verdict(seconds, TARGET_SECONDS, at_most=True),
                f"{peak:.0f}",
                f"< {TARGET_MB:g}",
                verdict(peak, TARGET_MB, at_most=True),
                *(f"{one['seconds'][stage]:.1f}" for stage in _STAGES),
                f"{one['peak_mb_of_all_stages']:.0f}",
            ]
        )
    pictures = next(iter(facts.values()))["pictures"]
    return f"A catalogue of {pictures:,} pictures", header, rows


if __name__ == "__main__":
    main()
