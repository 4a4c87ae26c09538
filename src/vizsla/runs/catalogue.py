"""A run's own pictures, found again: its division of them is in the folder, they lie elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vizsla.data.catalogue import Catalogue
from vizsla.data.sources import open_source, read_manifest
from vizsla.errors import DataError, RunError
from vizsla.runs.folder import RunFolder


def reopened(run: RunFolder, facts: Mapping[str, Any]) -> Catalogue:
    """The run's own division of its pictures, on the same pictures as then.

    `facts` are those of `run.toml`. Raises `RunError` or `DataError` where the catalogue or the
    pictures have changed or are gone.
    """
    root = Path(facts["data"]["root"])
    if not root.is_dir():  # an archive whose unpacked copy has been cleared away
        root = open_source(facts["data"]["source"]).root
    catalogue = replace(read_manifest(run.catalogue, exact=True), root=root)
    folders = [label.folder for label in catalogue.classes]
    if folders != facts["data"]["classes"]:
        raise RunError(
            f"The run {run.path} was begun with {len(facts['data']['classes'])} classes and its "
            f"catalogue.csv has {len(folders)}; it has been changed. Train anew."
        )
    gone = [
        path
        for path in catalogue.paths[:: max(1, len(catalogue) // 100)]
        if not (root / path).is_file()
    ]
    if gone:
        raise DataError(
            f"The run's picture {root / gone[0]} is gone. Put the pictures back where they were, "
            "or train anew."
        )
    return replace(catalogue, split_seed=facts["data"].get("split_seed"))
