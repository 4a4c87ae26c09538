"""What a hostile or broken client gets: a JSON error with a code and a sentence, never a 500, and a
server that goes on answering."""

from __future__ import annotations

import base64
import http.client
import io
import json
import random
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vizsla.serving.refusals import STATUS_OF

MANY = settings(
    max_examples=2500,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Line:
    """A connection that is kept, as one who sends ten thousand requests would."""

    def __init__(self, address: str) -> None:
        self._place = urlsplit(address).netloc
        self._line = http.client.HTTPConnection(self._place, timeout=30)

    def post(self, body: bytes, kind: str) -> tuple[int, Any]:
        headers = {"Content-Type": kind}
        try:
            self._line.request("POST", "/invocations", body, headers)
        except (http.client.HTTPException, OSError):  # closed after a refusal
            self._line.close()
            self._line.request("POST", "/invocations", body, headers)
        response = self._line.getresponse()
        return response.status, json.loads(response.read())

    def close(self) -> None:
        self._line.close()


@pytest.fixture(scope="module")
def line(server: Any) -> Iterator[Line]:
    made = Line(server.address)
    yield made
    made.close()


def _holds(status: int, answer: Any, most: int = 499) -> None:
    """An answer, or an error with a known code and a sentence."""
    assert status <= most, answer
    if status == 200:
        assert "predictions" in answer or answer["top_k"]
        return
    error = answer["error"]
    assert STATUS_OF[error["code"]] == status
    assert error["message"].strip().endswith(".")
    assert "Traceback" not in error["message"]
    assert " at 0x" not in error["message"]


@MANY
@given(body=st.binary(max_size=400))
def test_random_bodies(line: Line, body: bytes) -> None:
    status, answer = line.post(body, "image/jpeg")
    assert status < 500, answer
    _holds(status, answer)


def _mutated(body: bytes, seed: int, changes: int, cut: float) -> bytes:
    """`body` with some bytes changed, taken out or doubled, and its end cut off."""
    rng = random.Random(seed)
    data = bytearray(body[: max(1, round(len(body) * cut))])
    for _ in range(changes):
        at = rng.randrange(len(data))
        what = rng.random()
        if what < 0.7:
            data[at] = rng.randrange(256)
        elif what < 0.85:
            del data[at : at + rng.randrange(1, 9)]
            data = data or bytearray(b"\0")
        else:
            data[at:at] = data[at : at + rng.randrange(1, 40)]
    return bytes(data)


CUT = st.one_of(st.just(1.0), st.floats(0.01, 1.0))


@MANY
@given(
    name=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]),
    seed=st.integers(0, 2**32),
    changes=st.integers(0, 30),
    cut=CUT,
)
def test_mutated_pictures(
    line: Line,
    picture: bytes,
    as_format: Callable[[bytes, str], bytes],
    name: str,
    seed: int,
    changes: int,
    cut: float,
) -> None:
    status, answer = line.post(_mutated(as_format(picture, name), seed, changes, cut), "image/jpeg")
    assert status < 500, answer
    _holds(status, answer)


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(["image", "images", "instances", "b64", "url"])


@MANY
@given(
    content=st.one_of(
        VALUES,
        st.dictionaries(NAMES, st.one_of(VALUES, st.lists(VALUES, max_size=3)), min_size=1),
        st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES), min_size=1),
    ),
    seed=st.integers(0, 2**32),
    changes=st.integers(0, 3),
)
def test_random_json(line: Line, content: Any, seed: int, changes: int) -> None:
    body = json.dumps(content).encode()
    status, answer = line.post(_mutated(body, seed, changes, 1.0), "application/json")
    assert status < 500, answer
    _holds(status, answer)


@MANY
@given(seed=st.integers(0, 2**32), changes=st.integers(0, 20), cut=CUT, kind=st.text(max_size=30))
def test_mutated_multipart(
    line: Line, picture: bytes, seed: int, changes: int, cut: float, kind: str
) -> None:
    body = b""
    for name in (b"a.jpg", b"b.jpg"):
        body += b'--edge\r\nContent-Disposition: form-data; name="f"; filename="' + name
        body += b'"\r\nContent-Type: image/jpeg\r\n\r\n' + picture + b"\r\n"
    body = _mutated(body + b"--edge--\r\n", seed, changes, cut)
    # The boundary too may be anything that a header can hold.
    edge = "edge" if seed % 3 else "".join(one for one in kind if "\x20" <= one < "\x7f")
    status, answer = line.post(body, f"multipart/form-data; boundary={edge}")
    assert status < 500, answer
    _holds(status, answer)


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"", "image/jpeg", "empty_body"),
        (b"hello", "text/plain", "unsupported_media_type"),
        (b"hello", "image/svg+xml", "unsupported_media_type"),
        (b"hello", "", "unsupported_media_type"),
        (b"hello", "image/jpeg", "not_a_picture"),
        (b"{", "application/json", "bad_json"),
        (b"\xff\xfe", "application/json", "bad_json"),
        (b"[" * 100_000, "application/json", "bad_json"),
        (b"[]", "application/json", "bad_json"),
        (b'{"images": []}', "application/json", "bad_json"),
        (b'{"images": "x"}', "application/json", "bad_json"),
        (b'{"images": ["x"], "top_k": 0}', "application/json", "bad_json"),
        (b'{"images": ["x"], "top_k": true}', "application/json", "bad_json"),
        (b'{"image": "not base64!"}', "application/json", "bad_base64"),
        (b'{"image": "data:image/jpeg,abc"}', "application/json", "bad_base64"),
        (b'{"image": "http://127.0.0.1/x.jpg"}', "application/json", "url_refused"),
        (b'{"image": {"url": "file:///etc/passwd"}}', "application/json", "url_refused"),
        (b'{"image": "/etc/passwd"}', "application/json", "bad_base64"),
        (b"x", "multipart/form-data", "bad_multipart"),
        (b"x", "multipart/form-data; boundary=a", "bad_multipart"),
        (b"--a--\r\n", "multipart/form-data; boundary=a", "bad_multipart"),
    ],
)
def test_each_fault_has_its_code(server: Any, body: bytes, kind: str, code: str) -> None:
    response = server.post(body, kind)
    _holds(response.status_code, response.json())
    assert response.json()["error"]["code"] == code


