"""Rules on what a setting would have gained, by measurements made at the end of a training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from vizsla.findings import Finding
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.rules.base import ProfileRule
from vizsla.profiling.rules.cures import recipe_of
from vizsla.profiling.rules.measures import timed_steps

_COMPUTING = ("forward", "backward")
_ELSEWHERE = "vizsla's own trainings alone measure that"


class PrecisionUnused(ProfileRule):
    """Fires when a step in bf16 is faster by the factor `gain` than the float32 it was trained in,
    or the other way round: some networks gain nothing by it.

    New. Both were measured at the end of the training, on this machine, which computes bf16
    natively.
    """

    name: ClassVar[str] = "precision_unused"

    gain: float = Field(1.15, ge=1, le=100, description="Gain in speed that is let pass.")

    def applies(self, record: ProfileRecord) -> str | None:
        if _number(record.profile.fact("bf16_gain"), "gain") is not None:
            return None
        if recipe_of(record) is None:
            return _ELSEWHERE
        if record.trunk is not None:
            return "a head on kept outputs of frozen layers is too small to gain by bf16"
        return "this machine does not compute bf16 natively, or the training has not ended"

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        fact = record.profile.fact("bf16_gain")
        gain = _number(fact, "gain")
        used = (fact or {}).get("precision", "fp32")
        if gain is not None and used == "bf16":
            gain = 1 / gain if gain > 0 else None
        if gain is None or gain < self.gain:
            return
        better, name = ("bf16", "bf16") if used == "fp32" else ("fp32", "float32")
        steps = timed_steps(record)
        computed = sum(steps.total(phase) for phase in _COMPUTING)
        saved = computed * (1 - 1 / gain)
        words = f" (about {saved:.3g} of {float(steps.seconds.sum()):.3g} seconds)" if saved else ""
        yield self.finding(
            f"The training computed in {'float32' if used == 'fp32' else 'bf16'}, and in {name} a "
            f"step is {gain:.2f} times as fast on this machine{words}.",
            f"Train with --precision {better}. Accuracy hardly ever differs; compare one run.",
            severity="info",
            where="precision",
            measured=gain,
            threshold=self.gain,
            saved_seconds=saved,
            fp32_seconds=_number(fact, "fp32_seconds"),
            bf16_seconds=_number(fact, "bf16_seconds"),
        )


class FrozenWork(ProfileRule):
    """Fires when passes through frozen layers that a cache would have saved took more than
    `least_seconds`, and more than the share `threshold` of the steps' time.

    New. A pass was measured at the end of the training, on this machine.
    """

    name: ClassVar[str] = "frozen_work"

    threshold: float = Field(0.1, ge=0, lt=1, description="Share of steps' time let pass, 0 to 1.")
    least_seconds: float = Field(5.0, ge=0, le=1e9, description="Seconds that are let pass.")

    def applies(self, record: ProfileRecord) -> str | None:
        if record.trunk is not None:
            return "outputs of frozen layers are kept"
        if _number(record.profile.fact("frozen_work"), "saved") is not None:
            return None
        recipe = recipe_of(record)
        if recipe is None:
            return _ELSEWHERE
        if recipe.unfreeze == "all":
            return "no layers are frozen"
        return "a cache would have saved no pass through frozen layers, or it has not ended"

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        fact = record.profile.fact("frozen_work") or {}
        each, saved = _number(fact, "trunk_seconds_per_picture"), _number(fact, "saved")
        if each is None or saved is None:
            return
        seconds = each * saved
        whole = float(timed_steps(record).seconds.sum())
        share = seconds / whole if whole > 0 else 1.0
        if seconds <= self.least_seconds or share <= self.threshold:
            return
        why = str(fact.get("why", "")).rstrip(".")
        passes = _number(fact, "passes")
        of = f" of {passes:,.0f}" if passes is not None else ""
        yield self.finding(
            f"{saved:,.0f}{of} passes through frozen layers computed again what was known: about "
            f"{seconds:.3g} seconds" + (f", since {why}." if why else "."),
            _cure_of(record, why),
            where="frozen layers",
            measured=seconds,
            threshold=self.least_seconds,
            share=min(share, 1.0),
            saved=saved,
            passes=passes,
            seconds_per_picture=each,
        )


def _cure_of(record: ProfileRecord, why: str) -> str:
    recipe = recipe_of(record)
    if recipe is not None and recipe.cache == "off":
        return "Keep their outputs: --cache disk."
    if recipe is not None and "vary anew" in why:
        mixed = [
            f"--{name.replace('_', '-')}"
            for name in ("mixup", "cutmix", "random_erasing")
            if getattr(recipe, name)
        ]
        without = f" and leave out {', '.join(mixed)}" if mixed else ""
        return (
            f"Draw the variations of pictures once: --views 8{without}; then the outputs are kept."
        )
    if "several" in why:
        return "Train in one process: with kept outputs it is faster than several without."
    if "cannot be kept" in why:
        return "Make room for the cache: --cache-gb, or a larger disk behind VIZSLA_CACHE."
    return "Keep their outputs (--cache disk) with a network that can be cut where training begins."


def _number(fact: Any, name: str) -> float | None:
    value = fact.get(name) if isinstance(fact, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
        return None
    return float(value) if value > 0 else None
