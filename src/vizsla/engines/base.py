"""A job is data, and an engine decides where it runs.

A `Job` is one training as JSON: any process that is given it does the same. What happens to it
comes back as `Event`s; what it makes lies in its run folder, which is the only result there is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from vizsla.errors import SettingError, nearest
from vizsla.settings import Recipe

EventKind = Literal[
    "trunk", "started", "epoch", "note", "finished", "pruned", "stopped", "failed", "crashed"
]


@dataclass(frozen=True)
class Job:
    """Train on `data` by `recipe` in the run folder `folder`; a run that is there goes on.

    Without `bundle` the job ends with the training: the weights of its best epoch stay in its
    checkpoints. Without `train` it makes the bundle of a run as far as that has come. `footprint`
    is a folder in which size and speed of the network are noted, None where nobody asks, and
    `debug` the settings of a debugger that may end the training at an epoch. The job uses `cores`
    cores, and `cores_before` of them until its first step; None takes all.
    """

    data: str
    recipe: Mapping[str, Any]
    folder: str
    verb: Literal["train"] = "train"
    train: bool = True
    bundle: bool = True
    footprint: str | None = None
    debug: Mapping[str, Any] | None = None
    cores: int | None = None
    cores_before: int | None = None

    def to_recipe(self) -> Recipe:
        return Recipe(**self.recipe)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Raises `SettingError` for anything that is no job."""
        try:
            facts = json.loads(text)
        except ValueError as error:
            raise SettingError(f"The job is no JSON: {error}.") from None
        if not isinstance(facts, dict):
            raise SettingError(f"A job is a JSON object, and this is {type(facts).__name__}.")
        return cls._checked(facts)

    @classmethod
    def _checked(cls, facts: dict[str, Any]) -> Job:
        for name in ("data", "recipe", "folder"):
            if name not in facts:
                raise SettingError(f"The job says nothing of {name}, which it must.")
        known = cls.__dataclass_fields__
        for name, value in facts.items():
            if name not in known:
                raise SettingError(f"A job has no {name!r}.{nearest(name, known)}")
            if not _fits(name, value):
                raise SettingError(f"The job's {name} is {value!r}, which does not fit.")
        if facts.get("verb", "train") != "train":
            raise SettingError(f"The job's verb is {facts['verb']!r}; there is only train.")
        Recipe(**facts["recipe"])  # says what is wrong with it
        return cls(**facts)


def _fits(name: str, value: Any) -> bool:
    if name in ("recipe", "debug"):
        return isinstance(value, dict) or (name == "debug" and value is None)
    if name in ("train", "bundle"):
        return isinstance(value, bool)
    if name in ("cores", "cores_before"):
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return whole or value is None
    return isinstance(value, str) or (name == "footprint" and value is None)


@dataclass(frozen=True)
class Event:
    """Something that happened to a job.

    trunk      passes through the frozen layers: `done`, `of`
    started    the first step is next: `epochs`, and `seconds` since the job was taken up
    epoch      an `EpochRecord` as `record`; the job waits until it is answered
    note       a `text`
    finished   it is done: `seconds`
    pruned     an answer ended it, or its debugger: `reason`
    stopped    it was asked to stop, and can go on later
    failed     `error` (a class of `vizsla.errors`, or any other), `reason`
    crashed    its process is gone: `reason`
    """

    job: int
    kind: EventKind
    facts: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """Runs jobs side by side, each as often as it is submitted.

    Used by one thread. A job that has been submitted ends in exactly one event of finished,
    pruned, stopped, failed or crashed. Closing stops what still runs.
    """

    @property
    def slots(self) -> int:
        """Jobs that run at a time."""
        ...

    def submit(self, job: Job) -> int:
        """Begin a job, of at most `slots` at a time; its number."""
        ...

    def events(self, timeout_s: float) -> list[Event]:
        """What happened since the last call; waits so long for something to happen."""
        ...

    def answer(self, job: int, stop: str | None = None, cores: int | None = None) -> None:
        """After an epoch: go on, with another number of cores where one is given, or stop for a
        reason."""
        ...

    def stop(self, job: int, now: bool = False) -> None:
        """Ask a job to save and stop; `now` ends its process as it stands."""
        ...

    def close(self) -> None: ...
