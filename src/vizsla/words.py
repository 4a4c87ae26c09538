"""Numbers, amounts and names in words, as the command line and every report write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

GAP = "–"
_LONGEST_NAME = 26


def duration(seconds: float) -> str:
    """Seconds in the units that fit.

    >>> [duration(one) for one in (0.0042, 0.1318, 14.12, 724, 11_520)]
    ['4.2 ms', '132 ms', '14.1 s', '12 min 4 s', '3 h 12 min']
    """
    if 0 < seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 99.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def size(count: float) -> str:
    """Bytes in the unit that fits.

    >>> [size(one) for one in (512, 8_242_000, 16.73e9)]
    ['512 B', '8.24 MB', '16.7 GB']
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def percent(share: float | None) -> str:
    """A share in 0 to 1 in per cent. What would round to nothing, or to all of it, and is not, is
    told as less than that.

    >>> percent(0.3421), percent(0.0004), percent(0.9998), percent(None)
    ('34.2 %', '<0.1 %', '>99.9 %', '–')
    """
    if share is None:
        return GAP
    if 0 < share < 0.0005:
        return "<0.1 %"
    return ">99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


def number(value: float | None) -> str:
    """A measure such as a loss or an F1 score."""
    return GAP if value is None else f"{value:.3f}"


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number of things.

    >>> counted(1, "step"), counted(2340, "step"), counted(2, "class", "classes")
    ('1 step', '2,340 steps', '2 classes')
    """
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def some_of(words: Sequence[str], most: int = 5) -> str:
    """The first few, and how many more there are."""
    left = len(words) - most
    return listed(words) if left <= 0 else f"{', '.join(words[:most])} and {left:,} more"


def apart(names: Iterable[str]) -> list[str]:
    """The names, those that come again with a number, so that each is there once."""
    told: set[str] = set()
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        while (own := name if seen[name] == 1 else f"{name} ({seen[name]})") in told:
            seen[name] += 1
        told.add(own)
        result.append(own)
    return result


def shortened(name: str, most: int = _LONGEST_NAME) -> str:
    """A long name without its middle."""
    if len(name) <= most:
        return name
    end = most // 3
    return f"{name[: most - end - 1]}…{name[-end:]}"
