"""What rules measure by: a machine's samples while steps went on, and where in a step time goes.

Start, evaluations and checkpoints are no steps and are left out of what is said about the use of a
machine. Where no steps were timed all samples stand for the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from vizsla.profiling.clock import RunClock
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.recorded import Profile, StepTimes
from vizsla.profiling.rules.base import SHOWN
from vizsla.profiling.samples import Floats, Samples
from vizsla.words import duration

# Samples that are judged, at least; fewer say nothing of a share of time.
LEAST_SAMPLES = 20
_IDLE_GPU = 5.0  # percent of use that one which works exceeds at some time
_NEXT_TO_NOTHING = 0.02  # of the time, between two ranges of it
Bools = NDArray[np.bool_]

NO_SAMPLES = "the machine was not sampled"
NO_STEPS = "no steps were timed"
NO_GPU = "there is no GPU"


@dataclass(frozen=True)
class Work:
    """One machine's `samples` while steps went on, in order.

    `use` is the use of the `cores` that may be used, in percent, `others` what other programs use
    of them, NaN where nobody can tell, and `waiting` the share of each sample's time, 0 to 1, in
    which the loop waited for data, NaN where steps were not timed.
    """

    samples: Samples
    cores: int
    use: Floats
    others: Floats
    waiting: Floats
    has_steps: bool

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def node(self) -> str:
        return self.samples.node

    @property
    def time(self) -> Floats:
        return self.samples.time

    @property
    def iowait(self) -> Floats:
        """Share of all cores' time that waited for a disk, in percent; NaN where nobody tells."""
        return mean_of_rows(self.samples.iowait)

    @property
    def gpus(self) -> dict[int, Mapping[str, Floats]]:
        """By number, the GPUs that tell their use; where some work, without those that never do,
        which are other people's."""
        highest = [
            percentile(gpu.get("utilization", np.zeros(0)), 100) for gpu in self.samples.gpus
        ]
        use = {number: most for number, most in enumerate(highest) if np.isfinite(most)}
        least = min(max(use.values(), default=0.0), _IDLE_GPU)
        return {number: self.samples.gpus[number] for number in use if use[number] >= least}

    def column(self, name: str) -> Floats:
        """A column of `format.SAMPLED`; NaN where it was not to be had."""
        return self.samples.columns.get(name, np.full(len(self), np.nan))

    def of_gpus(self, name: str) -> Floats:
        """The mean of a number of all GPUs at each sample; NaN where there is none."""
        known = [gpu[name] for gpu in self.gpus.values() if name in gpu]
        return mean_of_rows(np.array(known).T) if known else np.full(len(self), np.nan)

    def where(self, chosen: Bools) -> Work:
        """The same of some samples alone."""
        old = self.samples
        columns = {name: values[chosen] for name, values in old.columns.items()}
        gpus = tuple({name: gpu[name][chosen] for name in gpu} for gpu in old.gpus)
        samples = replace(
            old, time=old.time[chosen], cpu=old.cpu[chosen], iowait=old.iowait[chosen],
            columns=columns, gpus=gpus,
        )  # fmt: skip
        return replace(
            self, samples=samples, use=self.use[chosen], others=self.others[chosen],
            waiting=self.waiting[chosen],
        )  # fmt: skip

    def after(self, count: int) -> Work:
        """The same without its first `count` samples."""
        return self.where(np.arange(len(self)) >= count)


# Of profiles that are still in use: each rule asks for the same, and a profile never changes.
_KNOWN: WeakKeyDictionary[Profile, list[Work]] = WeakKeyDictionary()


def works(record: ProfileRecord) -> list[Work]:
    """What was sampled while steps went on, of each machine that was sampled."""
    if record.profile not in _KNOWN:
        _KNOWN[record.profile] = [work_on(record, node) for node in record.profile.nodes]
    return _KNOWN[record.profile]


