"""Pretrained weights from a hub: a small server on loopback plays one, to a real client.

The client reads its address when it is imported, so one child process goes through everything
and reports; the tests judge the report.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_CHILD = """
import hashlib, json, os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FILES, SEEN = {}, []
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        SEEN.append(f"{self.command} {self.path}")
        content = FILES.get(self.path)
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            content = b""
        else:
            self.send_header("ETag", '"' + hashlib.sha256(content).hexdigest() + '"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"

import torch
from safetensors.torch import save
from vizsla.errors import ModelError
from vizsla.models.build import build_network, rebuild
from vizsla.settings import Recipe

torch.manual_seed(7)
hub = rebuild("test_resnet", {}, 1000).state_dict()
FILES["/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"] = save(hub)


def build(model):
    SEEN.clear()
    began = time.monotonic()
    recipe = Recipe(model=model, weights="pretrained")
    try:
        network = build_network(recipe, recipe, 3)
    except ModelError as error:
        return {"error": str(error), "seconds": time.monotonic() - began, "requests": list(SEEN)}
    state = network.module.state_dict()
    return {
        "trunk": all(state[name].equal(hub[name]) for name in hub if name[:3] != "fc."),
        "head": list(state["fc.weight"].shape),
        "origin": network.weights_origin,
        "hash": network.weights_hash == hashlib.sha256(next(iter(FILES.values()))).hexdigest(),
        "requests": list(SEEN),
    }


report = {"first": build("test_resnet"), "absent": build("test_efficientnet")}
server.shutdown()
server.server_close()
report["cached"] = build("test_resnet")
report["unreachable"] = build("test_convnext")
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and not name.lower().endswith("_proxy")
    }
    environment |= {
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", _CHILD]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert result.returncode == 0, result.stderr
    outcome: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return outcome


def test_weights_of_the_hub_fill_the_trunk(report: dict[str, Any]) -> None:
    first = report["first"]
    assert "error" not in first, first
    assert first["trunk"]
    assert first["head"][0] == 3
    assert first["origin"] == "pretrained (timm/test_resnet.r160_in1k)"
    assert first["hash"]
    assert any(request.startswith("GET /timm/test_resnet") for request in first["requests"])


def test_cached_weights_are_used_without_asking_the_hub(report: dict[str, Any]) -> None:
    cached = report["cached"]
    assert "error" not in cached, cached
    assert cached["trunk"]
    assert cached["requests"] == []


@pytest.mark.parametrize("case", ["absent", "unreachable"])
def test_weights_that_cannot_be_had_are_told_with_three_ways_out(
    report: dict[str, Any], case: str
) -> None:
    message = report[case]["error"]
    assert "could not be had from http://127.0.0.1:" in message
    assert "Three ways out: connect to the network (or set HF_ENDPOINT" in message
    assert "--weights FILE.safetensors" in message
    assert "--weights none" in message


def test_hub_without_the_file_is_told_apart_from_no_hub(report: dict[str, Any]) -> None:
    assert "has no model.safetensors or pytorch_model.bin" in report["absent"]["error"]
    assert "refused" in report["unreachable"]["error"].lower()


def test_unreachable_hub_is_told_of_in_seconds(report: dict[str, Any]) -> None:
    assert report["unreachable"]["seconds"] < 10


def test_architecture_without_pretrained_weights_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from vizsla.errors import ModelError
    from vizsla.models import hub

    name = "resnet10t_of_my_own"
    with pytest.raises(ModelError, match=f"no pretrained weights for {name}.*--weights none"):
        hub.fetch_pretrained(name)


def test_forbidden_network_is_told_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    from vizsla.errors import ModelError
    from vizsla.models import hub

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="switched off by HF_HUB_OFFLINE"):
        hub.fetch_pretrained("test_efficientnet")
