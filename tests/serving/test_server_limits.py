"""What one client may cost a server: no connection without end, no memory without bounds, and an
answer in JSON whatever it sends."""

from __future__ import annotations

import base64
import gzip
import http.client
import http.server
import io
import json
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import Image

from vizsla.data import decode as decoding
from vizsla.errors import SettingError
from vizsla.serving.bodies import Room
from vizsla.serving.refusals import Refusal
from vizsla.serving.server import serve
from vizsla.serving.settings import ServeSettings

HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\n"


@pytest.fixture(scope="module")
def impatient(finished_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server that waits half a second."""
    log = tmp_path_factory.mktemp("impatient") / "log"
    command = [sys.executable, "-m", "vizsla.cli", "serve", str(finished_run.bundle)]
    command += ["--port", "0", "--read-timeout-s", "0.5", "--engine", "onnxruntime"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    until = time.monotonic() + 60
    while "address" not in log.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    yield urlsplit(log.read_text().split("address")[1].split()[0])
    process.terminate()
    assert process.wait(40) == 0


def _is_left(client: socket.socket, seconds: float) -> bool:
    """Whether the server ends the connection."""
    client.settimeout(seconds)
    try:
        while client.recv(65_536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def _connected(place: Any) -> socket.socket:
    return socket.create_connection((place.hostname, place.port), timeout=20)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (HEAD % b"text/plain" + b"Content-Length: 99\r\n\r\n", b"x"),
        (b"GET /ping HTTP/1.1\r\n\r\n", b"\r\n"),
        (b"GET /ping HTTP/1.1\r\n\r\n", b"GET /pi"),
    ],
)
def test_who_goes_silent_after_an_answer_is_left(impatient: Any, first: bytes, then: bytes) -> None:
    with _connected(impatient) as client:
        client.sendall(first)
        assert client.recv(65_536).startswith(b"HTTP/1.1 ")
        client.sendall(then)
        assert _is_left(client, 5)


def test_who_takes_no_answers_is_left(impatient: Any) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((impatient.hostname, impatient.port))
        client.settimeout(1)
        assert _is_cut_off(client, b"GET /page.js HTTP/1.1\r\n\r\n" * 20, 20)


def _is_cut_off(client: socket.socket, content: bytes, seconds: float) -> bool:
    """Whether the server ends the connection of one who only sends."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            client.sendall(content)
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def test_requests_ahead_of_their_answers_are_bounded(server: Any) -> None:
    place = urlsplit(server.address)
    with _connected(place) as client:
        client.sendall(b"GET /ping HTTP/1.1\r\n\r\n" * 1000)
        assert _is_left(client, 5)
    with _connected(place) as client:  # a few are answered in their order
        client.sendall(b"GET /ping HTTP/1.1\r\n\r\n" * 5)
        answers = b""
        while answers.count(b'{"status": "ready"}') < 5:
            part = client.recv(65_536)
            assert part, answers
            answers += part


def test_trailers_without_end_are_cut_off(server: Any) -> None:
    with _connected(urlsplit(server.address)) as client:
        client.sendall(HEAD % b"image/jpeg" + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
        answer = b""
        try:
            for _ in range(300):
                client.sendall(b"X-Long: " + b"x" * 1000 + b"\r\n")
        except OSError:
            pass
        try:
            while part := client.recv(65_536):
                answer += part
        except OSError:
            pass
    assert not answer or b" 431 " in answer


def _post(server: Any, content: Any) -> tuple[int, str]:
    response = server.post(json.dumps(content).encode(), "application/json")
    return response.status_code, response.json()["error"]["code"]


def test_odd_values_are_refused_in_json(server: Any, picture: bytes) -> None:
    assert _post(server, {"image": "x", "top_k": "\ud800"}) == (400, "bad_json")
    assert _post(server, {"image": "\ud800"}) == (400, "bad_base64")
    late = server.post(picture, path="/invocations?top_k=000000001" + "9" * 5000)
    assert (late.status_code, late.json()["error"]["code"]) == (400, "bad_query")


def _peak_memory(server: Any) -> int:
    with open(f"/proc/{server.process.pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


@pytest.mark.parametrize("item", ["0", "[]", "{}", '""'])
def test_json_of_many_values_takes_no_memory(server: Any, item: str) -> None:
    before = _peak_memory(server)
    body = f'{{"images": [{",".join([item] * (4_000_000 // len(item)))}]}}'.encode()
    response = server.post(body, "application/json")
    assert response.status_code in (400, 413)
    assert _peak_memory(server) < before + 10 * len(body)


def test_base64_in_short_lines_takes_no_memory(server: Any) -> None:
    before = _peak_memory(server)
    body = json.dumps({"image": "AA " * 3_000_000}).encode()
    assert server.post(body, "application/json").status_code == 422
    assert _peak_memory(server) < before + 8 * len(body)


def _form(picture: bytes, *, end: bytes = b"--edge--\r\n") -> bytes:
    field = b'--edge\r\nContent-Disposition: form-data; name="note"\r\n\r\n' + b"b" * 300_000
    file = b'\r\n--edge\r\nContent-Disposition: form-data; name="f"; filename="a.jpg"\r\n\r\n'
    return field + file + picture + b"\r\n" + end


def test_multipart_is_not_decoded_as_the_request_says(server: Any, picture: bytes) -> None:
    started = time.monotonic()
    kind = "multipart/form-data; boundary=edge; charset=punycode"
    assert server.post(_form(picture), kind).status_code == 200
    assert time.monotonic() - started < 2


def test_half_a_multipart_body_is_refused(server: Any, picture: bytes) -> None:
    response = server.post(_form(picture, end=b""), "multipart/form-data; boundary=edge")
    assert response.json()["error"]["code"] == "bad_multipart"
    many = httpx2.post(
        server.address + "/invocations", files=[("f", (f"{at}.jpg", picture)) for at in range(65)]
    )
    assert (many.status_code, many.json()["error"]["code"]) == (413, "too_many_pictures")


def test_names_of_files_may_be_in_any_script(server: Any, picture: bytes) -> None:
    files = {"Bild": ("狗 Hündin \U0001f415.jpg", picture)}
    assert httpx2.post(server.address + "/invocations", files=files).status_code == 200


def test_bodies_of_all_requests_share_one_room() -> None:
    room = Room(ServeSettings(body_mb=300))
    with room.shared() as first, room.shared() as second:
        first.take(400 << 20)
        with pytest.raises(Refusal) as refused:
            second.take(300 << 20)
        assert refused.value.code == "overloaded"
        second.take(200 << 20)
    with room.shared() as third:
        third.take(600 << 20)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/csv", "text/csv"),
        ("text/csv;q=0.1, application/json", "application/json"),
        ("application/json;q=0.5, text/csv", "text/csv"),
        ("application/json;q=0, */*", "text/csv"),
        ("text/csv, */*", "text/csv"),
        ("*/*;q=0.1", "application/json"),
        ("text/html, */*;q=0.8", "application/json"),
        ("image/*, text/csv;q=0", None),
        ("application/json;q=0", None),
    ],
)
def test_what_is_liked_most_is_sent(
    server: Any, picture: bytes, accept: str, kind: str | None
) -> None:
    response = server.post(picture, headers={"Accept": accept})
    if kind is None:
        assert response.status_code == 406
    else:
        assert response.headers["content-type"].split(";")[0] == kind


def test_every_method_of_a_path_is_named_and_refusals_are_counted(server: Any) -> None:
    refused = httpx2.delete(server.address + "/v1/model")
    assert refused.status_code == 405
    assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
    assert server.get("/nothing").status_code == 404
    figures = server.get("/metrics").text
    assert 'vizsla_requests_total{route="other",status="404"}' in figures
    assert 'vizsla_errors_total{code="method_not_allowed"}' in figures


@pytest.mark.parametrize(
    "prefix", ["https://a.example:x/", "https://a.example:99999/", "http://[/"]
)
def test_prefix_that_can_allow_nothing_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="allow_url"):
        ServeSettings(allow_url=(prefix,))


