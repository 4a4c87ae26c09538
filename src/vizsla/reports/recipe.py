"""With what a run was made, and the command that makes it again."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from vizsla.errors import RunError
from vizsla.records import Section
from vizsla.reports.reading import Reading
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe
from vizsla.words import GAP


def sections_of(reading: Reading) -> list[Section]:
    """The settings, what they ran on, and how to do it again."""
    return [_settings(reading), _made_with(reading), _reproduce(reading)]


def own_settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are other than by default, in their order."""
    return {
        name: recipe[name]
        for name in [*Recipe.model_fields, *(set(recipe) - set(Recipe.model_fields))]
        if name in recipe and recipe[name] != _default(name)
    }


def train_command(
    source: str, recipe: Mapping[str, Any], observers: Mapping[str, Any] | None = None
) -> str:
    """The line that trains so again, with every setting that is not as by default, and those of
    its debugger and profiler."""
    words = ["vizsla", "train", source]
    for name, value in own_settings(recipe).items():
        words += _flags(name, value)
    for name, value in (observers or {}).items():
        words += _flags(name, value)
    return shlex.join(words)


def tune_command(source: str, recipe: Mapping[str, Any]) -> str:
    """The line that looks for a better learning rate, all else as it was."""
    words = ["vizsla", "tune", source]
    for name, value in own_settings(recipe).items():
        words += [] if name == "lr" else _flags(name, value)
    return shlex.join([*words, "--search", "lr=1e-4..1e-1:log"])


def _settings(reading: Reading) -> Section:
    recipe = reading.table("recipe")
    if not recipe:
        told = "vizsla only watched this loop" if reading.is_watched else "run.toml has no recipe"
        return Section("Settings", f"{told}, so its settings are not known.")
    own = own_settings(recipe)
    others = [name for name in Recipe.model_fields if name not in own]
    rows = tuple(
        (name, _shown(recipe.get(name)), _shown(_default(name)), _help(name))
        for name in [*own, *others]
    )
    return Section(
        "Settings",
        f"{len(own)} of {len(rows)} settings are other than by default, and come first.",
        ("setting", "value", "default", "what"),
        rows,
        quiet_rows=frozenset(range(len(own), len(rows))),
        sortable=True,
    )


def _made_with(reading: Reading) -> Section:
    rows = tuple(_facts(reading))
    if not rows:
        return Section("Versions and hardware", "run.toml says nothing of them.")
    return Section("Versions and hardware", columns=("what", "value"), rows=rows)


def _facts(reading: Reading) -> Iterator[tuple[str, str]]:
    if "created" in reading.facts:
        yield "begun", str(reading.facts["created"])
    model = reading.table("model")
    for name, words in {
        "architecture": "architecture",
        "weights": "weights from",
        "weights_sha256": "weights' SHA-256",
    }.items():
        if name in model:
            yield words, str(model[name])
    for table in ("arguments", "preprocessing"):
        found = model.get(table)
        if isinstance(found, Mapping) and found:
            yield table, ", ".join(f"{name} {_shown(value)}" for name, value in found.items())
    for table in ("versions", "hardware"):
        for name, value in reading.table(table).items():
            yield name, _shown(value)
    if reading.trunk.get("engine"):
        why = reading.trunk.get("engine_why")
        yield "frozen layers by", f"{reading.trunk['engine']}{f' ({why})' if why else ''}"


def _reproduce(reading: Reading) -> Section:
    title = "Reproduce"
    if reading.command:
        return Section(title, code=f"vizsla profile -- {reading.command}")
    if reading.is_watched:
        text = "vizsla only watched this loop: run the loop again to do it again."
        return Section(title, text)
    source, recipe = reading.table("data").get("source"), reading.table("recipe")
    if source is None or not recipe:
        return Section(title, "run.toml does not say what was trained on what.")
    lines = [_install(reading.table("versions"))]
    lines.append(train_command(str(source), recipe, _observers(reading.run)))
    text = (
        "The same version, data and settings give the same division and order of pictures; figures "
        "may differ in their last digits between machines."
    )
    if reading.status not in ("finished", "running") and not reading.ran_away:
        lines.append(shlex.join(["vizsla", "train", "--resume", str(reading.run.path)]))
        text += " The last line goes on with this run instead of beginning anew."
    return Section(title, text, code="\n".join(line for line in lines if line))


def _install(versions: Mapping[str, Any]) -> str:
    """The packages that decide figures; a build's own suffix is unknown to the package index."""
    pinned = [
        f"{name}=={str(versions[name]).partition('+')[0]}"
        for name in ("vizsla", "torch", "timm")
        if name in versions
    ]
    return shlex.join(["pip", "install", *pinned]) if pinned else ""


def _observers(run: RunFolder) -> dict[str, Any]:
    """How debugger and profiler were set, where a run had them."""
    found: dict[str, Any] = {}
    for name, read in (("debug", run.debug_settings), ("profile", run.profile_settings)):
        with contextlib.suppress(RunError, OSError):  # damaged: a training without them is the same
            found |= {} if (settings := read()) is None else {name: True, **settings}
    return found


def _flags(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [word for one in values for word in (f"--{flag}", _typed(one))]


def _typed(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _default(name: str) -> Any:
    return Recipe.model_fields[name].default if name in Recipe.model_fields else None


def _help(name: str) -> str:
    known = Recipe.model_fields.get(name)
    return (known.description or "") if known else "unknown to this version of vizsla"


def _shown(value: Any) -> str:
    if value is None:
        return GAP
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(_shown(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
