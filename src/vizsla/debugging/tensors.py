"""Reading captured tensors back: by name, step and mode, as numbers, arrays and frames.

The names of `smdebug`'s trial are kept (`tensor_names`, `tensor(...).value`, `reduction_value`,
`steps`), so that notebooks written for it go on. What judges a training reads whole matrices
instead (`matrix`, `losses`, `answers`). Reading is safe while the run is written: a line that is
not whole yet is not there yet, and `refresh` reads on from where the last reading ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vizsla.debugging.format import COLLECTIONS, GLOBAL, IN_LINES, MODES
from vizsla.debugging.recording import Recording, StepLine, TensorUnavailable
from vizsla.debugging.tensor import Tensor, check_reduction, mode_of
from vizsla.errors import RunError, SettingError, nearest

if TYPE_CHECKING:
    import pandas as pd


class NothingCaptured(RunError):
    """The run has no tensors; the message says how to get some."""


@dataclass(frozen=True)
class Series:
    """A number over steps: `steps` (n,) int64 ascending, `values` (n,) float64, NaN among them."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Matrix:
    """One reduction of several tensors: `values` (steps, names) float64; NaN also where a tensor
    was not recorded at a step, which `present` (steps, names) tells."""

    steps: NDArray[np.int64]
    names: tuple[str, ...]
    values: NDArray[np.float64]
    present: NDArray[np.bool_]

    def series(self, name: str) -> Series:
        """One tensor's numbers, at the steps that have it."""
        column = self.names.index(name)
        there = self.present[:, column]
        return Series(self.steps[there], self.values[there, column])


@dataclass(frozen=True)
class Answers:
    """Labels and answers of single pictures, in the order of training: each array (n,). A
    confidence is the probability of the predicted class, 0 to 1; `evaluations` numbers the
    evaluations, counting those before each picture's of its mode."""

    steps: NDArray[np.int64]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    confidences: NDArray[np.float64]
    evaluations: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Evaluation:
    """Evaluation steps in a row: the training step they came after (its number), their mean loss,
    and the mean training loss since the evaluation before (NaN where no step was recorded)."""

    step: int
    valid_loss: float
    train_loss: float


