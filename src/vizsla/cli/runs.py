"""vizsla runs: what was trained, and how runs differ."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from vizsla.errors import RunError

app = App(name="runs", help="List and compare runs.")


@app.command(name="list")
def list_(*, runs: Path = Path("runs")) -> None:
    """List the runs in a folder, oldest first.

    Parameters
    ----------
    runs
        The folder that holds them.
    """
    from rich.console import Console
    from rich.table import Table

    from vizsla.runs.folder import RunFolder, list_runs

    found = list_runs(runs)
    if not found:
        print(f"No runs in {runs}. Make one with: vizsla train PICTURES")
        return
    unread: list[RunError] = []
    # Without lines, and without the model (the name has it), a row fits 80 columns uncut.
    table = Table(box=None, pad_edge=False)
    for title in ("run", "status", "trains", "epochs", "best val", "test"):
        table.add_column(title, no_wrap=True)
    for run in found:
        try:
            recipe = RunFolder.open(run.path).facts()["recipe"]
        except RunError as error:  # one unreadable run hides no other
            unread.append(error)
            continue
        epochs = run.epochs()
        best = max((record.valid.accuracy for record in epochs), default=None)
        test = (run.evaluation("test") or {}).get("accuracy")
        table.add_row(
            run.name,
            run.status(),
            recipe.get("unfreeze", "-"),
            f"{len(epochs)}/{recipe['epochs']}" if "epochs" in recipe else "-",
            _share(best),
            _share(test),
        )
    Console(highlight=False).print(table)
    for problem in unread:
        print(f"warning: {problem}")


@app.command
def compare(*runs: Path) -> None:
    """Show the settings in which runs differ, and their figures.

    Parameters
    ----------
    runs
        Two or more runs' folders.
    """
    from rich.console import Console
    from rich.table import Column, Table

    from vizsla.runs.compare import compare_runs
    from vizsla.runs.folder import RunFolder

    if len(runs) < 2:
        raise RunError(f"Comparing needs two runs or more, and {len(runs)} were given.")
    comparison = compare_runs([RunFolder.open(path) for path in runs])
    table = Table("", *(Column(name, overflow="fold") for name in comparison.names))
    for name, row in comparison.settings.items():
        table.add_row(name, *("-" if value is None else str(value) for value in row))
    table.add_section()
    for name, figures in comparison.figures.items():
        table.add_row(name, *("-" if value is None else f"{value:.4g}" for value in figures))
    console = Console(highlight=False)
    console.print(table)
    if not comparison.same_data:
        console.print("The runs saw different pictures or splits: their figures do not compare.")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
