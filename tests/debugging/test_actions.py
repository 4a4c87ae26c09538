"""What follows from findings: a real webhook, real commands, and nothing that holds training up."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from vizsla.debugging import actions as actions_module
from vizsla.debugging.actions import Actions, parse_actions
from vizsla.errors import SettingError
from vizsla.findings import Finding

RULES = ["overfit", "exploding_tensor"]


def finding(rule: str = "overfit", severity: Any = "warning") -> Finding:
    return Finding(rule, severity, "step 5", "It is so.", "Do this.", 0.5, 0.1, {"step": 5})


class Webhook(BaseHTTPRequestHandler):
    """Answers with the codes it is given, then 200."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(json.loads(body))  # type: ignore[attr-defined]
        codes = self.server.codes  # type: ignore[attr-defined]
        code = codes.pop(0) if codes else 200
        self.send_response(code)
        if 300 <= code < 400:
            self.send_header("Location", f"{self.server.url}/elsewhere")  # type: ignore[attr-defined]
        self.end_headers()

    def do_GET(self) -> None:
        self.server.received.append("GET")  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), Webhook)
    server.received, server.codes = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/findings"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions_module, "_TRIES_AFTER_S", (0.0, 0.05, 0.05))


def acting(wanted: list[str], reported: list[str] | None = None) -> Actions:
    return Actions(
        parse_actions(wanted, RULES), "runs/mine", lambda _: None, lambda _: None,
        [].append if reported is None else reported.append,
    )  # fmt: skip


def test_webhook_gets_the_finding_as_json(webhook: Any) -> None:
    actions = acting([f"notify={webhook.url}"])
    actions.answer(finding())
    actions.close()
    (received,) = webhook.received
    assert received["run"] == "runs/mine"
    assert (received["rule"], received["measured"], received["advice"]) == (
        "overfit", 0.5, "Do this.",
    )  # fmt: skip


def test_webhook_that_stumbles_is_tried_again(webhook: Any) -> None:
    webhook.codes += [503, 429]
    reported: list[str] = []
    actions = acting([f"notify={webhook.url}"], reported)
    actions.answer(finding())
    actions.close()
    assert len(webhook.received) == 3
    assert reported == []


@pytest.mark.parametrize(
    ("codes", "tries"), [([404], 1), ([500] * 5, 3), ([408] * 5, 3), ([302], 1), ([307], 1)]
)
def test_webhook_that_refuses_is_reported(webhook: Any, codes: list[int], tries: int) -> None:
    webhook.codes += codes
    reported: list[str] = []
    actions = acting([f"notify={webhook.url}"], reported)
    actions.answer(finding())
    actions.close()
    assert len(webhook.received) == tries
    assert str(codes[0]) in reported[0]


def test_dead_webhook_holds_nobody_up() -> None:
    reported: list[str] = []
    actions = acting(["notify=http://127.0.0.1:9/nobody"], reported)
    started = time.perf_counter()
    actions.answer(finding())
    assert time.perf_counter() - started < 0.05
    actions.close()
    assert len(reported) == 1


def test_address_of_a_webhook_is_not_told(webhook: Any) -> None:
    host = f"127.0.0.1:{webhook.server_port}"
    webhook.codes += [404]
    reported: list[str] = []
    paths = ("services/T0/secret?key=secret", "a b/secret")  # the second is no address at all
    actions = acting([f"notify=http://me:secret@{host}/{path}" for path in paths], reported)
    actions.answer(finding())
    actions.close()
    assert len(reported) == 2
    assert all(f"http://{host} failed" in one and "secret" not in one for one in reported)


def test_numbers_that_are_none_are_null_in_the_message(webhook: Any) -> None:
    nan, inf = float("nan"), float("inf")
    actions = acting([f"notify={webhook.url}"])
    actions.answer(Finding("overfit", "error", "x", "So.", "Do.", nan, 0.5, {"worst": [1.0, inf]}))
    actions.close()
    (received,) = webhook.received
    assert (received["measured"], received["threshold"]) == (None, 0.5)
    assert received["evidence"] == {"worst": [1.0, None]}


def test_what_is_not_done_in_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions_module, "_CLOSING_S", 0.2)
    reported: list[str] = []
    actions = acting(["run=sleep 3", "notify=http://127.0.0.1:9/secret"], reported)
    actions.answer(finding())
    actions.close()
    assert ["run=sleep 3 of overfit" in one for one in reported] == [True, False]
    assert "notify=http://127.0.0.1:9 of overfit was not done" in reported[1]


def test_command_gets_the_finding_on_its_input(tmp_path: Path) -> None:
    script = tmp_path / "hear.py"
    script.write_text(
        "import json, os, sys\n"
        "facts = json.load(sys.stdin)\n"
        f"open({str(tmp_path / 'heard')!r}, 'w').write(os.environ['VIZSLA_RULE'] + facts['where'])"
    )
    actions = acting([f"run={sys.executable} {script}"])
    actions.answer(finding())
    actions.close()
    assert (tmp_path / "heard").read_text() == "overfitstep 5"


def test_command_that_fails_is_reported() -> None:
    reported: list[str] = []
    actions = acting(["run=false"], reported)
    actions.answer(finding())
    actions.close()
    assert "exit code 1" in reported[0]


def test_hints_and_other_rules_call_for_nothing() -> None:
    stopped: list[Finding] = []
    actions = Actions(parse_actions(["overfit:stop"], RULES), "run", stopped.append, print, print)
    actions.answer(finding("exploding_tensor", "error"))
    actions.answer(finding(severity="info"))
    assert stopped == []
    actions.answer(finding())
    assert [one.rule for one in stopped] == ["overfit"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("halt", "must be stop, checkpoint"),
        ("stpo", "Did you mean stop"),
        ("notify=example.com", "http or https"),
        ("notify=http://", "names a host"),
        ("notify=https:foo", "names a host"),
        ("notify=http://[::1", "names a host"),
        ("notify=http://host:port/", "names a host"),
        ("run=", "names no command"),
        ("run='open", "No closing quotation"),
        ("stop=now", "takes nothing"),
        ("dead_relu:stop", "not among those that judge"),
    ],
)
def test_action_that_makes_no_sense_is_said(text: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        parse_actions([text], RULES)
