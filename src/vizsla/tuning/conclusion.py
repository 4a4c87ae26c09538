"""What a study leaves behind: leaderboard, best recipe, bundle, findings."""

from __future__ import annotations

import shutil

from vizsla.engines.base import Job
from vizsla.errors import WorkError
from vizsla.findings import Finding
from vizsla.runs.files import append_lines, read_lines, write_text
from vizsla.training.stopping import StopRequest
from vizsla.tuning.conductor import Conductor
from vizsla.tuning.study import Study
from vizsla.tuning.trials import TrialRecord, best_of, write_leaderboard
from vizsla.tuning.waiting import wait_for


def conclude(conductor: Conductor, records: list[TrialRecord], stop: StopRequest) -> None:
    """Write leaderboard, best recipe and bundle of a study's `records`.

    Raises `WorkError` where no trial has a result or the bundle cannot be made, `Interrupted`
    after a signal.
    """
    folder, objectives = conductor.folder, conductor.objectives
    write_leaderboard(folder, records, objectives)
    best = best_of(records, objectives[0])
    if best is None:
        failed = [one for one in records if one.reason]
        why = f" The last failed because {failed[-1].reason}" if failed else ""
        raise WorkError(
            f"No trial of {folder.path} has come to a result.{why} "
            f"Go on with: vizsla tune --resume {folder.path}"
        )
    write_text(folder.best_recipe, Study(folder).recipe_of(best).to_toml())
    if best.owner == conductor.owner:
        conductor.observer.on_bundle_begun(best)
        _make_bundle(conductor, best, stop)
    else:
        shutil.rmtree(folder.bundle, ignore_errors=True)  # of what is no longer the best
        conductor.observer.on_note(
            f"the best trial, {best.number}, ran on the machine {best.host}; its bundle is made in "
            "the study's folder there"
        )


def write_findings(study: Study) -> list[Finding]:
    """What rules say about the study; what is new is written down."""
    path, findings = study.folder.path / "findings.jsonl", study.findings()
    told = {(line["rule"], line["where"]) for line in read_lines(path)}
    new = [one.to_dict() for one in findings if (one.rule, one.where) not in told]
    if new:
        append_lines(path, new)
    return findings


def _make_bundle(conductor: Conductor, best: TrialRecord, stop: StopRequest) -> None:
    """Evaluate and export the best trial's weights, and put the bundle in the study's folder."""
    folder = conductor.folder
    run = folder.trial(best.number)
    if not run.is_finished:
        facts = run.facts()
        job = Job(facts["data"]["source"], facts["recipe"], str(run.path.resolve()), train=False)
        end = wait_for(conductor.engine, job, stop)
        if end.kind != "finished":
            raise WorkError(
                f"The bundle of trial {best.number} could not be made: "
                f"{end.facts.get('reason', end.kind)} Go on with: "
                f"vizsla tune --resume {folder.path}"
            )
    scratch = folder.path / ".bundle.part"
    shutil.rmtree(scratch, ignore_errors=True)
    if best.status == "stopped":  # with a bundle of its own it would be finished, and it goes on
        run.bundle.rename(scratch)
    else:
        shutil.copytree(run.bundle, scratch)
    shutil.rmtree(folder.bundle, ignore_errors=True)
    scratch.rename(folder.bundle)