class Tensors:
    """The captured tensors of a run. `rank` chooses a process, where each recorded its own."""

    def __init__(self, run: Path | str, rank: int = 0, keep_steps: int | None = None) -> None:
        self._recording = Recording(Path(run), rank, keep_steps)
        self.refresh()

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._recording.run

    def refresh(self) -> bool:
        """Read what has been recorded since; whether there was anything."""
        self._answers: dict[str, Answers] = {}
        return self._recording.refresh()

    @property
    def is_empty(self) -> bool:
        return not self._recording.lines

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """What each process that recorded was told to: `first_step`, `begun`, `pid`, `capture`."""
        return self._recording.sessions

    @property
    def last_time(self) -> float | None:
        """When the last step was recorded, in seconds since 1970."""
        return self._recording.last_time

    @property
    def damaged(self) -> int:
        """Lines, or files that lines name, that could not be read."""
        return self._recording.damaged

    def tensor_names(
        self,
        regex: str | Iterable[str] | None = None,
        collection: str | None = None,
        mode: str | None = None,
    ) -> list[str]:
        """Names of tensors, in the order of the network; by a pattern (or one of several) that is
        found anywhere in the name, and a collection. Raises `SettingError` for a collection that
        there is not."""
        if collection is not None and collection not in COLLECTIONS:
            raise SettingError(
                f"There is no collection {collection!r}.{nearest(collection, COLLECTIONS)} There "
                f"are {', '.join(COLLECTIONS)}."
            )
        given = [regex] if isinstance(regex, str) else regex
        patterns = None if given is None else [_compiled(one) for one in given]
        return [
            name
            for name, home in self._recording.names(mode_of(mode)).items()
            if (collection is None or home == collection)
            and (patterns is None or any(one.search(name) for one in patterns))
        ]

    def tensor(self, name: str) -> Tensor:
        """One tensor. Raises `TensorUnavailable` if nothing of that name was recorded."""
        known = self._recording.names(None)
        if name not in known:
            raise TensorUnavailable(
                f"{self.path} recorded no tensor {name!r}.{nearest(name, known)}"
            )
        return Tensor(name, known[name], self._recording)

    def has_tensor(self, name: str) -> bool:
        """Whether anything of that name was recorded."""
        return name in self._recording.names(None)

    def collections(self) -> dict[str, list[str]]:
        """The names in each collection of which something was recorded."""
        found: dict[str, list[str]] = {}
        for name, home in self._recording.names(None).items():
            found.setdefault(home, []).append(name)
        return found

    def collection(self, name: str) -> list[str]:
        """The names in a collection."""
        return self.tensor_names(collection=name)

    def modes(self) -> list[str]:
        """The modes in which something was recorded."""
        return [mode for mode in MODES if any(line.mode == mode for line in self._lines(None))]

    def steps(self, mode: str | None = None) -> list[int]:
        """Steps at which anything was recorded, of a mode by its own numbers; of training unless
        a mode is given. Mode `global` numbers those of all modes together."""
        if mode is None:
            mode = next((one for one in MODES if self._lines(one)), "train")
        return [_number(line, mode) for line in self._lines(mode)]

    def losses(self, mode: str = "train", name: str | None = None) -> Series:
        """The loss over steps; `name` chooses where there are several, else the first."""
        found = [
            (line.step, line.losses[chosen])
            for line in self._lines(mode)
            if (chosen := name if name is not None else next(iter(line.losses), "")) in line.losses
        ]
        return _series(found)

    def learning_rates(self) -> Series:
        """The learning rate of each training step (of the optimiser's first group)."""
        lines = self._lines("train")
        return _series([(one.step, one.rate) for one in lines if one.rate is not None])

    def answers(self, mode: str = "train") -> Answers:
        """Labels and answers of every picture that was recorded in a mode."""
        if mode not in self._answers:
            self._answers[mode] = _answers_of(self._lines(GLOBAL), mode)
        return self._answers[mode]

    def evaluations(self) -> list[Evaluation]:
        """Every evaluation with a loss, oldest first."""
        found: list[Evaluation] = []
        train: list[float] = []
        valid: list[float] = []
        step = 0

        def close() -> None:
            if valid:
                mean = float(np.mean(train)) if train else float("nan")
                found.append(Evaluation(step, float(np.mean(valid)), mean))
                train.clear()
                valid.clear()

        for line in self._lines(GLOBAL):
            loss = next(iter(line.losses.values()), None)
            if line.mode == "train":
                close()
                step = line.step
                if loss is not None:
                    train.append(loss)
            elif line.mode == "eval" and loss is not None:
                valid.append(loss)
        close()
        return found

    def repeated_losses(self) -> list[tuple[int, float, float]]:
        """Training steps that were computed twice, before and after a session began: the step, its
        loss then and its loss again."""
        return self._recording.repeated

    def matrix(
        self,
        reduction: str,
        *,
        collection: str | None = None,
        regex: str | None = None,
        names: Iterable[str] | None = None,
        mode: str = "train",
        last: int | None = None,
    ) -> Matrix:
        """One reduction (of `REDUCTIONS`) of many tensors over all recorded steps of a mode; of
        all that have reductions unless told which. `last` looks at so many of the last steps."""
        check_reduction(reduction)
        if names is None:
            homes = self._recording.names(mode_of(mode))
            found = self.tensor_names(regex=regex, collection=collection, mode=mode)
            names = [name for name in found if homes[name] not in IN_LINES]
        return Matrix(*self._recording.matrix(reduction, tuple(names), mode, last))

    def units(
        self, name: str, mode: str = "train", last: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Of an activation: steps (n,), and per step and unit (channel or feature) the share of
        its values that are active (ReLU) or saturated (tanh, sigmoid): (n, units). `last` asks for
        so many of the last steps."""
        return self._recording.units(name, mode, last)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape in which a tensor was first seen; () of a number."""
        return self._recording.shapes.get(name, ())

    def to_pandas(
        self,
        regex: str | None = None,
        collection: str | None = None,
        mode: str | None = None,
    ) -> pd.DataFrame:
        """A row for each tensor and step: `step`, `mode`, `tensor`, `collection`, `value` (of
        losses) and the reductions."""
        from vizsla.debugging.frames import frame_of

        modes = MODES if (one := mode_of(mode)) is None else (one,)
        return frame_of(self, {one: self.tensor_names(regex, collection, one) for one in modes})

    def wait_for_steps(self, steps: Iterable[int], mode: str | None = None) -> None:
        """Return once all of `steps` are there, or the run has ended without them."""
        self._recording.wait(lambda: set(steps) <= set(self.steps(mode)))

    def has_passed_step(self, step: int, mode: str | None = None) -> bool:
        """Whether a step, or one after it, has been recorded."""
        return any(one >= step for one in self.steps(mode))

    @property
    def loaded_all_steps(self) -> bool:
        """Whether nobody is recording any more."""
        return not self._recording.is_being_written()

    def _lines(self, mode: str | None) -> list[StepLine]:
        return self._recording.of_mode(mode_of(mode))


def open_tensors(run: Path | str, rank: int = 0) -> Tensors:
    """The captured tensors of a run. Raises `NothingCaptured`, which says how to capture, if it
    has none."""
    tensors = Tensors(run, rank)
    if tensors.is_empty:
        raise NothingCaptured(
            f"{run} has no captured tensors. Train with --debug, or put your own loop inside: "
            "with vizsla.debugging.watch(model, FOLDER)."
        )
    return tensors


def create_trial(path: Path | str, name: str | None = None, rank: int = 0) -> Tensors:
    """`open_tensors` by its name in `smdebug`; `name` says nothing here."""
    return open_tensors(path, rank)


def _number(line: StepLine, mode: str | None) -> int:
    return line.number if mode_of(mode) is None else line.step


def _compiled(regex: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except re.error as error:
        raise SettingError(f"{regex!r} is no regular expression: {error}.") from None


def _answers_of(lines: list[StepLine], mode: str) -> Answers:
    """What the lines of a mode say, among all lines in their order."""
    found = [line for line in lines if line.mode == mode and line.labels]
    sizes = [len(line.labels) for line in found]
    # A step of another mode in between ends an evaluation.
    runs = np.cumsum([0, *(one.mode != two.mode for one, two in pairwise(lines))])
    number = {id(line): int(run) for line, run in zip(lines, runs, strict=False)}
    order = {run: at for at, run in enumerate(sorted({number[id(line)] for line in found}))}
    return Answers(
        np.repeat(np.array([line.step for line in found], np.int64), sizes),
        np.fromiter(chain.from_iterable(line.labels for line in found), np.int64),
        np.fromiter(chain.from_iterable(line.predictions for line in found), np.int64),
        np.fromiter(chain.from_iterable(line.confidences for line in found), np.float64),
        np.repeat(np.array([order[number[id(line)]] for line in found], np.int64), sizes),
    )


def _series(found: list[tuple[int, float]]) -> Series:
    return Series(
        np.array([step for step, _ in found], np.int64),
        np.array([value for _, value in found], np.float64),
    )
