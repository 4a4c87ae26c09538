"""A study from its settings to its result: begun or taken up again, screened, run, written.

One sitting is one process's work on a study. Its folder holds everything between two of them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna

from vizsla.data.catalogue import Catalogue
from vizsla.data.sources import open_source
from vizsla.data.splits import divide
from vizsla.engines.base import Engine, Job
from vizsla.engines.local import LocalEngine
from vizsla.errors import RunError, SettingError, WorkError
from vizsla.runs.files import append_lines, read_lines, write_text
from vizsla.settings import Recipe, Settings
from vizsla.tuning.conductor import Conductor
from vizsla.tuning.events import StudyObserver, StudyObservers, StudyState
from vizsla.tuning.folder import StudyFolder
from vizsla.tuning.samplers import build_pruner, build_sampler
from vizsla.tuning.screening import screen
from vizsla.tuning.settings import MONITORS, OBJECTIVES, StudySettings
from vizsla.tuning.space import Choices, Range, Space, read_space
from vizsla.tuning.storage import heal_journal, open_database, open_storage
from vizsla.tuning.study import Study
from vizsla.tuning.trials import TrialRecord, best_of, write_leaderboard
from vizsla.tuning.warm_start import known_trials
from vizsla.version import __version__

# What a sitting may change of a study that it takes up.
_CHANGEABLE = ("trials", "timeout", "study_patience", "jobs")
_SHARED = "vizsla"  # what machines that share a study must agree on, as an attribute of it


def begin(
    data: str | os.PathLike[str],
    search: Mapping[str, Any],
    base: Mapping[str, Any],
    studies: Path,
    given: Mapping[str, Any],
    observers: Iterable[StudyObserver],
) -> Study:
    """A new study; see `vizsla.api.tune`. Whatever can be wrong is said before anything is made."""
    settings = StudySettings(**given)
    space = read_space(search)
    monitor = Settings(**base).monitor
    objectives = settings.objectives(monitor)
    fixed = _base(base, space, objectives)
    build_sampler(settings, space, int(fixed.get("seed", 0)), len(objectives))  # refuses early
    _check_screen(settings, space)
    if settings.storage is not None:
        open_database(settings.storage)  # refuses early
    catalogue = divide(open_source(data), int(fixed.get("seed", 0)))
    known = known_trials(settings, space, objectives, catalogue)
    name = settings.name or str(fixed.get("model") or _first_model(space))
    folder = StudyFolder.create(studies, name)
    folder.write_facts(
        {
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "objectives": list(objectives),
            "search": {name: _in_toml(dimension) for name, dimension in space.items()},
            "recipe": fixed,
            "study": settings.model_dump(exclude_unset=True, exclude_none=True),
            "data": {
                "source": str(Path(data).expanduser().resolve()),
                "fingerprint": catalogue.fingerprint(),
                "division": catalogue.fingerprint(divided=True),
                "pictures": len(catalogue),
                "classes": len(catalogue.classes),
            },
            "versions": {"vizsla": __version__, "optuna": optuna.__version__},
        }
    )
    return _Sitting(folder, settings, observers).run(catalogue, known)


def take_up(path: Path, given: Mapping[str, Any], observers: Iterable[StudyObserver]) -> Study:
    """An earlier study, to go on with; `given` may change its budget."""
    folder = StudyFolder.open(path)
    fixed = [name for name in given if name not in _CHANGEABLE]
    if fixed:
        raise SettingError(
            f"A resumed study keeps its {', '.join(fixed)}; it can be given "
            f"{', '.join(_CHANGEABLE)} anew."
        )
    facts = folder.facts()
    settings = StudySettings(**facts["study"]).replace(**given)
    seed = int(facts["recipe"].get("seed", 0))
    catalogue = divide(open_source(facts["data"]["source"]), seed)
    if catalogue.fingerprint(divided=True) != facts["data"]["division"]:
        raise RunError(
            f"The pictures of {facts['data']['source']} are not those that the study {path} began "
            "with, so that new trials would not compare with old ones. Put them back, or tune anew."
        )
    return _Sitting(folder, settings, observers).run(catalogue, [])


@dataclass
class _Sitting:
    folder: StudyFolder
    settings: StudySettings
    observers: Iterable[StudyObserver]

    def run(self, catalogue: Catalogue, known: list[optuna.trial.FrozenTrial]) -> Study:
        facts = self.folder.facts()
        observer = StudyObservers(self.observers)
        timeout_s, begun = self.settings.timeout_s, time.monotonic()
        state = StudyState(
            objectives=tuple(facts["objectives"]),
            limit=self.settings.trial_limit,
            deadline=None if timeout_s is None else begun + timeout_s,
            slots=self.settings.jobs,
            begun=begun,
        )
        with self.folder.locked(), LocalEngine(self.settings.jobs, self.folder.logs) as engine:
            heal_journal(self.folder)
            engine.warm_up()
            space = read_space(facts["search"])
            observer.on_study(self.folder, space, state)
            space = self._screened(space, facts, catalogue, engine, observer)
            conductor = Conductor(
                self.folder, self._study(facts, space, known), self.settings, space,
                facts["recipe"], facts["data"]["source"], tuple(state.objectives), engine, observer,
                state,
            )  # fmt: skip
            records = conductor.conduct()
            self._conclude(records, conductor)
        study = Study(self.folder)
        observer.on_result(study, study.findings())
        return study

    def _study(
        self,
        facts: Mapping[str, Any],
        space: Space,
        known: list[optuna.trial.FrozenTrial],
    ) -> optuna.Study:
        storage, name = open_storage(self.folder, self.settings.storage)
        objectives, recipe = facts["objectives"], facts["recipe"]
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            sampler=build_sampler(
                self.settings, space, int(recipe.get("seed", 0)), len(objectives)
            ),
            pruner=build_pruner(self.settings, len(objectives), _most_epochs(space, recipe)),
            directions=["maximize" if OBJECTIVES[one] else "minimize" for one in objectives],
            load_if_exists=True,
        )
        self._agree(study, facts)
        if known and not study.get_trials(deepcopy=False):
            study.add_trials(known)
        return study

    def _agree(self, study: optuna.Study, facts: Mapping[str, Any]) -> None:
        """Of machines that share a study all search the same; the first says what."""
        shared = {
            "search": facts["search"],
            "recipe": facts["recipe"],
            "objectives": facts["objectives"],
            "division": facts["data"]["division"],
        }
        before = study.user_attrs.get(_SHARED)
        if before is None:
            study.set_user_attr(_SHARED, json.loads(json.dumps(shared)))
            return
        differ = [key for key in shared if before.get(key) != json.loads(json.dumps(shared[key]))]
        if differ:
            shutil.rmtree(self.folder.path, ignore_errors=True)
            raise SettingError(
                f"The study {study.study_name!r} in the storage has another "
                f"{' and another '.join(differ)}; join it with the same, or give another name."
            )

    def _screened(
        self,
        space: Space,
        facts: Mapping[str, Any],
        catalogue: Catalogue,
        engine: LocalEngine,
        observer: StudyObserver,
    ) -> Space:
        """The space with those models alone that a linear probe ranks first."""
        models = space.get("model")
        if self.settings.screen is None or not isinstance(models, Choices):
            return space
        ranking = screen(
            self.folder, models.values, facts["recipe"], catalogue, engine, observer.on_note
        )
        kept = [one.model for one in ranking if one.value is not None][: self.settings.screen]
        observer.on_screened(ranking, kept)
        # In the space's own order, so that a second screening changes nothing for Optuna.
        chosen = tuple(model for model in models.values if model in kept)
        return {**space, "model": Choices(chosen)}

    def _conclude(self, records: list[TrialRecord], conductor: Conductor) -> None:
        """Write leaderboard, best recipe, bundle and findings."""
        objectives = conductor.objectives
        write_leaderboard(self.folder, records, objectives)
        best = best_of(records, objectives[0])
        if best is None:
            failed = [one for one in records if one.reason]
            why = f" The last failed because {failed[-1].reason}" if failed else ""
            raise WorkError(
                f"No trial of {self.folder.path} has come to a result.{why} "
                f"Go on with: vizsla tune --resume {self.folder.path}"
            )
        study = Study(self.folder)
        write_text(self.folder.best_recipe, study.recipe_of(best).to_toml())
        if best.owner != conductor.owner:
            conductor.observer.on_note(
                f"the best trial, {best.number}, ran on {best.host}; its bundle is there"
            )
        else:
            conductor.observer.on_bundle_begun(best)
            self._bundle(best, conductor.engine)
        told = {(line["rule"], line["where"]) for line in read_lines(self._findings)}
        new = [one for one in study.findings() if (one.rule, one.where) not in told]
        if new:
            append_lines(self._findings, [finding.to_dict() for finding in new])

    @property
    def _findings(self) -> Path:
        return self.folder.path / "findings.jsonl"

    def _bundle(self, best: TrialRecord, engine: Engine) -> None:
        """Evaluate and export the best trial's weights, and put the bundle in the folder."""
        run = self.folder.trial(best.number)
        if not run.is_finished:
            facts = run.facts()
            job = Job(
                facts["data"]["source"], facts["recipe"], str(run.path.resolve()), train=False
            )
            number = engine.submit(job)
            end = None
            while end is None:
                ends = [event for event in engine.events(0.25) if event.job == number]
                end = next((one for one in ends if one.kind not in ("note", "trunk")), None)
            if end.kind != "finished":
                raise WorkError(
                    f"The bundle of trial {best.number} could not be made: "
                    f"{end.facts.get('reason', end.kind)} Go on with: "
                    f"vizsla tune --resume {self.folder.path}"
                )
        scratch = self.folder.path / ".bundle.part"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(run.bundle, scratch)
        shutil.rmtree(self.folder.bundle, ignore_errors=True)
        scratch.rename(self.folder.bundle)


