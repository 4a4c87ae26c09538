"""Beginning with what an earlier study found."""

from __future__ import annotations

from pathlib import Path

from optuna.trial import FrozenTrial, TrialState, create_trial

from vizsla.data.catalogue import Catalogue
from vizsla.errors import SettingError
from vizsla.tuning.folder import StudyFolder
from vizsla.tuning.samplers import distribution
from vizsla.tuning.settings import StudySettings
from vizsla.tuning.space import Space
from vizsla.tuning.study import Study
from vizsla.tuning.trials import KNOWN, TrialRecord, ranked

# Of a study on other pictures, whose figures do not compare, so many of the best are tried first.
_TRIED_FIRST = 3


def known_trials(
    settings: StudySettings, space: Space, objectives: tuple[str, ...], catalogue: Catalogue
) -> list[FrozenTrial]:
    """What the study of `warm_start` found: on the same pictures and objective its trials, as if
    they were this study's; else its best settings, to be tried first."""
    if settings.warm_start is None:
        return []
    earlier = Study(StudyFolder.open(Path(settings.warm_start)))
    finished = [one for one in earlier.records if one.status == "finished"]
    fitting = [one for one in finished if _fits(one, space)]
    if not fitting:
        raise SettingError(
            f"None of the {len(finished)} finished trials of {settings.warm_start} fits this "
            "search: they have other settings, or values out of its ranges."
        )
    facts = earlier.folder.facts()
    same = facts["data"]["division"] == catalogue.fingerprint(divided=True)
    if same and tuple(facts["objectives"]) == objectives:
        return [
            create_trial(
                params={name: one.params[name] for name in space},
                distributions={name: distribution(space[name]) for name in space},
                values=[one.values[name] for name in objectives],
                user_attrs={KNOWN: earlier.folder.name},
            )
            for one in fitting
        ]
    return [
        create_trial(
            state=TrialState.WAITING, params={name: one.params[name] for name in space},
            distributions={name: distribution(space[name]) for name in space},
        )
        for one in ranked(fitting, earlier.objectives[0])[:_TRIED_FIRST]
    ]  # fmt: skip


def _fits(record: TrialRecord, space: Space) -> bool:
    """Whether the trial's settings are within the space."""
    return all(
        name in record.params and dimension.holds(record.params[name])
        for name, dimension in space.items()
    )
