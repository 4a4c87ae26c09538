"""Reading the lines of a profile, with whatever a crash or an editor has left among them.

A line that is no JSON object, or whose values are not what `format.py` promises, is skipped and
counted: here, once, so that nothing behind this needs to look again. A number that is not to be
had may be absent or null. Lines of an unknown kind come from a later vizsla and are passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vizsla.errors import RunError
from vizsla.profiling.format import SAMPLED, SAMPLED_OF_GPU

Line = dict[str, Any]
_NUMBER = frozenset((int, float))
_NUMBER_OR_NONE = _NUMBER | {type(None)}
# A damaged line could else ask for more memory than there is.
_MOST_CORES, _MOST_GPUS = 4096, 256
_LATEST = 253_402_300_800  # the year 10,000, where dates end


def read_machine(path: Path) -> tuple[list[Line], int]:
    """The `about` and `sample` lines of a file, and how many others are damaged."""
    return _read(path, _OF_MACHINE)


def read_timeline(path: Path) -> tuple[list[Line], int]:
    """The `session`, `steps`, `span` and `fact` lines of a file, and how many are damaged."""
    return _read(path, _OF_TIMELINE)


def _read(path: Path, checks: Mapping[str, Callable[[Line], bool]]) -> tuple[list[Line], int]:
    try:
        *whole, unfinished = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from error
    kept, damaged = [], 0
    for line in _objects(whole):
        kind = line.get("kind") if isinstance(line, dict) else None
        check = checks.get(kind) if isinstance(kind, str) else _refuse
        if check is None:
            continue
        if check(line):
            kept.append(line)
        else:
            damaged += 1
    last = _object(unfinished)  # still being written, or cut off by a kill: no damage
    check = checks.get(str(last.get("kind"))) if isinstance(last, dict) else None
    if check is not None and check(last):
        kept.append(last)
    return kept, damaged


def _objects(lines: list[bytes]) -> list[Any]:
    """What each line holds, None where it is damaged. All at once is a third faster than one by
    one, and only the latter finds out which of them are damaged."""
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")
        if len(found) == len(lines):
            return list(found)
    except (ValueError, RecursionError):
        pass
    return [_object(line) for line in lines]


def _object(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _refuse(line: Line) -> bool:
    return False


def _is_sample(line: Line) -> bool:
    return (
        _is_time(line.get("time"))
        and _NUMBER_OR_NONE.issuperset(map(type, map(line.get, SAMPLED)))
        and _are_numbers(line.get("cpu", []))
        and _are_numbers(line.get("iowait", []))
        and _are_gpus(line.get("gpus", []))
    )


def _are_numbers(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= _MOST_CORES
        and _NUMBER_OR_NONE.issuperset(map(type, values))
    )


def _are_gpus(devices: Any) -> bool:
    return (
        isinstance(devices, list)
        and len(devices) <= _MOST_GPUS
        and all(
            isinstance(one, dict)
            and _NUMBER_OR_NONE.issuperset(map(type, map(one.get, SAMPLED_OF_GPU)))
            for one in devices
        )
    )


def _is_about(line: Line) -> bool:
    numbers = ("cores", "machine_cores", "memory_bytes", "memory_limit_bytes", "torch_threads")
    gpus, missing = line.get("gpus", []), line.get("missing", [])
    return (
        _is_finite(line.get("interval_ms"))
        and line["interval_ms"] > 0
        and all(_is_finite(line.get(name, 0)) for name in numbers)
        and all(isinstance(line.get(name, ""), str) for name in ("node", "host", "processor"))
        and isinstance(gpus, list)
        and all(isinstance(one, dict) for one in gpus)
        and isinstance(missing, list)
        and all(isinstance(one, str) for one in missing)
    )


def _is_session(line: Line) -> bool:
    started = line.get("process_started")
    return (
        _is_time(line.get("time"))
        and (started is None or _is_finite(started))
        and all(isinstance(line.get(name, ""), str) for name in ("node", "device"))
    )


def _is_steps(line: Line) -> bool:
    steps, phases = line.get("step"), line.get("phases")
    if not isinstance(steps, list) or not isinstance(phases, dict):
        return False
    columns = [line.get("time"), line.get("seconds"), *phases.values()]
    return (
        all(type(step) is int and 0 <= step < 2**62 for step in steps)
        and all(isinstance(column, list) and len(column) == len(steps) for column in columns)
        and all(_are_finite(column) for column in columns)
        and (not steps or (_is_time(min(line["time"])) and _is_time(max(line["time"]))))
    )


def _is_span(line: Line) -> bool:
    return (
        isinstance(line.get("name"), str)
        and _is_time(line.get("time"))
        and _is_finite(line.get("seconds"))
    )


def _is_fact(line: Line) -> bool:
    return isinstance(line.get("name"), str)


def _is_finite(value: Any) -> bool:
    return _are_finite((value,))


def _are_finite(values: Iterable[Any]) -> bool:
    try:
        return _NUMBER.issuperset(map(type, values)) and all(map(math.isfinite, values))
    except OverflowError:  # an integer of hundreds of digits
        return False


def _is_time(value: Any) -> bool:
    return type(value) in _NUMBER and 0 <= value < _LATEST  # which NaN is not either


_OF_MACHINE = {"about": _is_about, "sample": _is_sample}
_OF_TIMELINE = {
    "session": _is_session,
    "steps": _is_steps,
    "span": _is_span,
    "fact": _is_fact,
}