def test_host_that_is_none_is_refused(finished_run: Any) -> None:
    with pytest.raises(SettingError, match="cannot listen"):
        serve(finished_run.bundle, ServeSettings(host="a" * 80 + ".example", no_auth=True))


def _with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times."""
    file = io.BytesIO()
    Image.new("RGB", (3000, 3000), (9, 200, 30)).save(file, "JPEG", progressive=True)
    content = file.getvalue()[:-2]
    return content + content[content.rfind(b"\xff\xda") :] * count + b"\xff\xd9"


def test_jpeg_of_endless_scans_costs_no_time(server: Any) -> None:
    assert server.post(_with_scans(20)).status_code == 200
    started = time.monotonic()
    response = server.post(_with_scans(1000))
    assert response.json()["error"]["code"] == "broken_picture"
    assert time.monotonic() - started < 1


def test_tile_larger_than_pictures_may_be_is_refused(server: Any) -> None:
    side = 11_000
    tile = zlib.compress(bytes(side) * side, 1)
    entries = [
        (256, 3, 64), (257, 3, 64), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1),
        (322, 4, side), (323, 4, side), (324, 4, 8), (325, 4, len(tile)),
    ]  # fmt: skip
    listed = b"".join(struct.pack("<HHLL", tag, kind, 1, value) for tag, kind, value in entries)
    tile += b"\0" * (len(tile) % 2)
    content = b"II*\0" + struct.pack("<L", 8 + len(tile)) + tile
    content += struct.pack("<H", len(entries)) + listed + bytes(4)
    response = server.post(content, "image/tiff")
    assert response.json()["error"]["code"] == "picture_too_large"


def test_large_pictures_are_unpacked_one_at_a_time(
    picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most = 0, 0

    def slow(image: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        return image

    monkeypatch.setattr(decoding, "to_rgb", slow)
    for largest, several in ((10, False), (10**8, True)):
        monkeypatch.setattr(decoding, "_LARGE_PIXELS", largest)
        most = 0
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(decoding.decode, [picture] * 12))
        assert (most > 1) is several


class _Slow(http.server.BaseHTTPRequestHandler):
    """Sends a little now and then, or what fills the memory when it is unpacked."""

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        try:
            if self.path == "/packed":
                self.wfile.write(gzip.compress(bytes(200 << 20)))
            if self.path == "/large":
                self.wfile.write(bytes(700_000))
            for _ in range(100 if self.path == "/slow" else 0):
                self.wfile.write(b"x")
                time.sleep(0.1)
        except OSError:
            pass

    def log_message(self, *arguments: Any) -> None:
        pass


def test_fetching_ends_with_the_deadline_and_within_bounds(
    start_server: Any, finished_run: Any, elsewhere: Any, tmp_path: Path
) -> None:
    place = elsewhere(_Slow)
    flags = ("--allow-url", f"{place}/", "--deadline-s", "2", "--body-mb", "1")
    server = start_server(finished_run.bundle, *flags)
    started = time.monotonic()
    assert _post(server, {"image": f"{place}/slow"}) == (504, "deadline_exceeded")
    assert time.monotonic() - started < 5
    before = _peak_memory(server)
    assert _post(server, {"image": f"{place}/packed"}) == (422, "not_a_picture")
    assert _peak_memory(server) < before + (50 << 20)
    body = json.dumps({"images": [f"{place}/large"] * 2}).encode()
    answers = server.post(body, "application/json").json()["predictions"]
    assert {one["error"]["code"] for one in answers} >= {"url_failed"}


def test_description_holds_for_real_answers(server: Any, picture: bytes) -> None:
    schemas = server.get("/openapi.json").json()["components"]["schemas"]
    text = base64.b64encode(picture).decode()
    body = json.dumps({"images": [text, "%%%"], "top_k": 1}).encode()
    several = server.post(body, "application/json").json()
    one = server.post(picture).json()
    for answer, name in (
        (one, "Answer"), (several, "Answers"), (several["predictions"][0], "Prediction"),
        (several["predictions"][1], "Error"),
    ):  # fmt: skip
        parts = [schemas[name], *schemas[name].get("allOf", [])]
        parts = [schemas[part["$ref"].split("/")[-1]] if "$ref" in part else part for part in parts]
        known = {key for part in parts for key in part.get("properties", {})}
        needed = {key for part in parts for key in part.get("required", [])}
        assert needed <= set(answer) <= known


def test_offer_of_another_protocol_is_passed_over(server: Any, picture: bytes) -> None:
    """As Java's client makes with its first request."""
    request = HEAD % b"image/jpeg" + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    request += b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
    request += b"Content-Length: %d\r\n\r\n" % len(picture) + picture
    with _connected(urlsplit(server.address)) as client:
        client.settimeout(5)
        for _ in range(2):
            client.sendall(request)
            response = http.client.HTTPResponse(client)
            response.begin()
            assert response.status == 200
            assert json.loads(response.read())["predicted_label"]
