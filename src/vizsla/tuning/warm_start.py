"""Beginning with what an earlier study found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from vizsla.data.catalogue import Catalogue
from vizsla.errors import SettingError
from vizsla.tuning.folder import StudyFolder
from vizsla.tuning.samplers import distribution
from vizsla.tuning.settings import StudySettings
from vizsla.tuning.space import Space
from vizsla.tuning.study import Study
from vizsla.tuning.trials import KNOWN, TrialRecord, ranked

# Of a study whose figures do not compare so many of the best are tried first.
_TRIED_FIRST = 3


def known_trials(
    settings: StudySettings,
    space: Space,
    base: Mapping[str, Any],
    objectives: tuple[str, ...],
    catalogue: Catalogue,
) -> list[FrozenTrial]:
    """What the study of `warm_start` found: where pictures, objectives and all settings that are
    not searched are the same its trials, as if they were this study's; else its best settings, to
    be tried first. Nothing without `warm_start`."""
    if settings.warm_start is None:
        return []
    if settings.sampler == "grid":
        raise SettingError("The sampler grid tries every combination; leave warm_start out.")
    earlier = Study(StudyFolder.open(Path(settings.warm_start)))
    finished = [one for one in earlier.records if one.status == "finished"]
    fitting = [one for one in finished if _fits(one, space)]
    if not fitting:
        raise SettingError(
            f"None of the {len(finished)} finished trials of {settings.warm_start} fits this "
            "search: they have other settings, or values out of its ranges."
        )
    same = (
        earlier.folder.facts()["data"]["division"] == catalogue.fingerprint(divided=True)
        and earlier.objectives == objectives
        and earlier.base == dict(base)
        and set(earlier.space) == set(space)
    )
    if not same:
        best = ranked(fitting, earlier.objectives[0])[:_TRIED_FIRST]
        return [_as_trial(one, space, state=TrialState.WAITING) for one in best]
    attributes = {KNOWN: earlier.folder.name}
    return [
        _as_trial(
            one, space, values=[one.values[name] for name in objectives], user_attrs=attributes
        )
        for one in fitting
    ]


def _as_trial(record: TrialRecord, space: Space, **facts: Any) -> FrozenTrial:
    return create_trial(
        params={name: record.params[name] for name in space},
        distributions={name: distribution(space[name]) for name in space},
        **facts,
    )


def _fits(record: TrialRecord, space: Space) -> bool:
    """Whether the trial's settings are within the space."""
    return all(
        name in record.params and dimension.holds(record.params[name])
        for name, dimension in space.items()
    )