def work_on(record: ProfileRecord, node: str) -> Work:
    """What was sampled of one machine while steps went on."""
    samples = record.profile.samples(node)
    times = samples.time
    width = samples.seconds
    steps = steps_on(record, node)
    chosen = np.arange(len(times)) > 0  # the first one has nothing before it to be a rate of
    waiting = np.full(len(times), np.nan)
    if has_steps := len(steps) > 0:
        chosen = covered(steps.time, steps.seconds, times, width) >= 0.5
        waiting = covered(steps.time, phase_of(steps, "data_wait"), times, width)
    cores, own = cores_of(samples), _own_use(record, samples)
    others = _others_use(samples, cores, own)
    whole = Work(samples, cores, _use(samples, cores, own), others, waiting, has_steps)
    return whole.where(chosen & np.isfinite(times))


def cores_of(samples: Samples) -> int:
    """How many cores the program may use."""
    known = samples.about.get("cores")
    told = known if isinstance(known, int) and not isinstance(known, bool) else 0
    return max(1, told or samples.cpu.shape[1])


def processes_on(record: ProfileRecord, node: str) -> int:
    """How many processes of the training run on a machine: one at least."""
    found = (record.profile.sessions(rank) for rank in record.profile.ranks)
    return max(1, len([one for one in found if one and one[-1].get("node", node) == node]))


def _own_use(record: ProfileRecord, samples: Samples) -> Floats:
    """What the program uses, in percent of one core. Of several processes that train on a machine
    the first is followed, and the others are like it; of a command all are."""
    alike = 1 if "command" in record.facts else processes_on(record, samples.node)
    followed = samples.columns.get("tree_cpu", np.full(len(samples), np.nan))
    return np.asarray(alike * followed)


def _use(samples: Samples, cores: int, own: Floats) -> Floats:
    """Use of the cores that the program may use, in percent. Where these are a part of the
    machine's, nobody tells which: then it is what the program itself uses."""
    whole = samples.cpu_mean
    if len(whole) == len(samples) and cores >= samples.cpu.shape[1]:
        return whole
    return np.minimum(own / cores, 100.0)


def _others_use(samples: Samples, cores: int, own: Floats) -> Floats:
    """What other programs use of the cores, in percent of all."""
    whole, every = samples.cpu_mean, samples.cpu.shape[1]
    if len(whole) != len(samples) or every > cores:
        return np.full(len(samples), np.nan)
    return np.asarray(np.clip(whole - own / every, 0.0, 100.0))


def own_part(work: Work) -> float:
    """The program's part of all that the cores do, 0 to 1; NaN where nobody can tell."""
    busy = mean(work.samples.cpu_mean)
    return 1 - mean(work.others) / busy if busy > 0 else float("nan")


def others_percent(record: ProfileRecord) -> float:
    """What other programs used of the cores while steps went on, in percent, on the machine where
    it was most; 0 where nobody can tell."""
    found = [mean(work.others) for work in works(record)]
    return max((one for one in found if np.isfinite(one)), default=0.0)


def covered(begin: Floats, seconds: Floats, times: Floats, width: Floats) -> Floats:
    """The share, 0 to 1, of the `width` seconds before each of `times` that lies in spans."""
    fine = np.isfinite(begin) & np.isfinite(seconds) & (seconds >= 0)
    begin, seconds = begin[fine], seconds[fine]
    if not len(begin) or not len(times):
        return np.zeros(len(times))
    order = np.argsort(begin, kind="stable")
    begin, seconds = begin[order], seconds[order]
    end = np.minimum(begin + seconds, np.append(begin[1:], np.inf))
    edges = np.stack([begin, end], axis=1).ravel()
    total = np.cumsum(np.stack([np.zeros(len(begin)), end - begin], axis=1).ravel())
    until, since = np.interp(times, edges, total), np.interp(times - width, edges, total)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (until - since) / width
    return np.asarray(np.clip(np.nan_to_num(share, nan=0.0, posinf=0.0, neginf=0.0), 0.0, 1.0))


def steps_on(record: ProfileRecord, node: str) -> StepTimes:
    """The steps of the first process of a machine."""
    profile = record.profile
    for rank in profile.ranks:
        sessions = profile.sessions(rank)
        if sessions and sessions[-1].get("node", node) == node:
            return timed_steps(record, rank)
    first = node == profile.nodes[0] and profile.ranks and not profile.sessions(profile.ranks[0])
    return timed_steps(record, profile.ranks[0] if first else -1)


