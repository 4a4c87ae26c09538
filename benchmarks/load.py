"""A load client: keeps N connections busy with POSTs of pictures and times every answer.

A closed loop in a process of its own: each connection sends its next request as soon as the last
is answered. One thread, non-blocking sockets and a selector, since on two cores the client takes
its time from the server that it measures; what it took is reported. Every answer is checked: the
status, and that the label is the one that the request file is named after (`07-019.jpg`: label
019), so that an answer that went to the wrong client is seen.

    python -m benchmarks.load --port 8080 --requests FOLDER --connections 32 --seconds 10

prints a line of JSON. Where wrk is installed, `wrk_check` asks it the same as a second opinion.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child_process import REPOSITORY

_DRAIN_S = 30.0  # for answers that are still on their way at the end
_AGAIN_S = 0.05  # before a connection that failed is opened anew
_SENT, _LENGTH = re.compile(rb"HTTP/1\.[01] (\d{3})"), re.compile(rb"\r\ncontent-length: *(\d+)")


def measure_load(
    port: int, requests: Path, connections: int, seconds: float, warm_up: float, path: str
) -> dict[str, Any]:
    """Run the client in a process of its own; what it found (see `Found.facts`)."""
    command = [
        sys.executable, "-m", "benchmarks.load", "--port", str(port), "--requests", str(requests),
        "--connections", str(connections), "--seconds", str(seconds), "--warm-up", str(warm_up),
        "--path", path,
    ]  # fmt: skip
    client = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if client.returncode:
        raise SystemExit(f"the load client failed:\n{client.stderr[-2000:]}")
    facts: dict[str, Any] = json.loads(client.stdout)
    return facts


@dataclass
class Found:
    """Answers that came in while it was measured; at any time, what was right and what was not."""

    latencies_ms: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    right: int = 0  # answers at any time

    def facts(self, seconds: float, cpu_seconds: float) -> dict[str, Any]:
        """`cpu_percent` is the client's own, of one core."""
        found = np.array(self.latencies_ms or [np.nan])
        p50, p90, p99 = np.percentile(found, [50, 90, 99])
        return {
            "per_s": len(self.latencies_ms) / seconds,
            "p50_ms": float(p50),
            "p90_ms": float(p90),
            "p99_ms": float(p99),
            "max_ms": float(found.max()),
            "answers": len(self.latencies_ms),
            "answers_in_all": self.right,
            "failures": dict(self.failures),
            "cpu_percent": 100 * cpu_seconds / seconds,
        }


