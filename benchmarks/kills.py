"""Kills a real training again and again and asks whether the result is still the same to the bit.

A training on drawn pictures, with every source of chance switched on and a checkpoint after each
step, first runs undisturbed, twice. Then the same training is killed with SIGKILL at seeded
random moments and resumed at once, until it is done; rounds follow until enough kills have
fallen. A quarter of the kills aim at the start of a process, the others at the time after its
first step, and two a round at the end, while the bundle is made. Only the main process is
killed, as the out-of-memory killer does; its loaders are left to notice by themselves.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.child_process import REPOSITORY, ChildFailed, vizsla_command
from benchmarks.drawn_pictures import draw
from benchmarks.results import machine_facts, parser, publish
from vizsla.runs.files import read_lines
from vizsla.runs.folder import RunFolder, list_runs

QUICK = ["--kills", "3", "--epochs", "2"]
_POLL_S = 0.02
_RETRY_S = 0.25
_PATIENCE_S = 60.0
_FINISHING_KILLS = 2
_SETTINGS = {
    "model": "test_resnet", "weights": "none", "unfreeze": "all", "size-px": 64, "batch-size": 16,
    "checkpoint-every": 1, "lr": 3e-3, "drop-rate": 0.1, "ema-decay": 0.9, "mixup": 0.2,
    "label-smoothing": 0.1, "train-crop": "random", "augment": "randaugment",
    "random-erasing": 0.25,
}  # fmt: skip


@dataclass
class Round:
    """One training from its first start to its end, however often it was killed."""

    kills: dict[str, int] = field(default_factory=dict)  # by what the process was doing
    resumes: int = 0
    restarts: int = 0  # killed before there was a run to resume
    refused_resumes: int = 0  # the dead process's loaders still held the run
    longest_refusal_seconds: float = 0.0
    most_steps_lost: int = 0
    steps_complete: bool = False
    same_weights: bool = False
    same_epochs: bool = False
    seconds: float = 0.0


class Killer:
    """Starts, kills and resumes trainings of one data set, in `scratch`."""

    def __init__(self, pictures: Path, scratch: Path, epochs: int, chance: random.Random) -> None:
        self._pictures = pictures
        self._scratch = scratch
        self._epochs = epochs
        self._chance = chance
        self._environment = {**os.environ, "VIZSLA_CACHE": str(scratch / "cache")}
        self._start_seconds = self._train_seconds = self._finish_seconds = 0.0

    def undisturbed(self) -> RunFolder:
        """The training that nobody disturbs; its times set those of the kills."""
        runs = self._scratch / "undisturbed"
        self._check(self._start(runs, None).wait())  # fills the cache, as the killed will find it
        control = _run_in(runs)
        runs = self._scratch / "reference"
        started = time.perf_counter()
        child = self._start(runs, None)
        while child.poll() is None and not _steps_size(_run_in(runs)):
            time.sleep(_POLL_S)
        stepped = time.perf_counter()
        while child.poll() is None and not self._trained(_run_in(runs)):
            time.sleep(_POLL_S)
        trained = time.perf_counter()
        self._check(child.wait())
        self._start_seconds = stepped - started
        self._train_seconds = trained - stepped
        self._finish_seconds = time.perf_counter() - trained
        run = _run_in(runs)
        assert run is not None
        assert control is not None
        if _weights(run) != _weights(control):
            raise ChildFailed("Two undisturbed trainings differ: kills would prove nothing.")
        return run

    def one_round(self, number: int, kills_left: int) -> tuple[Round, RunFolder]:
        """Train to the end through at most `kills_left` kills."""
        runs = self._scratch / f"round-{number}"
        facts = Round()
        started = time.perf_counter()
        while True:
            run = _run_in(runs)
            steps_before = _steps_size(run)
            child = self._start_when_free(runs, run, facts)
            enough = facts.kills.get("finishing", 0) >= _FINISHING_KILLS and self._trained(run)
            if enough or sum(facts.kills.values()) >= kills_left:
                self._check(child.wait())
                break
            self._wait_for_the_moment(child, runs, steps_before)
            doing = self._doing(_run_in(runs), steps_before)
            child.kill()
            if child.wait() != -9:  # it was faster
                self._check(child.returncode)
                break
            facts.kills[doing] = facts.kills.get(doing, 0) + 1
        facts.seconds = time.perf_counter() - started
        finished = _run_in(runs)
        assert finished is not None
        return facts, finished

    def _wait_for_the_moment(
        self, child: subprocess.Popen[bytes], runs: Path, steps_before: int
    ) -> None:
        early, share = self._chance.random() < 0.25, self._chance.random()
        if self._trained(_run_in(runs)):
            delay = self._start_seconds + share * self._finish_seconds
        elif early:
            delay = share * self._start_seconds
        else:
            delay = share * self._train_seconds / 3
            while child.poll() is None and _steps_size(_run_in(runs)) == steps_before:
                time.sleep(_POLL_S)
        until = time.perf_counter() + delay
        while child.poll() is None and time.perf_counter() < until:
            time.sleep(_POLL_S)

    def _doing(self, run: RunFolder | None, steps_before: int) -> str:
        if run is None:
            return "before there was a run"
        if self._trained(run):
            return "finishing"
        return "training" if _steps_size(run) > steps_before else "starting"

    def _trained(self, run: RunFolder | None) -> bool:
        return run is not None and len(run.epochs()) >= self._epochs

    def _start_when_free(
        self, runs: Path, run: RunFolder | None, facts: Round
    ) -> subprocess.Popen[bytes]:
        """A training process, or a resumed one as soon as the run lets it have its lock."""
        if run is None:
            facts.restarts += int(bool(facts.kills))
            return self._start(runs, None)
        facts.resumes += 1
        asked = time.perf_counter()
        # Asking the lock is cheaper than starting a process to be refused.
        while run.status() == "running":
            refused = time.perf_counter() - asked
            facts.longest_refusal_seconds = max(facts.longest_refusal_seconds, refused)
            if refused > _PATIENCE_S:
                raise ChildFailed(f"The run stayed locked for {refused:.0f} s after a kill.")
            time.sleep(_RETRY_S)
        facts.refused_resumes += int(time.perf_counter() - asked > _RETRY_S)
        return self._start(runs, run)

    def _start(self, runs: Path, run: RunFolder | None) -> subprocess.Popen[bytes]:
        command = [vizsla_command(), "train", "--runs", str(runs)]
        if run is not None:
            command += ["--resume", str(run.path)]
        else:
            settings = {**_SETTINGS, "epochs": self._epochs}
            flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
            command += [str(self._pictures), *flags]
        # A file: a pipe would be held open by the loaders that a killed process leaves behind.
        with self._log.open("wb") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment, cwd=REPOSITORY
            )

    def _check(self, code: int) -> None:
        if code != 0:
            words = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise ChildFailed(f"The training left with exit code {code}:\n{words}")

    @property
    def _log(self) -> Path:
        return self._scratch / "output.txt"


def main(arguments: list[str] | None = None) -> None:
    made = parser("kills", __doc__)
    made.add_argument("--kills", type=int, default=24, help="fewest kills, over all rounds")
    made.add_argument("--epochs", type=int, default=8)
    made.add_argument("--seed", type=int, default=0, help="of the kills' moments")
    options = made.parse_args(arguments)
    machine = machine_facts()
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as name:
        scratch = Path(name)
        pictures = draw(scratch / "dogs", breeds=3, pictures_per_breed=80, size_px=64)
        killer = Killer(pictures, scratch, options.epochs, random.Random(options.seed))
        reference = killer.undisturbed()
        while (left := options.kills - _kills(rounds)) > 0:
            facts, run = killer.one_round(len(rounds), left)
            _compare(facts, run, reference)
            rounds.append(facts)
            print(f"kills: {_kills(rounds)} of {options.kills} …", file=sys.stderr, flush=True)
        steps = len(reference.steps())
    settings = {"kills": options.kills, "epochs": options.epochs, "steps": steps, **_SETTINGS}
    publish(
        "kills",
        machine,
        settings,
        {"rounds": [asdict(one) for one in rounds]},
        _tables(rounds),
        options.results,
    )
    if not all(one.same_weights for one in rounds):
        sys.exit("A resumed training ended with other weights than the undisturbed one.")


def _run_in(runs: Path) -> RunFolder | None:
    found = list_runs(runs)
    return found[-1] if found else None


def _steps_size(run: RunFolder | None) -> int:
    path = run.path / "steps.jsonl" if run is not None else None
    return path.stat().st_size if path is not None and path.exists() else 0


def _kills(rounds: list[Round]) -> int:
    return sum(sum(one.kills.values()) for one in rounds)


def _compare(facts: Round, run: RunFolder, reference: RunFolder) -> None:
    """Note what the killed training lost on its way, and whether its result is the same."""
    reached = 0
    for line in read_lines(run.path / "steps.jsonl"):
        facts.most_steps_lost = max(facts.most_steps_lost, reached + 1 - line["step"])
        reached = max(reached, line["step"])
    wanted = [step["step"] for step in reference.steps()]
    facts.steps_complete = [step["step"] for step in run.steps()] == wanted
    facts.same_weights = _weights(run) == _weights(reference)
    figures = [
        [(record.epoch, record.step, record.train, record.valid) for record in one.epochs()]
        for one in (run, reference)
    ]
    facts.same_epochs = figures[0] == figures[1]


def _weights(run: RunFolder) -> tuple[dict[str, Any], bytes]:
    """Names, types, shapes and bytes of the bundle's tensors.

    Two files of the same tensors can differ: the notes in a safetensors header, which are left
    out here, come in no fixed order.
    """
    content = (run.bundle / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header.pop("__metadata__", None)
    return header, content[end:]


def _tables(rounds: list[Round]) -> list[tuple[str, list[str], list[list[str]]]]:
    header = [
        "round", "kills", "when", "resumes", "restarts", "steps lost at most",
        "had to wait for the lock", "weights", "epochs' figures", "seconds",
    ]  # fmt: skip
    same = {True: "same to the bit", False: "DIFFERENT"}
    rows = [
        [
            str(number),
            str(sum(one.kills.values())),
            ", ".join(f"{count} {doing}" for doing, count in one.kills.items()),
            str(one.resumes),
            str(one.restarts),
            str(one.most_steps_lost),
            f"{one.refused_resumes} times, {one.longest_refusal_seconds:.1f} s at most",
            same[one.same_weights],
            "same" if one.same_epochs and one.steps_complete else "DIFFERENT",
            f"{one.seconds:.0f}",
        ]
        for number, one in enumerate(rounds, start=1)
    ]
    return [(f"{_kills(rounds)} kills with SIGKILL", header, rows)]


if __name__ == "__main__":
    main()
