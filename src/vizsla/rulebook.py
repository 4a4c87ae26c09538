"""Rules by name: what every rule is, and rules from what people type.

`overfit,vanishing_gradient:threshold=1e-8,my_rules.py:Mine`: a comma divides rules, a colon a rule
from its settings; a piece that is only `name=value` is one more setting of the rule before it.
Users' own rules, classes and functions in a file, come in by the same door as the built-in ones.
Which rules there are, and what they judge, is with the debugger and the profiler.
"""

from __future__ import annotations

import inspect
import re
import runpy
import traceback
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vizsla.errors import SettingError, nearest
from vizsla.findings import Finding, Rule, Severity
from vizsla.settings import SettingsBase

_SETTING = re.compile(r"\s*([A-Za-z_]\w*)\s*=(.*)", re.DOTALL)
_OWN = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)(?P<rest>(?::.*)?)", re.DOTALL)

RuleLike = str | Rule[Any] | Callable[[Any], Iterable[Finding]] | type


class BaseRule(SettingsBase):
    """A rule as a frozen settings model: parameters are fields with defaults, ranges and help.

    `name` is what people type. A subclass overrides `judge`, a pure function of what was recorded.
    """

    name: ClassVar[str]

    @abstractmethod
    def judge(self, record: Any) -> Iterable[Finding]:
        """Findings, none when all is well. Keeps no state and writes nothing."""

    def finding(
        self,
        meaning: str,
        advice: str,
        *,
        severity: Severity = "warning",
        where: str | None = None,
        measured: float | None = None,
        threshold: float | None = None,
        **evidence: Any,
    ) -> Finding:
        """A finding of this rule; more evidence as keywords (plain numbers, texts and lists, since
        it is written as JSON), of which those that are None are left out."""
        known = {key: value for key, value in evidence.items() if value is not None}
        return Finding(
            self.name, severity, where or "training", meaning, advice, measured, threshold, known
        )


@dataclass(frozen=True)
class FunctionRule:
    """A function of what was recorded as a rule."""

    name: str
    function: Callable[[Any], Iterable[Finding]]

    def judge(self, record: Any) -> Iterable[Finding]:
        return self.function(record) or ()


@dataclass(frozen=True)
class RuleBook:
    """The built-in `rules` by name and in order, those of them that judge by `default`, and the
    `base` of a user's own that have settings."""

    rules: Mapping[str, type[BaseRule]]
    default: Sequence[str]
    base: type[Any]  # abstract, which type[BaseRule] may not be

    def choose(self, wanted: str | Sequence[RuleLike] | None) -> list[Rule[Any]]:
        """The rules that were asked for, by text or as they are; the default ones for None.

        Raises `SettingError` for an unknown rule or setting, with the nearest names.
        """
        if wanted is None:
            return [self.rules[name]() for name in self.default]
        pieces: list[RuleLike] = []
        for one in [wanted] if isinstance(wanted, str) else wanted:
            pieces += divided(one) if isinstance(one, str) else [one]
        rules = [rule for piece in pieces for rule in self._rules_of(piece)]
        later = {rule.name: rule for rule in rules}  # of a rule that is named twice the later holds
        return list(later.values())

    def _rules_of(self, piece: RuleLike) -> list[Rule[Any]]:
        """One piece may stand for several rules: `default`, `all`, `none`."""
        if not isinstance(piece, str):
            return [self._as_rule(piece, getattr(piece, "__name__", type(piece).__name__), {})]
        if own := _OWN.fullmatch(piece):
            made = _from_file(Path(own["file"]).expanduser(), own["name"])
            settings = _settings(own["rest"].lstrip(":"), own["name"])
            return [self._as_rule(made, own["name"], settings)]
        name, _, rest = piece.partition(":")
        name = name.strip()
        if name in ("default", "all", "none"):
            names = {"default": self.default, "all": self._complete(), "none": ()}[name]
            return [self.rules[one]() for one in names]
        chosen = self.rules.get(_snake(name))
        if chosen is None:
            raise SettingError(
                f"There is no rule {name!r}.{nearest(_snake(name), self.rules)} There are "
                f"{', '.join(self.rules)}; or a file's own, FILE.py:NAME."
            )
        return [_made(chosen, _settings(rest, name))]

    def _complete(self) -> list[str]:
        """Rules that need no setting from outside."""
        return [
            name
            for name, rule in self.rules.items()
            if not any(field.is_required() for field in rule.model_fields.values())
        ]

    def _as_rule(self, made: Any, name: str, settings: Mapping[str, str]) -> Rule[Any]:
        """A rule of what a file or a caller gives: a class, a function or a rule."""
        kind = made if inspect.isclass(made) else type(made)
        if issubclass(kind, BaseRule) and not issubclass(kind, self.base):
            raise SettingError(
                f"{name} judges something else: here rules are of {self.base.__name__}."
            )
        if inspect.isclass(made) and issubclass(made, BaseRule):
            return _made(made, settings)
        if inspect.isclass(made):
            try:
                made = made(**settings)
            except TypeError as error:
                raise SettingError(f"In the rule {name}: {error}.") from None
        elif settings:
            raise SettingError(
                f"The rule {name} takes no settings; leave out {', '.join(settings)}."
            )
        if hasattr(made, "judge"):
            if not isinstance(getattr(made, "name", None), str):
                raise SettingError(f"The rule {name} must have a name: name = {_snake(name)!r}")
            return made  # type: ignore[no-any-return]
        if callable(made):
            return FunctionRule(_snake(name), made)
        raise SettingError(
            f"{name} is no rule: it must be a class with judge(record), or a function of record."
        )


