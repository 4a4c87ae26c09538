"""What Optuna is told of a trial, as it goes and when a study that was killed is taken up again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from vizsla.runs.folder import RunFolder
from vizsla.tuning.folder import StudyFolder
from vizsla.tuning.settings import FOOTPRINT
from vizsla.tuning.trials import CURVE, OWNER, SECONDS


def take_up(
    study: optuna.Study, folder: StudyFolder, objectives: Sequence[str], owner: str, alone: bool
) -> list[FrozenTrial]:
    """Of the trials of `owner` that were left running, tell Optuna of those that ended all the
    same; the others, to go on with. `alone` says that the study has no other owner."""
    left_over = []
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # A kill can come before a trial has its owner.
        if left.user_attrs.get(OWNER) == owner or (alone and OWNER not in left.user_attrs):
            trial = Trial(study, left._trial_id)
            trial.set_user_attr(OWNER, owner)
            if not _tell_of_its_end(study, trial, left, folder.trial(left.number), objectives):
                left_over += [
                    one for one in study.get_trials(deepcopy=False) if one.number == left.number
                ]
    return left_over


def note_epoch(
    trial: Trial, objectives: Sequence[str], known: set[int], epoch: int, value: float
) -> None:
    """Note the first objective's value after an epoch, once."""
    if epoch in known:  # a trial that was cut off tells of some epochs again
        return
    known.add(epoch)
    if len(objectives) == 1:
        trial.report(value, epoch)
    else:  # of several objectives Optuna takes no figures on the way
        trial.set_user_attr(f"{CURVE}{epoch}", value)


def values_of(run: RunFolder, objectives: Sequence[str]) -> list[float]:
    """A trial's figures: of its best epoch, and of its network."""
    best = [record for record in run.epochs() if record.best][-1]
    costs = run.footprint() or {}
    return [
        costs[name] if name in FOOTPRINT else float(getattr(best.valid, name))
        for name in objectives
    ]


def asks_for_costs(objectives: Sequence[str]) -> bool:
    """Whether an objective is about the network rather than what it learnt."""
    return any(name in FOOTPRINT for name in objectives)


def _tell_of_its_end(
    study: optuna.Study,
    trial: Trial,
    left: FrozenTrial,
    run: RunFolder,
    objectives: Sequence[str],
) -> bool:
    """Tell Optuna what the run knows of a trial; whether the trial has ended."""
    if SECONDS not in left.user_attrs:  # the kill took them; what the run knows is nearest
        spent = sum(one.train_seconds + one.valid_seconds for one in run.epochs())
        trial.set_user_attr(SECONDS, spent)
    outcome = (run.outcome() or {}).get("status")
    if (
        run.is_finished
        and outcome != "trained"
        and len(run.epochs()) < run.facts()["recipe"]["epochs"]
    ):
        # The bundle of a trial that time had stopped, which a kill kept from being moved.
        shutil.rmtree(run.bundle, ignore_errors=True)
    trained = run.is_finished or outcome == "trained"
    if trained and asks_for_costs(objectives) and run.footprint() is None:
        return False
    if not trained and outcome != "pruned":
        return False
    known = set(left.intermediate_values)
    for record in run.epochs():
        value = float(getattr(record.valid, objectives[0]))
        note_epoch(trial, objectives, known, record.epoch, value)
    if trained:
        study.tell(left.number, values_of(run, objectives))
    else:
        study.tell(left.number, state=TrialState.PRUNED)
    return True
