"""One function per verb: the parts joined into what a person wants done.

All wiring is here; each part does its work without knowing the others. The command line and a
notebook call the same functions. Heavy imports wait until a verb needs them, so that `predict`
starts without torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vizsla.assessing.bundle import BundleEvaluation, evaluate_bundle
from vizsla.bundle.predictor import Picture, Predictor, load_bundle
from vizsla.errors import SettingError
from vizsla.records import Prediction
from vizsla.run import Run
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe, Settings

if TYPE_CHECKING:
    from vizsla.debugging.rules.choosing import RuleLike
    from vizsla.debugging.settings import DebugSettings
    from vizsla.findings import Finding
    from vizsla.profiling.settings import ProfileSettings
    from vizsla.training.events import Observer
    from vizsla.tuning.events import StudyObserver
    from vizsla.tuning.study import Study

AnyPath = str | os.PathLike[str]


def train(
    data: AnyPath | None = None,
    recipe: Recipe | None = None,
    *,
    resume: AnyPath | None = None,
    runs: AnyPath = "runs",
    debug: DebugSettings | bool = False,
    profile: ProfileSettings | bool = False,
    observers: Iterable[Observer] = (),
) -> Run:
    """Train on `data` (a folder, an archive or a manifest) by `recipe`, in a new folder in `runs`.

    With `resume`, an earlier run's folder, go on from its last checkpoint instead. Returns the
    finished run: its `bundle` answers, its `epochs()` and `evaluation("test")` tell how well. With
    `debug` tensors are captured and judged while it trains, and the run's `tensors` read them; a
    run that a finding stopped comes back with the status `stopped by rule` and no bundle. With
    `profile` the machine is sampled and each step timed, and the run's `profile` reads that.

    Raises `InputError` for whatever the caller can cure, and `Interrupted` after a signal, with
    everything saved.

    >>> run = train("dogImages.zip", Recipe(model="resnet18", epochs=5))  # doctest: +SKIP
    """
    from vizsla.debugging.observer import debugging_observers
    from vizsla.profiling.observer import profiled

    if resume is not None:
        if data is not None or recipe is not None or debug or profile:
            raise SettingError(
                "A resumed run goes on with its own data, recipe, debugger and profiler; give "
                "resume alone, or train anew without it."
            )
        run = RunFolder.open(Path(resume))
        with profiled(run, debugging_observers(run, observers)) as everyone:
            from vizsla.pipeline import TrainingJob

            return Run(TrainingJob.resumed(run, everyone).complete().path)
    if data is None:
        raise SettingError("Nothing to train on: give a folder, an archive or a manifest.")
    with profiled(profile, debugging_observers(debug, observers)) as everyone:
        from vizsla.pipeline import TrainingJob

        job = TrainingJob.started(data, recipe or Recipe(), Path(runs), everyone)
        return Run(job.complete().path)


def evaluate(model: AnyPath, data: AnyPath, *, split: str | None = None) -> BundleEvaluation:
    """Figures of a run's or bundle's model on a split of `data`.

    `split` is train, valid, test or all; by default test where there is one, else all. Data that
    comes undivided is divided as the model's training divided it, if it is the same data.
    """
    return evaluate_bundle(load_bundle(model), Path(data), split)


def predict(model: AnyPath, pictures: Sequence[Picture], *, top_k: int = 5) -> list[Prediction]:
    """The answer of a run's or bundle's model for each of `pictures`."""
    return load_bundle(model).predict(list(pictures), top_k)


def export(
    model: AnyPath,
    *,
    data: AnyPath | None = None,
    output: AnyPath | None = None,
    tell: Callable[[str, str], None] = lambda stage, message: None,
    **settings: Any,
) -> Path:
    """Make a new, verified bundle of a run's or bundle's model; the new bundle's folder.

    `settings` are those of `ExportSettings`: `to="onnx"` (or tflite, torchscript, torch-export),
    `quantize="int8"`, `prune=0.3`, `prune_method`, `recovery_epochs`, `max_loss=0.01`,
    `calibration_pictures`. `data` are the pictures to calibrate and verify on, by default those of
    the bundle's run; `output` is the new folder, by default beside the old one and named after what
    was done. `tell` hears of each stage and what happens in it.

    Raises `InputError` for whatever the caller can cure, and `WorkError` where the export fails or
    loses more than `max_loss`; nothing is then written.

    >>> export("runs/…", quantize="int8")  # doctest: +SKIP
    PosixPath('runs/…/bundle-int8')
    """
    from vizsla.exporting.settings import ExportSettings
    from vizsla.exporting.variants import export_bundle

    pictures, folder = (None if one is None else Path(one) for one in (data, output))
    return export_bundle(Path(model), ExportSettings(**settings), pictures, folder, tell)


def archive(model: AnyPath, path: AnyPath) -> Path:
    """Write a run's or bundle's model to `path` as SageMaker's hosting wants it: a `model.tar.gz`
    that answers by itself. Raises `BundleError` for a damaged bundle."""
    from vizsla.exporting.archive import write_archive

    return write_archive(Path(model), Path(path))


def serve(model: AnyPath, **settings: Any) -> None:
    """Serve a run's or bundle's model over HTTP until SIGTERM or Ctrl-C; in the main thread.

    `settings` are those of `ServeSettings`, such as `port=8080`, `token_file="token"`, `workers=2`.
    Raises `InputError` for whatever the caller can cure.
    """
    from vizsla.serving.server import serve
    from vizsla.serving.settings import ServeSettings

    serve(model, ServeSettings(**settings))


def open_run(path: AnyPath) -> Run:
    """The run in a folder, finished or not."""
    return Run(RunFolder.open(Path(path)).path)


def debug(path: AnyPath, rules: str | Sequence[RuleLike] | None = None) -> list[Finding]:
    """Judge what a run recorded, worst finding first, by `rules` or those that it was trained with.

    Raises `RunError` where nothing was captured, `SettingError` for an unknown rule or setting.
    """
    from vizsla.debugging.judging import judge_run

    return judge_run(RunFolder.open(Path(path)), rules).findings


def tune(
    data: AnyPath | None = None,
    space: Mapping[str, Any] | None = None,
    *,
    recipe: Settings | None = None,
    resume: AnyPath | None = None,
    studies: AnyPath = "studies",
    observers: Iterable[StudyObserver] = (),
    **settings: Any,
) -> Study:
    """Search `space` for the best settings of a training on `data`, in a new folder in `studies`.

    `space` maps names of settings to values: `{"lr": "1e-5..1e-2:log", "batch_size": [16, 32]}`;
    `recipe` (or `Settings`, which may contradict one another until the searched ones join them)
    gives what is not searched; `settings` are those of `StudySettings`, such as
    `trials=20`, `timeout="30m"`, `jobs=2`, `objective="accuracy,latency_ms"`,
    `prune_on="loss_not_decreasing"`. With `resume`, an earlier study's folder, go on with that;
    `trials`, `timeout`, `study_patience` and `jobs` may be given anew. Trainings run in processes
    of their own.

    Raises `InputError` for whatever the caller can cure, `WorkError` where no trial succeeds, and
    `Interrupted` after a signal, with everything saved.

    >>> study = tune("dogImages.zip", {"lr": "1e-5..1e-2:log"}, trials=10)  # doctest: +SKIP
    >>> study.best.params, study.bundle  # doctest: +SKIP
    """
    from vizsla.debugging.rules.choosing import choose_rules
    from vizsla.tuning.sitting import begin, take_up

    choose_rules(settings.get("prune_on") or "none")  # refuses early what trials would refuse
    if resume is not None:
        if data is not None or space is not None or recipe is not None:
            raise SettingError(
                "A resumed study goes on with its own data, search and recipe; give resume alone, "
                "or tune anew without it."
            )
        return take_up(Path(resume), settings, observers)
    if data is None:
        raise SettingError("Nothing to train on: give a folder, an archive or a manifest.")
    base = {} if recipe is None else recipe.model_dump(exclude_unset=True)
    return begin(data, space or {}, base, Path(studies), settings, observers)


def open_study(path: AnyPath) -> Study:
    """The study in a folder, finished or not."""
    from vizsla.tuning.study import open_study

    return open_study(Path(path))


def report(
    path: AnyPath,
    *others: AnyPath,
    price: float | str | None = None,
    output: AnyPath | None = None,
) -> Path:
    """Write the report of the run or study in a folder: one HTML file that needs nothing else.

    It lies in the folder, unless `output` names a file. With `others`, more runs, it is their
    comparison, and lies beside them. `price` is what the machine costs an hour, in any money.

    Raises `SettingError` for a price that is no number, `RunError` where a folder holds no run.
    """
    from vizsla import pages

    paid, page = pages.as_price(price), Path(output) if output is not None else None
    if others:
        return pages.write_comparison([RunFolder.open(Path(one)) for one in (path, *others)], page)
    if (Path(path) / "study.toml").is_file():
        study = open_study(path)
        pages.write_study(study, page or study.folder.report)
        return page or study.folder.report
    run = RunFolder.open(Path(path))
    pages.write_run(run, page or run.report, paid)
    return page or run.report


def plot_tensors(path: AnyPath, page: AnyPath, regex: str | None = None) -> None:
    """Write a page of pictures of a run's captured tensors: of those that `regex` is found in the
    names of, or of all that is known of the training."""
    run = open_run(path)
    if regex is None:
        from vizsla.pages import write_debugged

        write_debugged(run, Path(page))
        return
    from vizsla.debugging.report import sections_of_tensors
    from vizsla.reports.page import write_page

    sections = sections_of_tensors(run.tensors, regex)
    write_page(Path(page), run.name, f"Captured tensors like {regex}", sections)


__all__ = [
    "Predictor",
    "archive",
    "debug",
    "evaluate",
    "export",
    "load_bundle",
    "open_run",
    "open_study",
    "plot_tensors",
    "predict",
    "report",
    "serve",
    "train",
    "tune",
]