def divided(text: str) -> list[str]:
    """The rules in a text, each with its settings.

    >>> divided("overfit:patience=2,start_step=5,dead_relu")
    ['overfit:patience=2:start_step=5', 'dead_relu']
    """
    rules: list[str] = []
    for piece in text.split(","):
        if rules and _SETTING.fullmatch(piece):
            rules[-1] += f":{piece.strip()}"
        elif piece.strip():
            rules.append(piece.strip())
    return rules


def built_in_alone(text: str) -> tuple[list[str], list[str]]:
    """The built-in rules in a text, and those of users' own files, which are code."""
    pieces = divided(text)
    own = [piece for piece in pieces if _OWN.fullmatch(piece)]
    return [piece for piece in pieces if piece not in own], own


def with_absolute_paths(text: str) -> str:
    """The rules in a text, their files named so that they are found from any folder."""
    return ",".join(_with_absolute_path(piece) for piece in divided(text))


def _with_absolute_path(piece: str) -> str:
    own = _OWN.fullmatch(piece)
    path = str(Path(own["file"]).expanduser().resolve()) if own else ""
    if own is None or "," in path:  # which would divide it
        return piece
    return f"{path}:{own['name']}{own['rest']}"


def _made(rule: type[BaseRule], settings: Mapping[str, str]) -> BaseRule:
    try:
        return rule(**settings)
    except SettingError as error:
        raise SettingError(f"In the rule {rule.name}: {error}") from None
    except TypeError as error:  # a class of a user's that judges nothing
        raise SettingError(f"{rule.__name__} is no rule: {error}.") from None


def _settings(text: str, rule: str) -> dict[str, str]:
    found: dict[str, str] = {}
    # A colon inside a value (a pattern, a path) divides nothing: what follows is no name=value.
    for part in re.split(r":(?=\s*[A-Za-z_]\w*\s*=)", text) if text else []:
        match = _SETTING.fullmatch(part)
        if match is None:
            raise SettingError(
                f"In the rule {rule}: {part!r} is no setting; write {rule}:NAME=VALUE."
            )
        found[match[1]] = match[2].strip()
    return found


def _from_file(path: Path, name: str) -> Any:
    try:
        names = runpy.run_path(str(path))
    except FileNotFoundError:
        raise SettingError(f"The file of rules {path} does not exist.") from None
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        raise SettingError(
            f"The file of rules {path} cannot be run: {type(error).__name__}: {error} (line "
            f"{line})."
        ) from None
    if name not in names:
        there = [one for one in names if not one.startswith("_")]
        raise SettingError(f"{path} has no {name}.{nearest(name, there)}")
    return names[name]


def _snake(name: str) -> str:
    """`VanishingGradient` as it is typed here.

    >>> _snake("DeadRelu"), _snake("dead-relu")
    ('dead_relu', 'dead_relu')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
