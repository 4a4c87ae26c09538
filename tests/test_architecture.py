"""Imports run downward only, between the levels of the design; no module grows past 400 lines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import vizsla

ROOT = Path(vizsla.__file__).parent

# A folder or a single file of the package, and its level. Level 5 has an order of its own.
LEVELS: dict[str, float] = {
    **dict.fromkeys(
        [
            "version",
            "errors",
            "records",
            "findings",
            "figures",
            "settings",
            "extras",
            "metrics",
            "checksum",
            "observing",
            "rulebook",
            "phases",
            "thinning",
            "notes",
            "words",
            "places",
        ],
        0,
    ),
    "torchvision_compat": 0,
    "data": 1,
    **dict.fromkeys(["models", "bundle", "runs"], 2),
    "judging": 2.5,
    **dict.fromkeys(["training", "engines"], 3),
    **dict.fromkeys(
        ["tuning", "debugging", "profiling", "assessing", "exporting", "serving", "reports"], 4
    ),
    "pipeline": 5,
    "pages": 5.4,
    "run": 5.3,
    "worker": 5.2,
    "api": 5.5,
    "cli": 6,
}
MOST_LINES = 400
OF_A_BUNDLE = {"version", "errors", "records", "findings", "extras", "metrics", "checksum"}


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {_module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def _part(module: str) -> str:
    """The folder or file below the package that a module belongs to; '' is the package itself."""
    return (module.split(".") + [""])[1]


def _for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _statements(tree: ast.AST, types_too: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif types_too or not (isinstance(node, ast.stmt) and _for_types_only(node)):
            yield from _statements(node, types_too)


def imports(module: str, source: str, types_too: bool = True) -> set[str]:
    """The modules of this package that `source` imports, at its top or inside a function."""
    found: set[str] = set()
    for node in _statements(ast.parse(source), types_too):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = node.module or ""
        if node.level:
            package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]
            stem = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            base = f"{stem}.{base}".rstrip(".")
        for alias in node.names:
            deeper = f"{base}.{alias.name}"
            found.add(deeper if deeper in SOURCES else base)
    return {name for name in found if name.split(".")[0] == "vizsla"}


@cache
def _graph(types_too: bool) -> dict[str, set[str]]:
    return {
        module: imports(module, path.read_text(encoding="utf-8"), types_too)
        for module, path in SOURCES.items()
    }


def test_every_module_has_a_level() -> None:
    assert {_part(module) for module in SOURCES} - {""} <= set(LEVELS)


@pytest.mark.parametrize("module", [module for module in SOURCES if module != "vizsla"])
def test_imports_run_downward(module: str) -> None:
    own = _part(module)
    for other in _graph(types_too=True)[module]:
        part = _part(other)
        if part in ("", own):
            continue
        if LEVELS[own] == LEVELS[part] == 0:  # single files; that they make no circle is below
            continue
        assert LEVELS[part] < LEVELS[own], f"{module} imports {other}"


def test_package_itself_imports_its_version_alone() -> None:
    assert _graph(types_too=False)["vizsla"] == {"vizsla.version"}


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {
        module: {name for name in names if name in SOURCES and name not in ("vizsla", module)}
        for module, names in _graph(types_too=False).items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in graph[module]:
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_bundle_reaches_only_what_answers_need() -> None:
    for module, names in _graph(types_too=True).items():
        if _part(module) != "bundle":
            continue
        for other in names:
            allowed = _part(other) in OF_A_BUNDLE | {"bundle", ""}
            assert allowed or other in ("vizsla.data.decode", "vizsla.data.transforms"), (
                f"{module} imports {other}"
            )


def test_server_reaches_only_the_bundle_and_preprocessing() -> None:
    for module, names in _graph(types_too=True).items():
        if _part(module) != "serving":
            continue
        for other in names:
            allowed = LEVELS.get(_part(other), 0) == 0 or _part(other) in ("bundle", "serving")
            light = {f"vizsla.data.{name}" for name in ("cores", "decode", "transforms")}
            assert allowed or other in light, f"{module} imports {other}"


def test_training_never_hears_of_its_observers() -> None:
    observers = {"debugging", "profiling", "reports", "tuning"}
    for module, names in _graph(types_too=True).items():
        if _part(module) == "training":
            assert not {_part(name) for name in names} & observers


@pytest.mark.parametrize("module", SOURCES)
def test_module_stays_readable_in_length(module: str) -> None:
    lines = len(SOURCES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{module} has {lines} lines; split it by concept"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import vizsla.data.decode", {"vizsla.data.decode"}),
        ("from vizsla.data import decode", {"vizsla.data.decode"}),
        ("from vizsla.data.decode import decode", {"vizsla.data.decode"}),
        ("from . import weights", {"vizsla.models.weights"}),
        ("from .weights import read_weights", {"vizsla.models.weights"}),
        ("from ..runs import folder", {"vizsla.runs.folder"}),
        ("def f():\n    from vizsla import api", {"vizsla.api"}),
        ("import torch, numpy", set()),
    ],
)
def test_parser_of_this_test_sees_each_way_to_import(source: str, expected: set[str]) -> None:
    assert imports("vizsla.models.build", source) == expected
