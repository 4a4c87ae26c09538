"""What follows from a finding: stop, keep a checkpoint, tell a webhook, run a command.

An action is written `stop`, `checkpoint`, `notify=URL` or `run=COMMAND`, and `RULE:` before it
keeps it to one rule. Whoever trains says how it stops and saves; webhooks and commands have a
thread of their own, so that a slow server holds nothing up. Hints (`info`) call for no action.
"""

from __future__ import annotations

import collections
import json
import math
import os
import queue
import shlex
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from vizsla.errors import SettingError, nearest
from vizsla.findings import Finding

Kind = Literal["stop", "checkpoint", "notify", "run", "call"]
Call = Callable[[Finding], Any]
_KINDS = ("stop", "checkpoint", "notify", "run")
_TRIES_AFTER_S = (0.0, 1.0, 4.0)
_REQUEST_S, _COMMAND_S, _CLOSING_S = 10.0, 600.0, 20.0
_TRY_AGAIN = (408, 429)  # and whatever is the server's own fault


@dataclass(frozen=True)
class Action:
    """One action: `target` is a URL or a command, `call` a function of the finding, and `rule` the
    only rule that it answers, if it is not to answer all."""

    kind: Kind
    target: str = ""
    rule: str | None = None
    call: Call | None = None

    def answers(self, finding: Finding) -> bool:
        return finding.severity != "info" and self.rule in (None, finding.rule)

    def __str__(self) -> str:
        """The action as it may be shown: of a URL, which may hold secrets, scheme and host."""
        if self.kind != "notify":
            return f"{self.kind}={self.target}"
        url = urlsplit(self.target)
        return f"notify={url.scheme}://{url.hostname}" + (f":{url.port}" if url.port else "")


def parse_actions(wanted: Sequence[str | Call], rules: Sequence[str]) -> list[Action]:
    """Actions from what people type, or functions as they are. Raises `SettingError`."""
    return [
        Action("call", call=one) if callable(one) else _parsed(one.strip(), rules) for one in wanted
    ]


def _parsed(text: str, rules: Sequence[str]) -> Action:
    kind, _, target = text.partition("=")
    rule = None
    if ":" in kind:
        rule, _, kind = kind.partition(":")
        if rule not in rules:
            raise SettingError(
                f"on_finding is {text!r}, but the rule {rule!r} is not among those that judge: "
                f"{', '.join(rules)}.{nearest(rule, rules)}"
            )
    if kind not in _KINDS:
        raise SettingError(
            f"on_finding is {text!r}, but must be stop, checkpoint, notify=URL or run=COMMAND."
            f"{nearest(kind, _KINDS)}"
        )
    if kind in ("stop", "checkpoint") and target:
        raise SettingError(f"on_finding is {text!r}, but {kind} takes nothing after it.")
    if kind == "notify" and not _is_webhook(target):
        raise SettingError(
            f"on_finding is {text!r}, but a webhook begins with http or https and names a host: "
            "notify=https://HOST/..."
        )
    if kind == "run":
        _arguments(text, target)
    return Action(kind, target, rule)  # type: ignore[arg-type]


def _is_webhook(target: str) -> bool:
    try:
        url = urlsplit(target)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # brackets that do not close, a port that is no number
        return False


def _arguments(text: str, command: str) -> list[str]:
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise SettingError(f"on_finding is {text!r}: {error}.") from None
    if not arguments:
        raise SettingError(f"on_finding is {text!r}, but names no command.")
    return arguments


class Actions:
    """Answers findings. `stop` and `checkpoint` are how this training does that."""

    def __init__(
        self,
        actions: Sequence[Action],
        run: str,
        stop: Call,
        checkpoint: Call,
        report: Callable[[str], None],
    ) -> None:
        self._actions, self._run, self._report = list(actions), run, report
        self._ways: dict[str, Call] = {"stop": stop, "checkpoint": checkpoint}
        self._slow: queue.Queue[tuple[Action, Finding] | None] = queue.Queue()
        self._undone: collections.deque[tuple[Action, Finding]] = collections.deque()
        self._thread: threading.Thread | None = None

    def has(self, kind: Kind) -> bool:
        return any(action.kind == kind for action in self._actions)

    def answer(self, finding: Finding) -> None:
        """Do what is to be done; returns at once."""
        for action in self._actions:
            if not action.answers(finding):
                continue
            if action.kind in self._ways:
                self._ways[action.kind](finding)
            elif action.kind in ("notify", "run"):
                self._later(action, finding)

    def calls(self, finding: Finding) -> list[Call]:
        """Functions that are to be called with a finding, in the training's own thread."""
        return [one.call for one in self._actions if one.call is not None and one.answers(finding)]

    def close(self) -> None:
        """Wait a little for what is under way, and report what is not done by then."""
        if self._thread is None:
            return
        self._slow.put(None)
        self._thread.join(_CLOSING_S)
        for action, finding in list(self._undone):
            self._report(f"on_finding {action} of {finding.rule} was not done in {_CLOSING_S:g} s")

    def _later(self, action: Action, finding: Finding) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="vizsla-actions", daemon=True)
            self._thread.start()
        self._undone.append((action, finding))
        self._slow.put((action, finding))

    def _work(self) -> None:
        while (item := self._slow.get()) is not None:
            action, finding = item
            try:
                if action.kind == "notify":
                    self._notify(action.target, finding)
                else:
                    self._execute(action.target, finding)
            except Exception as error:  # a webhook that is down stops nobody
                self._report(f"on_finding {action} failed: {_why(action, error)}")
            self._undone.popleft()

    def _notify(self, url: str, finding: Finding) -> None:
        opener = urllib.request.build_opener(_NoRedirects)
        request = urllib.request.Request(
            url, self._message(finding), {"Content-Type": "application/json"}, method="POST"
        )
        for number, wait_s in enumerate(_TRIES_AFTER_S, start=1):
            time.sleep(wait_s)
            try:
                with opener.open(request, timeout=_REQUEST_S):
                    return
            except urllib.error.HTTPError as error:
                error.close()
                heard = error.code < 500 and error.code not in _TRY_AGAIN  # and said no
                if heard or number == len(_TRIES_AFTER_S):
                    raise
            except OSError:
                if number == len(_TRIES_AFTER_S):
                    raise

    def _execute(self, command: str, finding: Finding) -> None:
        """The command gets the finding as JSON on its input, its rule and run as variables."""
        environment = {"VIZSLA_RULE": finding.rule, "VIZSLA_RUN": self._run}
        done = subprocess.run(
            shlex.split(command),
            input=self._message(finding),
            env={**os.environ, **environment},
            timeout=_COMMAND_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"it ended with exit code {done.returncode}")

    def _message(self, finding: Finding) -> bytes:
        message = _plain({"run": self._run, **finding.to_dict()})
        return json.dumps(message, allow_nan=False).encode()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A POST that is sent elsewhere would become a GET, which tells nobody anything."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _why(action: Action, error: Exception) -> str:
    """The error without the URL, which those that are not of the network may quote."""
    if isinstance(error, urllib.error.HTTPError) and 300 <= error.code < 400:
        return f"it answered with a redirect ({error.code}); give the address that it leads to"
    quotes = action.kind == "notify" and not isinstance(error, OSError)
    return type(error).__name__ if quotes else str(error)


def _plain(value: Any) -> Any:
    """The value as JSON knows it: of numbers that are none, such as NaN, null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
