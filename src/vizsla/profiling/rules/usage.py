"""Rules on a machine that is not used: small batches, idle devices, devices out of balance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from vizsla.findings import Finding
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.rules.base import ProfileRule
from vizsla.profiling.rules.cures import cores_each, recipe_of
from vizsla.profiling.rules.measures import (
    LEAST_SAMPLES,
    NO_STEPS,
    Work,
    are_first,
    device_of,
    mean,
    percentile,
    phase_of,
    processes_on,
    ranges,
    timed_steps,
    too_few,
    windows,
    works,
)
from vizsla.profiling.samples import Floats
from vizsla.words import counted

# A sample in which the loop waits for its data for less than this share was spent computing.
_COMPUTING = 0.2
# Devices, and processes, whose means differ by less are in balance, whatever their histograms.
_EVEN_POINTS, _EVEN_SHARE = 10.0, 0.2
_BINS = np.linspace(0, 100, 11)


class BatchSize(ProfileRule):
    """Fires when the 95th percentiles of processor, GPU and GPU memory use are all below their
    thresholds, in most windows of `window` samples: there is room for a larger batch.

    Without a GPU the cores stand for it, those that torch's threads can fill, in samples in which
    the loop computes and does not wait, and the machine's memory for that of the GPU; it is then a
    hint, and given only where torch may use half of the cores or more. Deviations: samples are
    those of steps; `patience` has the documented 100 (SageMaker's code: 1000); most windows decide,
    not a single one.
    """

    name: ClassVar[str] = "batch_size"

    cpu_threshold_p95: float = Field(70.0, gt=0, le=100, description="Use of the cores, percent.")
    gpu_threshold_p95: float = Field(70.0, gt=0, le=100, description="Use of the GPUs, percent.")
    gpu_memory_threshold_p95: float = Field(
        70.0, gt=0, le=100, description="Memory in use, of the GPUs or else the machine, percent."
    )
    patience: int = Field(100, ge=0, le=10**9, description="First samples that are left out.")
    window: int = Field(500, ge=1, le=10**9, description="Samples that are judged together.")

    def applies(self, record: ProfileRecord) -> str | None:
        return _unless_computing(record, self.patience)

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        for work in _used(record, self.patience):
            on_gpu = bool(work.gpus)
            if not on_gpu and _has_few_threads(record, work):
                continue
            memory = work.of_gpus("memory") if on_gpu else work.column("memory")
            use = work.use if on_gpu else _use_of_threads(record, work)
            series = {"cores": (use, self.cpu_threshold_p95)}
            if on_gpu:
                series["GPUs"] = (work.of_gpus("utilization"), self.gpu_threshold_p95)
            series["memory"] = (memory, self.gpu_memory_threshold_p95)
            if not _are_low(series, self.window):
                continue
            highest = {name: percentile(values, 95) for name, (values, _) in series.items()}
            of = "GPU memory" if on_gpu else "memory"
            used = ", ".join(f"{name} {value:.0f} %" for name, value in highest.items())
            yield self.finding(
                f"Nothing is used much, not even at its most (95th percentiles: {used}): batches "
                "are too small to fill the machine.",
                f"Take larger batches, as far as {of} has room: {_larger(record)}. Raise the "
                "learning rate with them, and see that accuracy stays.",
                severity="warning" if on_gpu else "info",
                where=work.node,
                measured=highest["GPUs" if on_gpu else "cores"],
                threshold=self.gpu_threshold_p95 if on_gpu else self.cpu_threshold_p95,
                **{f"{name.lower()}_p95": value for name, value in highest.items()},
            )


class LowGPUUtilization(ProfileRule):
    """Fires when in most windows a GPU's use has a 95th percentile below `threshold_p95`, or one
    above it and a 5th percentile below `threshold_p5`: it fluctuates.

    Without a GPU it judges the cores, or those that torch's threads can fill where these are half
    of them or more, in samples in which the loop computes and does not wait: by `threshold_p95`
    alone, since a pause of the cores between two batches is no fault. Deviations: samples are those
    of steps; most windows decide, not a single one.
    """

    name: ClassVar[str] = "low_gpu_utilization"

    threshold_p95: float = Field(70.0, gt=0, le=100, description="Least 95th percentile, percent.")
    threshold_p5: float = Field(10.0, ge=0, le=100, description="Least 5th percentile, percent.")
    window: int = Field(500, ge=1, le=10**9, description="Samples that are judged together.")
    patience: int = Field(1000, ge=0, le=10**9, description="First samples that are left out.")

    def applies(self, record: ProfileRecord) -> str | None:
        return _unless_computing(record, self.patience)

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        for work in _used(record, self.patience):
            if not work.gpus:
                yield from self._of_cores(record, work)
            low = {
                number: judged
                for number, gpu in work.gpus.items()
                if (judged := self._measured(gpu["utilization"])) is not None
            }
            if low:
                yield self._of_gpus(record, work, low)

    def _of_cores(self, record: ProfileRecord, work: Work) -> Iterable[Finding]:
        use, few = _use_of_threads(record, work), _has_few_threads(record, work)
        if not _are_low({"cores": (use, self.threshold_p95)}, self.window):
            return
        threads: Any = work.samples.about.get("torch_threads")
        more = cores_each(record, work)
        highest = percentile(use, 95)
        yield self.finding(
            f"While the network computes, {counted(_cores_of_threads(record, work), 'core')} "
            f"that torch may take are used {mean(use):.0f} % on average and {highest:.0f} % at "
            "most (95th percentile)."
            if not few
            else f"While the network computes, {work.cores} cores are used {mean(use):.0f} % on "
            f"average and {highest:.0f} % at most (95th percentile): torch computes with "
            f"{counted(threads, 'thread')}.",
            f"Let torch use the cores: OMP_NUM_THREADS={more}, or torch.set_num_threads({more})."
            if few
            else f"Give the cores more to do at once: {_larger(record)}. A small network cannot "
            "use many cores; several trainings side by side can (vizsla tune --jobs).",
            severity="warning" if few else "info",
            where=work.node,
            measured=highest,
            threshold=self.threshold_p95,
            cause="threads" if few else "work",
            torch_threads=threads,
            cores=work.cores,
            seconds_from_start=ranges(record, work.time, use < self.threshold_p95),
        )

    def _measured(self, use: Floats) -> tuple[float, float] | None:
        """The percentile that is too low in most windows, and its threshold; None of neither."""
        pairs = [
            (percentile(use[part], 95), percentile(use[part], 5))
            for part in windows(len(use), self.window)
        ]
        low = sum(high < self.threshold_p95 for high, _ in pairs)
        uneven = sum(
            high >= self.threshold_p95 and deep < self.threshold_p5 for high, deep in pairs
        )
        if 2 * low > len(pairs):
            return percentile(use, 95), self.threshold_p95
        return (percentile(use, 5), self.threshold_p5) if 2 * uneven > len(pairs) else None

    def _of_gpus(
        self, record: ProfileRecord, work: Work, low: Mapping[int, tuple[float, float]]
    ) -> Finding:
        """One finding for all GPUs that are used too little, by the one that is least."""
        number = min(low, key=lambda one: low[one][::-1])
        use, (measured, limit) = work.gpus[number]["utilization"], low[number]
        is_low = limit == self.threshold_p95
        also = f" ({counted(len(low) - 1, 'more GPU')} alike)" if len(low) > 1 else ""
        return self.finding(
            f"GPU {number} is used {mean(use):.0f} % on average"
            + (
                f" and {measured:.0f} % at most (95th percentile){also}."
                if is_low
                else f", and less than {limit:.0f} % at times{also}: it waits by turns."
            ),
            self._against(record),
            where=f"{work.node}, GPU {number}",
            measured=measured,
            threshold=limit,
            cause="low" if is_low else "uneven",
            gpus=list(low),
            seconds_from_start=ranges(record, work.time, use < limit),
        )

    def _against(self, record: ProfileRecord) -> str:
        if device_of(record) == "cpu":
            return (
                "The training computes on the processor: move the network and batches to the GPU."
            )
        steps = timed_steps(record)
        if steps.share("data_wait") > _COMPUTING:
            return (
                f"Steps wait for data {100 * steps.share('data_wait'):.0f} % of their time: "
                "data_starved says what cures it."
            )
        return (
            f"Give it more to do at once: {_larger(record)}. Let nothing in the loop wait for it "
            "(loss.item() in every step does)."
        )


class LoadBalancing(ProfileRule):
    """Fires when the histograms of two GPUs' use differ by more than `threshold`, from 0 (alike) to
    1 (nothing in common).

    With one GPU or none it compares the processes of a training, by the seconds of each step in
    which they did their own work: loading, transfer and forward pass. (In the backward pass and the
    update they wait for one another.) The cores of one process need no balance. Deviations: the
    distance is half the sum of the histograms' differences, and devices whose means differ by less
    than 10 points, or processes whose medians differ by less than 20 %, are in balance; `patience`
    has the documented 10 (SageMaker's code: 1000).
    """

    name: ClassVar[str] = "load_balancing"

    threshold: float = Field(0.5, gt=0, le=1, description="Largest distance of two histograms.")
    patience: int = Field(10, ge=0, le=10**9, description="First samples or steps left out.")

    def applies(self, record: ProfileRecord) -> str | None:
        devices, processes = self._devices(record), self._processes(record)
        if len(devices) > 1 or len(processes) > 1:
            return None
        return "it compares GPUs or processes, and there are no two that took long enough"

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        devices, processes = self._devices(record), self._processes(record)
        if len(devices) > 1:
            if found := self._most_unlike(devices, _BINS, _EVEN_POINTS):
                distance, high, low = found
                yield self.finding(
                    f"{high} is used {mean(devices[high]):.0f} % and {low} "
                    f"{mean(devices[low]):.0f} %: the work is not shared alike.",
                    "Give each device the same number of pictures of the same size "
                    "(DistributedSampler, or torchrun with vizsla train), and no work that is of "
                    "one alone.",
                    where=low, measured=distance, threshold=self.threshold,
                    devices=[high, low], use_percent=[mean(devices[high]), mean(devices[low])],
                )  # fmt: skip
            return
        longest = max(percentile(one, 50) for one in processes.values())
        bins = np.linspace(0, 2 * longest, 21)
        if longest > 0 and (found := self._most_unlike(processes, bins, _EVEN_SHARE * longest)):
            distance, high, low = found
            yield self.finding(
                f"A step's own work takes {high} {1000 * percentile(processes[high], 50):.3g} ms "
                f"and {low} {1000 * percentile(processes[low], 50):.3g} ms: the others wait for "
                f"{high}.",
                "Give each process the same number of pictures, cores and loader processes.",
                where=high, measured=distance, threshold=self.threshold, devices=[high, low],
            )  # fmt: skip

    def _most_unlike(
        self, values: Mapping[str, Floats], bins: Floats, even: float
    ) -> tuple[float, str, str] | None:
        """The largest distance of two, the one with more first; None where all are in balance."""
        worst: tuple[float, str, str] | None = None
        for pair in combinations(values, 2):
            low, high = sorted(pair, key=lambda name: mean(values[name]))
            distance = _distance(values[low], values[high], bins)
            even_enough = mean(values[high]) - mean(values[low]) < even
            if (
                distance > self.threshold
                and not even_enough
                and (worst is None or distance > worst[0])
            ):
                worst = distance, high, low
        return worst

    def _devices(self, record: ProfileRecord) -> dict[str, Floats]:
        found = {
            f"{work.node}, GPU {number}": gpu["utilization"][np.isfinite(gpu["utilization"])]
            for work in (one.after(self.patience) for one in works(record))
            for number, gpu in work.gpus.items()
        }
        return {name: use for name, use in found.items() if len(use) >= LEAST_SAMPLES}

    def _processes(self, record: ProfileRecord) -> dict[str, Floats]:
        found = {}
        for rank in record.profile.ranks:
            steps = timed_steps(record, rank)
            own = sum(phase_of(steps, one) for one in ("data_wait", "transfer", "forward"))
            kept = ~are_first(record, steps, max(1, self.patience), rank)
            if kept.sum() >= LEAST_SAMPLES and float(np.sum(own)) > 0:
                found[f"process {rank}"] = np.asarray(own)[kept]
        return found


def _used(record: ProfileRecord, patience: int) -> list[Work]:
    """What usage is judged by, where there is enough: of a GPU every sample of steps, without one
    those in which the loop computes."""
    found = []
    for work in works(record):
        kept = work.after(patience)
        if not kept.gpus:
            kept = kept.where(kept.waiting < _COMPUTING)
        if len(kept) >= LEAST_SAMPLES:
            found.append(kept)
    return found


def _unless_computing(record: ProfileRecord, patience: int) -> str | None:
    found = works(record)
    if found and not any(work.gpus or work.has_steps for work in found):
        return f"there is no GPU, and {NO_STEPS}"
    return too_few(found, patience)


def _are_low(series: Mapping[str, tuple[Floats, float]], window: int) -> bool:
    """Whether in most windows all 95th percentiles are known and below their thresholds."""
    count = min(len(values) for values, _ in series.values())
    parts = windows(count, window)
    low = sum(
        all(percentile(values[part], 95) < limit for values, limit in series.values())
        for part in parts
    )
    return 2 * low > len(parts)


def _cores_of_threads(record: ProfileRecord, work: Work) -> int:
    """How many cores torch's threads can fill."""
    threads = work.samples.about.get("torch_threads")
    if not isinstance(threads, int) or threads < 1:
        return work.cores
    return min(work.cores, processes_on(record, work.node) * threads)


def _has_few_threads(record: ProfileRecord, work: Work) -> bool:
    """Whether torch takes fewer than half of the cores. Half is what it takes by itself of a
    processor that runs two threads a core, and all that such a core can do."""
    return 2 * _cores_of_threads(record, work) < work.cores


def _use_of_threads(record: ProfileRecord, work: Work) -> Floats:
    """Use of the cores that torch's threads can fill, in percent; of all where they are few."""
    cores = _cores_of_threads(record, work)
    if _has_few_threads(record, work):
        return work.use
    return np.minimum(work.use * work.cores / cores, 100.0)


def _larger(record: ProfileRecord) -> str:
    recipe = recipe_of(record)
    return "a larger batch_size" if recipe is None else f"--batch-size {2 * recipe.batch_size}"


def _distance(one: Floats, other: Floats, bins: Floats) -> float:
    """Half the sum of the differences of two histograms' shares: 0 alike, 1 nothing in common."""
    shares = [
        np.histogram(np.clip(values, bins[0], bins[-1]), bins)[0] / len(values)
        for values in (one, other)
    ]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)