def timed_steps(record: ProfileRecord, rank: int = 0) -> StepTimes:
    """The steps of a process whose times are known."""
    steps = record.profile.steps(rank)
    fine = np.isfinite(steps.time) & np.isfinite(steps.seconds) & (steps.seconds >= 0)
    phases = {name: np.nan_to_num(values)[fine] for name, values in steps.phases.items()}
    return StepTimes(steps.step[fine], steps.time[fine], steps.seconds[fine], phases)


def phase_of(steps: StepTimes, name: str) -> Floats:
    """Seconds of a phase in each step; zeros for one that never occurred."""
    return steps.phases.get(name, np.zeros(len(steps)))


def are_first(record: ProfileRecord, steps: StepTimes, count: int, rank: int = 0) -> Bools:
    """Whether each step is one of the first `count` of a session, which are slow by nature."""
    first = np.zeros(len(steps), np.bool_)
    begins = [one.get("time") for one in record.profile.sessions(rank)]
    for begin in [-np.inf, *(one for one in begins if isinstance(one, int | float))]:
        at = int(np.searchsorted(steps.time, begin))
        first[at : at + count] = True
    return first


def follow_a_pause(steps: StepTimes) -> Bools:
    """Whether each step is the first after something that is none: an evaluation, a checkpoint."""
    ends = steps.time + steps.seconds
    return np.concatenate([[False], steps.time[1:] - ends[:-1] > 1e-3])[: len(steps)]


def since_start(record: ProfileRecord, times: Floats) -> list[float]:
    """Moments as seconds of the run, as a report counts them."""
    return [round(float(one), 2) for one in RunClock.of(record.profile).seconds(times)]


def ranges(record: ProfileRecord, times: Floats, there: Bools) -> list[list[float]]:
    """When something was there, as pairs of seconds of the run: the longest ones, in order. Those
    with next to nothing between them are one."""
    if not there.any():
        return []
    begins = np.concatenate([times[:1], times[:-1]])[there]  # a sample is of the time before it
    ends = times[there]
    apart = begins[1:] - ends[:-1] > _NEXT_TO_NOTHING * (times[-1] - times[0])
    pairs = zip(begins[np.append(True, apart)], ends[np.append(apart, True)])
    longest = sorted(sorted(pairs, key=lambda pair: pair[0] - pair[1])[:SHOWN])
    return [since_start(record, np.array(pair)) for pair in longest]


def device_of(record: ProfileRecord) -> str:
    """What the first process computes on, as torch calls it; empty where nobody told."""
    ranks = record.profile.ranks
    sessions = record.profile.sessions(ranks[0]) if ranks else []
    return str(sessions[-1].get("device", "")) if sessions else ""


def has_gpus(record: ProfileRecord) -> bool:
    """Whether the use of a GPU was sampled."""
    return any(work.gpus for work in works(record))


def too_few(found: Sequence[Work], patience: int) -> str | None:
    """Why samples are too few for a rule that leaves out the first `patience`; None where there
    are enough. In the time that they take, which people know."""
    if not found:
        return NO_SAMPLES
    longest = max(found, key=len)
    needed = patience + LEAST_SAMPLES
    if len(longest) >= needed:
        return None
    interval_s = longest.samples.interval_s
    needs, took = duration(needed * interval_s), duration(len(longest) * interval_s)
    if not longest.has_steps:
        return f"it needs {needs}, and the program was sampled for {took}"
    if not len(longest):
        return f"it needs {needs} of steps, and no sample was taken while they went on"
    return f"it needs {needs} of steps, and these took {took}"


def mean_of_rows(rows: Floats) -> Floats:
    """Means that leave out NaN; NaN where a row is nothing else."""
    known = np.isfinite(rows)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, rows, 0.0).sum(axis=1) / known.sum(axis=1))


def percentile(values: Floats, percent: float) -> float:
    """A percentile of the values that are known; NaN where none is."""
    known = values[np.isfinite(values)]
    return float(np.percentile(known, percent)) if len(known) else float("nan")


def mean(values: Floats) -> float:
    """The mean of the values that are known; NaN where none is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def windows(count: int, window: int) -> list[slice]:
    """Windows of at least `window` entries over `count`; one of all where there are fewer."""
    edges = np.linspace(0, count, max(1, count // window) + 1).astype(int)
    return [slice(int(low), int(high)) for low, high in zip(edges, edges[1:])]