def _base(base: Mapping[str, Any], space: Space, objectives: tuple[str, ...]) -> dict[str, Any]:
    """What all trials share: the settings given, without those that are searched."""
    fixed = {name: value for name, value in base.items() if name not in space}
    monitor = MONITORS.get(objectives[0])
    if monitor is not None and "monitor" not in space:
        fixed["monitor"] = monitor
    weights = fixed.get("weights")
    if weights not in (None, "pretrained", "none"):  # to be found from any folder
        fixed["weights"] = str(Path(weights).expanduser().resolve())
    return dict(Settings(**fixed).model_dump(exclude_unset=True, exclude_none=True))


def _most_epochs(space: Space, recipe: Mapping[str, Any]) -> int:
    """Epochs of the longest trial."""
    epochs = space.get("epochs")
    if isinstance(epochs, Choices):
        return int(max(epochs.values))
    if isinstance(epochs, Range):
        return int(epochs.high)
    return int(recipe.get("epochs", Recipe.model_fields["epochs"].default))


def _first_model(space: Space) -> str:
    models = space.get("model")
    if isinstance(models, Choices):
        return f"{models.values[0]}-and-others" if len(models.values) > 1 else models.values[0]
    return str(Recipe.model_fields["model"].default)


def _in_toml(dimension: Choices | Range) -> Any:
    """TOML knows no null, so a choice of none is written as text."""
    if isinstance(dimension, Choices):
        return ["none" if value is None else value for value in dimension.values]
    return str(dimension)


def _check_screen(settings: StudySettings, space: Space) -> None:
    models = space.get("model")
    count = len(models.values) if isinstance(models, Choices) else 1
    if settings.screen is not None and settings.screen >= count:
        raise SettingError(
            f"screen is {settings.screen}, but the search has {count} "
            f"{'model' if count == 1 else 'models'}: search over more models than are kept, such "
            "as model=resnet18,resnet50,efficientnet_b0."
        )
