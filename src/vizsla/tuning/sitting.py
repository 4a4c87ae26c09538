"""A study from its settings to its result: begun or taken up again, screened, run, written.

One sitting is one process's work on a study. Its folder holds everything between two of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import StorageInternalError

from vizsla.checksum import crc_of
from vizsla.data.catalogue import Catalogue
from vizsla.data.sources import open_source
from vizsla.data.splits import divide
from vizsla.engines.local import LocalEngine
from vizsla.errors import InputError, RunError, SettingError, StorageError
from vizsla.settings import Recipe, Settings
from vizsla.training.stopping import StopRequest, stop_requests
from vizsla.tuning.conclusion import conclude, write_findings
from vizsla.tuning.conductor import Conductor
from vizsla.tuning.events import StudyObserver, StudyObservers, StudyState
from vizsla.tuning.folder import StudyFolder
from vizsla.tuning.samplers import build_pruner, build_sampler, grid_size
from vizsla.tuning.screening import ranking_of, screen
from vizsla.tuning.settings import MONITORS, OBJECTIVES, StudySettings
from vizsla.tuning.space import Choices, Range, Space, read_space
from vizsla.tuning.storage import heal_journal, open_database, open_storage
from vizsla.tuning.study import Study
from vizsla.tuning.warm_start import known_trials
from vizsla.version import __version__

# What a sitting may change of a study that it takes up.
_CHANGEABLE = ("trials", "timeout", "study_patience", "jobs")
# Attributes of Optuna's study: what machines that share it must agree on, and the models kept.
_SHARED, _MODELS = "vizsla", "models"


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
    if settings.warm_start is not None:  # to be found from any folder
        settings = settings.replace(warm_start=str(Path(settings.warm_start).resolve()))
    space = read_space(search)
    objectives = settings.objectives(Settings(**base).monitor)
    fixed = _base(base, space, objectives)
    seed = int(fixed.get("seed", 0))
    build_sampler(settings, space, seed, len(objectives))  # refuses early, as what follows does
    _check_screen(settings, space)
    if settings.storage is not None:
        open_database(settings.storage)
    catalogue = divide(open_source(data), seed)
    known_trials(settings, space, fixed, objectives, catalogue)
    name = settings.name or str(fixed.get("model") or _first_model(space))
    folder = StudyFolder.create(studies, name)
    folder.write_facts(
        {
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "objectives": list(objectives),
            "search": {name: _in_toml(dimension) for name, dimension in space.items()},
            "recipe": fixed,
            "study": settings.model_dump(exclude_unset=True, exclude_none=True),
            "name_in_storage": settings.name or folder.name,
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
    return _Sitting(folder, settings, observers).run(catalogue, new=True)


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
    catalogue = divide(open_source(facts["data"]["source"]), int(facts["recipe"].get("seed", 0)))
    if catalogue.fingerprint(divided=True) != facts["data"]["division"]:
        raise RunError(
            f"The pictures of {facts['data']['source']} are not those that the study {path} began "
            "with, so that new trials would not compare with old ones. Put them back, or tune anew."
        )
    return _Sitting(folder, settings, observers).run(catalogue, new=False)


@dataclass
class _Sitting:
    folder: StudyFolder
    settings: StudySettings
    observers: Iterable[StudyObserver]

    def run(self, catalogue: Catalogue, new: bool) -> Study:
        facts = self.folder.facts()
        observer = StudyObservers(self.observers)
        space, state = read_space(facts["search"]), self._state(facts)
        with self.folder.locked(), stop_requests() as stop:
            heal_journal(self.folder)
            if not new:  # a changed budget is the study's from now on
                changed = self.settings.model_dump(exclude_unset=True, exclude_none=True)
                self.folder.write_facts({**facts, "study": changed})
            with (
                self._storage_errors(),
                LocalEngine(self.settings.jobs, self.folder.logs) as engine,
            ):
                study = self._optunas(facts, new)
                observer.on_study(self.folder, space, state)
                engine.warm_up()
                space = self._screened(study, space, facts, catalogue, engine, stop, observer)
                self._equip(study, space, facts, catalogue, observer)
                conductor = Conductor(
                    self.folder, study, self.settings, space, facts["recipe"],
                    facts["data"]["source"], tuple(state.objectives), engine, observer, state,
                )  # fmt: skip
                conclude(conductor, conductor.conduct(stop), stop)
        result = Study(self.folder)
        observer.on_result(result, write_findings(result))
        return result

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """What a database that has gone away raises, as a sentence."""
        try:
            yield
        except StorageInternalError as error:
            raise StorageError(
                f"The study's storage failed: {' '.join(str(error).split())} Go on with: "
                f"vizsla tune --resume {self.folder.path}"
            ) from error

    def _state(self, facts: Mapping[str, Any]) -> StudyState:
        timeout_s, begun = self.settings.timeout_s, time.monotonic()
        limit = self.settings.trial_limit
        if self.settings.sampler == "grid":
            size = grid_size(read_space(facts["search"]))
            limit = min(self.settings.trials or size, size)
        return StudyState(
            objectives=tuple(facts["objectives"]),
            limit=limit,
            deadline=None if timeout_s is None else begun + timeout_s,
            slots=self.settings.jobs,
            begun=begun,
        )

    def _optunas(self, facts: Mapping[str, Any], new: bool) -> optuna.Study:
        """Optuna's study: made, joined, or opened again."""
        storage, name = open_storage(self.folder, self.settings.storage)
        trials = self.folder.path / "trials"
        if not new and trials.is_dir() and name not in optuna.get_all_study_names(storage):
            raise RunError(
                f"The storage of {self.folder.path} has no study {name!r}, though its trials are "
                "here; put the journal or database back."
            )
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=[
                "maximize" if OBJECTIVES[one] else "minimize" for one in facts["objectives"]
            ],
            load_if_exists=True,
        )
        try:
            _agree(study, facts)
        except SettingError:
            if new:
                shutil.rmtree(self.folder.path, ignore_errors=True)
            raise
        return study

    def _screened(
        self,
        study: optuna.Study,
        space: Space,
        facts: Mapping[str, Any],
        catalogue: Catalogue,
        engine: LocalEngine,
        stop: StopRequest,
        observer: StudyObserver,
    ) -> Space:
        """The space with those models alone that a linear probe ranks first; a study is screened
        once, since Optuna's choices do not change on the way."""
        models = space.get("model")
        if self.settings.screen is None or not isinstance(models, Choices):
            return space
        kept = study.user_attrs.get(_MODELS)
        if kept is None:
            ranking = ranking_of(self.folder) or screen(
                self.folder, models.values, facts["recipe"], catalogue, engine, stop,
                observer.on_note,
            )  # fmt: skip
            kept = [one.model for one in ranking if one.value is not None][: self.settings.screen]
            observer.on_screened(ranking, kept)
            # Another machine may have been at it, and quicker.
            kept = study.user_attrs.get(_MODELS) or kept
            study.set_user_attr(_MODELS, kept)
        return {**space, "model": Choices(tuple(one for one in models.values if one in kept))}

    def _equip(
        self,
        study: optuna.Study,
        space: Space,
        facts: Mapping[str, Any],
        catalogue: Catalogue,
        observer: StudyObserver,
    ) -> None:
        """Give Optuna's study its sampler and pruner, and what is known from an earlier study."""
        recipe, count = facts["recipe"], len(facts["objectives"])
        trials = len(study.get_trials(deepcopy=False))
        seed = int(recipe.get("seed", 0))
        if self.settings.sampler != "grid" and (trials or self.settings.storage is not None):
            # Neither a second sitting nor a second machine draws what the first has drawn.
            machine = crc_of(facts["id"]) if self.settings.storage is not None else 0
            seed = int(np.random.SeedSequence([seed, trials, machine]).generate_state(1)[0])
        study.sampler = build_sampler(self.settings, space, seed, count)
        study.pruner = build_pruner(self.settings, count, _most_epochs(space, recipe))
        if not trials:
            objectives = tuple(facts["objectives"])
            try:
                known = known_trials(self.settings, space, recipe, objectives, catalogue)
            except InputError as error:  # it fitted before the screening, or has gone since
                observer.on_note(f"begins without what was known: {error}")
            else:
                study.add_trials(known)


def _agree(study: optuna.Study, facts: Mapping[str, Any]) -> None:
    """Of machines that share a study all search the same; the first says what."""
    shared = {
        "search": facts["search"],
        "recipe": facts["recipe"],
        "objectives": facts["objectives"],
        "division": facts["data"]["division"],
    }
    shared = json.loads(json.dumps(shared))
    before = study.user_attrs.get(_SHARED)
    if before is None:
        study.set_user_attr(_SHARED, shared)
        return
    differ = [key for key in shared if before.get(key) != shared[key]]
    if differ:
        raise SettingError(
            f"The study {study.study_name!r} was begun with another "
            f"{' and another '.join(differ)}; go on with the same, or begin another study."
        )


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
