"""vizsla debug: what a run's debugger captured, judged and shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from vizsla.errors import SettingError

# Names of tensors are long, and cut ones are of no use: lines may be wider than the terminal.
_UNCUT = 400

if TYPE_CHECKING:
    from vizsla.debugging.tensors import Tensors


def debug(
    run: Path,
    /,
    *,
    rule: Annotated[list[str] | None, Parameter(name=["--rule", "--rules"], negative="")] = None,
    watch: bool = False,
    tensor: str | None = None,
    plot: Path | None = None,
    frame: Path | None = None,
    tensorboard: Path | None = None,
) -> None:
    """Judge what a run's debugger captured, worst first, with advice; or show its tensors.

    Parameters
    ----------
    run
        The run's folder, of vizsla train --debug or of vizsla.debugging.watch.
    rule
        Judge by these rules alone, such as overfit:ratio_threshold=0.05; by default by those that
        the run was trained with.
    watch
        Follow a run that is still training, until it ends; also tells when it stalls.
    tensor
        Show the tensors whose names this regular expression is found in.
    plot
        Write pictures into this HTML file: of the tensors chosen, or of the whole training.
    frame
        Write what was captured into this CSV file, a row for each tensor and step.
    tensorboard
        Write TensorBoard event files into this folder.
    """
    from vizsla import api
    from vizsla.debugging.tensors import open_tensors

    rules = ",".join(rule) if rule else None
    shown = {"tensor": tensor, "plot": plot, "frame": frame, "tensorboard": tensorboard}
    _check_alone([f"--{name}" for name, value in shown.items() if value is not None], watch, rule)
    if watch:
        from vizsla.cli.debug_watch import follow

        follow(run, rules)
        return
    if all(value is None for value in shown.values()):
        _judge(run, rules)
        return
    tensors = open_tensors(run)
    if tensor is not None:
        _check_pattern(tensors, tensor)
    if plot is not None:
        api.plot_tensors(run, plot, tensor)
        print(f"pictures  {plot}")
    if frame is not None:
        tensors.to_pandas(regex=tensor).to_csv(frame, index=False)
        print(f"frame     {frame}")
    if tensorboard is not None:
        _write_events(run, tensors, tensorboard)
    if tensor is not None and plot is None and frame is None:
        _print_tensors(tensors, tensor)


def _check_alone(shown: list[str], watch: bool, rule: list[str] | None) -> None:
    """Refuse what would be ignored: watching and judging by other rules show findings alone."""
    if shown and (watch or rule):
        raise SettingError(
            f"{'--watch' if watch else '--rule'} is for findings alone; leave out "
            f"{', '.join(shown)}, or give it in a command of its own."
        )


def _judge(path: Path, wanted: str | None) -> None:
    from vizsla.cli.findings import print_findings
    from vizsla.debugging.judging import judge_run
    from vizsla.runs.folder import RunFolder

    run = RunFolder.open(path)
    print_findings(judge_run(run, wanted), run.findings())


def _check_pattern(tensors: Tensors, pattern: str) -> None:
    names = tensors.tensor_names()
    if not tensors.tensor_names(pattern):
        examples = ", ".join(names[:: max(1, len(names) // 5)][:5])
        raise SettingError(
            f"No captured tensor's name has {pattern!r} in it; there are {len(names)}, such as "
            f"{examples}."
        )


def _print_tensors(tensors: Tensors, pattern: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    columns = ("mean", "std", "l2", "min", "max", "zeros")
    for title in ("tensor", "collection", "steps", "last", *columns):
        side = "left" if title in ("tensor", "collection") else "right"
        table.add_column(title, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for name in tensors.tensor_names(pattern):
        tensor = tensors.tensor(name)
        steps = tensor.steps()
        figures = [""] * len(columns)
        if tensor.collection not in ("labels", "predictions"):
            figures = [f"{tensor.reduction_value(steps[-1], one):.4g}" for one in columns]
        table.add_row(name, tensor.collection, str(len(steps)), str(steps[-1]), *figures)
    Console(highlight=False, width=_UNCUT).print(table)


def _write_events(run: Path, tensors: Tensors, folder: Path) -> None:
    from vizsla.debugging.tensorboard import TensorBoardFiles

    files = TensorBoardFiles(run, tensors, folder)
    try:
        files.update()
    finally:
        files.close()
    print(f"events    {folder}; look at them with: tensorboard --logdir {folder}")
