"""vizsla export: a bundle made smaller, faster, or for another runtime, and verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from vizsla.exporting.settings import ExportSettings

if TYPE_CHECKING:
    from rich.console import Console


def export(
    bundle: Path,
    /,
    *,
    settings: Annotated[ExportSettings | None, Parameter(name="*")] = None,
    data: Path | None = None,
    output: Path | None = None,
    archive: Path | None = None,
) -> None:
    """Export a bundle: in int8, pruned, or for another runtime. The source stays as it is; the
    export is a bundle of its own, and is refused where it loses too much.

    Parameters
    ----------
    bundle
        A bundle's or a run's folder.
    data
        Pictures to calibrate and verify on: a folder, an archive or a manifest. By default those
        of the run that the bundle lies in.
    output
        The new bundle's folder; by default beside the old one, named after what was done.
    archive
        Also write the new bundle to this file, as model.tar.gz for SageMaker's hosting; with no
        other setting, the old one as it is.
    """
    from vizsla import api
    from vizsla.cli.console import UnbreakableConsole

    if archive is not None and settings is None and data is None and output is None:
        print(f"archive   {api.archive(bundle, archive)}")
        return
    settings = settings or ExportSettings()
    console = UnbreakableConsole(highlight=False)

    def tell(stage: str, message: str) -> None:
        console.print(f"{stage:<9} {message}", markup=False, soft_wrap=True)

    tell("source", str(bundle))
    folder = api.export(
        bundle, data=data, output=output, tell=tell, **settings.model_dump(exclude_unset=True)
    )
    _show(folder, console, tell)
    if archive is not None:
        tell("archive", str(api.archive(folder, archive)))
    tell("next", f"vizsla serve {folder}")


def _show(folder: Path, console: Console, tell: Callable[[str, str], None]) -> None:
    """What was made: the comparison with its source, and where it lies."""
    from rich.table import Table

    from vizsla.bundle.format import read_facts
    from vizsla.exporting.card import comparison_rows, described

    made = read_facts(folder).export
    verified = made["verification"]
    table = Table("", "original", "export", title=described(made))
    for row in comparison_rows(verified):
        table.add_row(*row)
    table.add_row("same answer", "", f"{verified['agreement']:.1%}")
    console.print(table)
    if made["float_layers"]:
        tell("in float", ", ".join(made["float_layers"]))
    for note in made["notes"]:
        tell("note", note)
    tell("bundle", str(folder))
    if made["format"] != "onnx":
        tell("file", str(folder / made["file"]))