class _Connection:
    """One client: a request on its way, or the answer to it."""

    def __init__(self, number: int, load: _Load) -> None:
        self.load = load
        self.next = number  # connections start at different pictures
        self.opened_at = 0.0
        self.open()

    def open(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self.load.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)  # a whole request
        self.socket.setblocking(False)
        self.load.selector.register(self.socket, selectors.EVENT_READ, self)
        self.send()

    def close(self) -> None:
        self.load.selector.unregister(self.socket)
        self.socket.close()

    def send(self) -> None:
        bodies = self.load.bodies
        self.label, request = bodies[self.next % len(bodies)]
        self.next += 1
        self.answer = b""
        self.left = memoryview(request)
        self.started = time.perf_counter()
        self.write()

    def write(self) -> None:
        try:
            self.left = self.left[self.socket.send(self.left) :]
        except BlockingIOError:
            pass
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.left else 0)
        if self.load.selector.get_key(self.socket).events != events:
            self.load.selector.modify(self.socket, events, self)

    def read(self) -> bool:
        """Take what has come; whether that ends the answer."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError
        self.answer += data
        head_end = self.answer.find(b"\r\n\r\n")
        if head_end < 0:
            return False
        length = _LENGTH.search(self.answer[: head_end + 2].lower())
        if length is None:
            raise ValueError("an answer without content-length")
        return len(self.answer) >= head_end + 4 + int(length[1])

    def failure(self) -> str | None:
        """What is wrong with the whole answer."""
        head, _, body = self.answer.partition(b"\r\n\r\n")
        status = _SENT.match(head)
        if status is None or status[1] != b"200":
            return f"status {status[1].decode() if status else 'none'}"
        answered = json.loads(body)["predicted_label"]
        return None if answered == self.label else "wrong label"


class _Load:
    def __init__(self, port: int, bodies: list[tuple[str, bytes]]) -> None:
        self.port, self.bodies = port, bodies
        self.selector = selectors.DefaultSelector()

    def run(self, connections: int, seconds: float, warm_up: float) -> dict[str, Any]:
        found = Found()
        begin = time.perf_counter() + warm_up
        end = begin + seconds
        cpu_before: float | None = None
        cpu_after: float | None = None
        waiting = connections
        closed: list[tuple[float, _Connection]] = []
        for number in range(connections):
            _Connection(number, self)
        while waiting:
            now = time.perf_counter()
            if cpu_before is None and now >= begin:
                cpu_before = _cpu_seconds()
            if cpu_after is None and now >= end:
                cpu_after = _cpu_seconds()
            if now > end + _DRAIN_S:
                found.failures["no answer"] += waiting
                break
            for key, events in self.selector.select(timeout=_AGAIN_S):
                connection: _Connection = key.data
                try:
                    if events & selectors.EVENT_WRITE:
                        connection.write()
                    if not events & selectors.EVENT_READ or not connection.read():
                        continue
                    done = time.perf_counter()
                    failure = connection.failure()
                    if failure is not None:
                        found.failures[failure] += 1
                    else:
                        found.right += 1
                    if failure is None and begin <= done < end:
                        found.latencies_ms.append(1000 * (done - connection.started))
                    if done < end:
                        connection.send()
                    else:
                        waiting -= 1
                except (OSError, ValueError, KeyError) as error:
                    found.failures[f"{type(error).__name__}: {error}"[:80]] += 1
                    connection.close()
                    closed.append((time.perf_counter() + _AGAIN_S, connection))
            closed, waiting = self._open_again(closed, waiting, end, found)
        used = (_cpu_seconds() if cpu_after is None else cpu_after) - (cpu_before or 0.0)
        return found.facts(seconds, used)

    def _open_again(
        self, closed: list[tuple[float, _Connection]], waiting: int, end: float, found: Found
    ) -> tuple[list[tuple[float, _Connection]], int]:
        still = []
        for when, connection in closed:
            now = time.perf_counter()
            if now >= end:
                waiting -= 1
            elif now < when:
                still.append((when, connection))
            else:
                try:
                    connection.open()
                except OSError as error:
                    found.failures[f"{type(error).__name__}: not opened"] += 1
                    with contextlib.suppress(KeyError, ValueError):
                        connection.close()
                    still.append((now + _AGAIN_S, connection))
        return still, waiting


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def read_requests(folder: Path, path: str) -> list[tuple[str, bytes]]:
    """The label and the whole HTTP request of each picture in `folder`."""
    requests = []
    for file in sorted(folder.glob("*.jpg")):
        body = file.read_bytes()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        requests.append((file.stem.split("-")[1], head.encode() + body))
    return requests


_WRK_SCRIPT = """
local requests, at = {}, 0
init = function(args)
  for _, name in ipairs(args) do
    local file = io.open(name, "rb")
    local headers = {["Content-Type"] = "image/jpeg"}
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
    file:close()
  end
end
request = function()
  at = at % #requests + 1
  return requests[at]
end
"""


def wrk_check(
    port: int, requests: Path, connections: int, seconds: float, path: str, scratch: Path
) -> dict[str, Any] | None:
    """What wrk finds for the same load; None where it is not installed."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return None
    script = scratch / "post.lua"
    script.write_text(_WRK_SCRIPT, encoding="utf-8")
    command = [
        wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "--timeout",
        "30s", "-s", str(script), f"http://127.0.0.1:{port}{path}", "--",
        *map(str, sorted(requests.glob("*.jpg"))),
    ]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    sockets = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    )
    per_s = re.search(r"Requests/sec: +([\d.]+)", text)
    return {
        "per_s": float(per_s[1]) if per_s else 0.0,
        "p50_ms": _wrk_ms(text, "50%"),
        "p99_ms": _wrk_ms(text, "99%"),
        "failures": (int(failed[1]) if failed else 0)
        + sum(map(int, sockets.groups() if sockets else ())),
    }


def _wrk_ms(text: str, share: str) -> float:
    found = re.search(rf"^ +{share} +([\d.]+)(us|ms|s|m) *$", text, re.MULTILINE)
    return float(found[1]) * {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}[found[2]] if found else 0.0


def main() -> None:
    made = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    made.add_argument("--port", type=int, required=True)
    made.add_argument("--requests", type=Path, required=True, help="folder of NN-LABEL.jpg files")
    made.add_argument("--connections", type=int, default=32)
    made.add_argument("--seconds", type=float, default=10)
    made.add_argument("--warm-up", type=float, default=1)
    made.add_argument("--path", default="/invocations")
    options = made.parse_args()
    load = _Load(options.port, read_requests(options.requests, options.path))
    print(json.dumps(load.run(options.connections, options.seconds, options.warm_up)))


if __name__ == "__main__":
    main()