def test_programs_that_pillow_would_run_are_not_reached(server: Any) -> None:
    postscript = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    assert server.post(postscript).json()["error"]["code"] == "not_a_picture"


def _png(width: int, height: int) -> bytes:
    """A small file of many pixels: one long row of zeros, packed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 999))


@pytest.mark.parametrize("size", [(20_000, 20_000), (11_000, 11_000), (2**31 - 1, 2**31 - 1)])
def test_bomb_is_refused_before_it_is_unpacked(server: Any, size: tuple[int, int]) -> None:
    started = time.monotonic()
    response = server.post(_png(*size), "image/png")
    assert response.json()["error"]["code"] == "picture_too_large"
    assert time.monotonic() - started < 2


def test_too_large_a_body_is_refused_without_being_read(server: Any) -> None:
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port), timeout=20) as client:
        client.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
            b"Content-Length: 999999999999\r\n\r\n"
        )
        answer = _all_of(client)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"body_too_large"' in answer
    assert b"connection: close" in answer.lower()


def test_too_large_a_body_in_chunks_is_refused_on_its_way(server: Any) -> None:
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port), timeout=20) as client:
        client.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
        sent = 0
        try:
            for _ in range(40):
                client.sendall(chunk)
                sent += 2**20
        except OSError:  # the server has left in the middle
            pass
        answer = _all_of(client)
    assert answer.startswith(b"HTTP/1.1 413") or sent < 40 * 2**20
    assert b"body_too_large" in answer


def test_too_many_pictures_are_refused(server: Any, picture: bytes) -> None:
    body = {"images": [base64.b64encode(picture).decode()] * 65}
    response = server.post(json.dumps(body).encode(), "application/json")
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_many_pictures")


@pytest.mark.parametrize(
    "sent",
    [
        b"not http at all\r\n\r\n",
        b"GET /ping HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40,
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    ],
)
def test_what_is_not_http_gets_json_all_the_same(server: Any, sent: bytes) -> None:
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port), timeout=20) as client:
        client.sendall(sent)
        answer = _all_of(client)
    assert answer.startswith(b"HTTP/1.1 4")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"


def test_endless_head_is_cut_off(server: Any) -> None:
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port), timeout=20) as client:
        client.sendall(b"GET /ping HTTP/1.1\r\n")
        answer = b""
        for _ in range(2000):
            try:
                client.sendall(b"X-Long: " + b"x" * 8000 + b"\r\n")
            except OSError:
                break
        else:
            answer = _all_of(client)
    assert not answer or b" 431 " in answer


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /pi",
        b"POST /invocations HTTP/1.1\r\nContent-Type: image/jpeg\r\nContent-Length: 99\r\n\r\nxx",
    ],
)
def test_slow_client_is_told_and_left(start_server: Any, finished_run: Any, begun: bytes) -> None:
    server = start_server(finished_run.bundle, "--read-timeout-s", "0.5")
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port), timeout=20) as client:
        started = time.monotonic()
        client.sendall(begun)
        answer = _all_of(client)
    assert 0.3 < time.monotonic() - started < 10
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"too_slow"' in answer


def test_after_all_that_it_still_answers_with_the_same_memory(server: Any, picture: bytes) -> None:
    def memory() -> int:
        with open(f"/proc/{server.process.pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

    assert server.post(picture).status_code == 200
    before = memory()
    for _ in range(300):
        server.post(picture[:500])
    assert server.post(picture).status_code == 200
    assert memory() < before + 20_000  # kilobytes
    assert "Traceback" not in server.said()


@pytest.mark.parametrize(
    ("size", "mode"), [((1, 1), "RGB"), ((3000, 1), "L"), ((1, 3000), "P"), ((40, 30), "1")]
)
def test_odd_pictures_are_answered(server: Any, size: tuple[int, int], mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    assert server.post(file.getvalue(), "image/png").status_code == 200


def _all_of(client: socket.socket) -> bytes:
    parts = []
    try:
        while part := client.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)
