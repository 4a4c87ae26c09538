"""Runs the benchmarks one after the other, each in a process of its own.

    python -m benchmarks              everything; writes benchmarks/results/*.json
    python -m benchmarks --quick      the smallest sizes, to see that all of them work

Figures of a quick run mean nothing and are not kept.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
import time

from benchmarks.child_process import REPOSITORY

_ORDER = (
    "startup",
    "catalogue",
    "kills",
    "training",
    "frozen",
    "tuning",
    "debugging",
    "profiling",
    "exports",
    "recipes",
    "extraction",
    "many_pictures",
    "serving",
    "accuracy",
)


def main() -> int:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help="smallest sizes; results are not kept")
    made.add_argument("--only", nargs="+", choices=_ORDER, default=_ORDER)
    options = made.parse_args()
    failed = []
    with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as thrown_away:
        for name in (one for one in _ORDER if one in options.only):
            command = [sys.executable, "-m", f"benchmarks.{name}"]
            if options.quick:
                quick = importlib.import_module(f"benchmarks.{name}").QUICK
                command += ["--results", thrown_away, *quick]
            started = time.perf_counter()
            code = subprocess.run(command, cwd=REPOSITORY).returncode
            print(f"\n{name}: {time.perf_counter() - started:.0f} s in all", flush=True)
            failed += [name] if code else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
