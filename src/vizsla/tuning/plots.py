"""Pictures of a study, as Plotly figures: Optuna's own where it has them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from vizsla.figures import ACCENT, MUTED, dressed
from vizsla.tuning.settings import OBJECTIVES
from vizsla.tuning.trials import KNOWN, TrialRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

_STATUS_COLOURS = {"finished": ACCENT, "pruned": MUTED, "stopped": "#5b7f95", "running": "#5b7f95"}
_TITLES = {
    "accuracy": "validation accuracy",
    "macro_f1": "validation macro F1",
    "top5_accuracy": "validation top-5 accuracy",
    "loss": "validation loss",
    "latency_ms": "latency, ms",
    "size_mb": "size, MB",
}


def title_of(objective: str) -> str:
    """The objective in words."""
    return _TITLES[objective]


def history(study: optuna.Study, objective: str) -> go.Figure:
    own = _own(study)
    return dressed(
        _visualization().plot_optimization_history(
            own, target=_first(study), target_name=title_of(objective)
        )
    )


def parallel(study: optuna.Study, objective: str) -> go.Figure:
    own = _own(study)
    return dressed(
        _visualization().plot_parallel_coordinate(
            own, target=_first(study), target_name=title_of(objective)
        )
    )


def slices(study: optuna.Study, objective: str) -> go.Figure:
    own = _own(study)
    return dressed(
        _visualization().plot_slice(own, target=_first(study), target_name=title_of(objective))
    )


def contour(
    study: optuna.Study, objective: str, settings: Sequence[str] | None = None
) -> go.Figure:
    """Over two settings; without names the two that decided most, or the first two."""
    own = _own(study)
    names = list(settings) if settings is not None else _leading_pair(study, objective)
    return dressed(
        _visualization().plot_contour(
            own, params=names, target=_first(study), target_name=title_of(objective)
        )
    )


def importances(study: optuna.Study, objective: str) -> dict[str, float]:
    own = _own(study)
    done = [trial for trial in own.trials if trial.state == TrialState.COMPLETE]
    names = {name for trial in done for name in trial.params}
    varied = [name for name in names if len({trial.params[name] for trial in done}) > 1]
    if len(done) < 4 or not varied:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        try:
            found: dict[str, float] = optuna.importance.get_param_importances(
                own, evaluator=evaluator, target=_least(study, objective)
            )
        except (RuntimeError, ValueError):  # too few trials, or all alike
            return {}
    return found


def importance_bars(found: dict[str, float], objective: str) -> go.Figure:
    import plotly.graph_objects as graph

    names = list(reversed(found))
    figure = graph.Figure(
        graph.Bar(
            x=[found[name] for name in names], y=names, orientation="h", marker_color=ACCENT,
            texttemplate="%{x:.2f}",
        )
    )  # fmt: skip
    figure.update_layout(xaxis_title=f"share in deciding the {title_of(objective)}")
    return dressed(figure)


def curves(records: Sequence[TrialRecord], objective: str) -> go.Figure:
    import plotly.graph_objects as graph

    figure = graph.Figure()
    for record in sorted(records, key=lambda record: record.number):
        if record.curve:
            figure.add_scatter(
                x=list(record.curve), y=list(record.curve.values()), mode="lines+markers",
                name=f"{record.number} ({record.status})",
                line={} if record.status == "finished" else {"color": MUTED},
                opacity=1.0 if record.status == "finished" else 0.55,
            )  # fmt: skip
    figure.update_layout(xaxis_title="epoch", yaxis_title=title_of(objective))
    return dressed(figure)


def top_bars(records: Sequence[TrialRecord], objective: str) -> go.Figure:
    import plotly.graph_objects as graph

    shown = [record for record in records if objective in record.values]
    labels = [f"trial {record.number}" for record in shown]
    figure = graph.Figure(
        graph.Bar(
            x=labels,
            y=[record.values[objective] for record in shown],
            marker_color=[_STATUS_COLOURS.get(record.status, MUTED) for record in shown],
            texttemplate="%{y:.4g}",
            hovertext=[_described(record) for record in shown],
        )
    )
    values = [record.values[objective] for record in shown]
    if values:
        span = max(values) - min(values)
        low = max(0.0, min(values) - max(span, 0.02 * abs(max(values))))
        figure.update_yaxes(range=[low, max(values) + 0.3 * max(span, 0.02 * abs(max(values)))])
    figure.update_layout(yaxis_title=title_of(objective))
    return dressed(figure)


def front(
    records: Sequence[TrialRecord], best: Sequence[TrialRecord], objectives: Sequence[str]
) -> go.Figure:
    import plotly.graph_objects as graph

    one, two = objectives[0], objectives[1]
    members = {record.number for record in best}
    rest = [r for r in records if r.status == "finished" and r.number not in members]
    figure = graph.Figure()
    for name, chosen, colour in (("others", rest, MUTED), ("Pareto front", best, ACCENT)):
        figure.add_scatter(
            x=[record.values[two] for record in chosen],
            y=[record.values[one] for record in chosen],
            mode="markers", name=name, marker={"color": colour, "size": 10},
            hovertext=[_described(record) for record in chosen],
        )  # fmt: skip
    figure.update_layout(xaxis_title=title_of(two), yaxis_title=title_of(one))
    return dressed(figure)


def _described(record: TrialRecord) -> str:
    settings = ", ".join(f"{name} {_short(value)}" for name, value in record.params.items())
    return f"trial {record.number}: {settings}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _own(study: optuna.Study) -> optuna.Study:
    """A copy in memory for Optuna to draw: pruned trials count with the best value that they came
    to, for they are most of a study; what is known from elsewhere, or failed, is left blank."""
    copy = optuna.create_study(directions=study.directions)
    best = max if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else min
    for trial in study.get_trials(deepcopy=False):
        values = trial.values if trial.state == TrialState.COMPLETE else None
        if trial.state == TrialState.PRUNED and trial.intermediate_values:
            values = [best(trial.intermediate_values.values())]
        if values is None or KNOWN in trial.user_attrs:
            copy.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
            continue
        copy.add_trial(
            optuna.trial.create_trial(
                values=values, params=trial.params, distributions=trial.distributions
            )
        )
    return copy


def _first(study: optuna.Study) -> Any:
    """What Optuna is to draw: nothing to say for one objective, else the first."""
    if len(study.directions) == 1:
        return None

    def first(trial: FrozenTrial) -> float:
        return float(trial.values[0])

    return first


def _least(study: optuna.Study, objective: str) -> Any:
    """As `_first`, turned so that less is better, as importances of a target take it."""
    first = _first(study)
    if first is None or not OBJECTIVES[objective]:
        return first
    return lambda trial: -first(trial)


def _leading_pair(study: optuna.Study, objective: str) -> list[str]:
    names = list(importances(study, objective))
    for trial in study.get_trials(deepcopy=False):
        names += [name for name in trial.params if name not in names]
    return names[:2]


def _visualization() -> Any:
    import optuna.visualization

    return optuna.visualization
