"""The client gets from a server what the bundle's own predictor answers, or a sentence."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vizsla.bundle.predictor import Predictor, load_bundle
from vizsla.data.synthetic import DrawnDataset
from vizsla.errors import PictureError, SettingError, WorkError
from vizsla.records import Prediction
from vizsla.runs.folder import RunFolder
from vizsla.serving import Client, outgoing

# What a scripted server does with one request: status, headers, body; None hangs up.
Scripted = tuple[int, dict[str, str], bytes] | None


@pytest.fixture(scope="module")
def predictor(finished_run: RunFolder) -> Predictor:
    return load_bundle(finished_run.path)


@pytest.fixture(scope="module")
def paths(dogs: DrawnDataset) -> list[Path]:
    return sorted((dogs.folder / "test").rglob("*.jpg"))


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.address) as one:
        yield one


@contextlib.contextmanager
def _scripted(answer: Callable[[BaseHTTPRequestHandler], Scripted]) -> Iterator[str]:
    """A real HTTP server on loopback that answers as it is told; its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told = answer(self)
            if told is None:
                self.close_connection = True
                return
            status, headers, body = told
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # a client that has seen enough leaves
                self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def _close(left: Prediction, right: Prediction) -> bool:
    same = [one.label for one in left.top_k] == [one.label for one in right.top_k]
    return same and left.confidence == pytest.approx(right.confidence, abs=1e-5)


def _error(status: int, code: str, message: str, **headers: str) -> Scripted:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    return status, headers, body


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "bytearray", "Pillow", "array"])
def test_every_form_of_a_picture_gets_the_predictors_answer(
    client: Client, predictor: Predictor, paths: list[Path], kind: str
) -> None:
    path = paths[0]
    with Image.open(path) as image:
        picture: Any = {
            "path": path,
            "text": str(path),
            "bytes": path.read_bytes(),
            "bytearray": bytearray(path.read_bytes()),
            "Pillow": image,
            "array": np.asarray(image),
        }[kind]
        answer = client.predict(picture)
        expected = predictor.predict(image if kind in ("Pillow", "array") else path)
    assert _close(answer, expected)
    assert answer.path == (str(path) if kind in ("path", "text") else None)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (40, 50, 3), (40, 50, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
def test_arrays_of_bytes_and_of_floats_are_one_picture(
    client: Client, predictor: Predictor, shape: tuple[int, ...], dtype: Any
) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    array = (values / 255).astype(dtype) if dtype in (np.float32, np.float64) else values
    plain = values[:, :, 0] if shape[-1] == 1 else values
    assert _close(client.predict(array.astype(dtype)), predictor.predict(Image.fromarray(plain)))


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "L", "I;16", "1"])
def test_pillow_image_of_any_mode_is_sent_without_loss(
    client: Client, predictor: Predictor, mode: str
) -> None:
    image = Image.linear_gradient("L").resize((80, 60))
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    assert _close(client.predict(image), predictor.predict(image))


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((3, 40, 50), np.uint8), r"of shape \(3, 40, 50\), but must be \(height"),
        (np.zeros((2, 40, 50, 3), np.uint8), "Give several as a list"),
        (np.zeros((0, 50, 3), np.uint8), r"of shape \(0, 50, 3\)"),
        (np.full((4, 4, 3), 255.0), "with values from 255 to 255, but they must lie in 0 to 1"),
        (np.full((4, 4, 3), -0.5), "must lie in 0 to 1"),
        (np.full((4, 4, 3), np.nan), "must lie in 0 to 1"),
        (np.full((4, 4, 3), 256), "must lie in 0 to 255"),
        (np.full((4, 4, 3), "a"), "is an array of <U1"),
    ],
)
def test_array_that_is_no_picture_is_told(client: Client, array: Any, sentence: str) -> None:
    with pytest.raises(PictureError, match=sentence):
        client.predict(array)


def test_what_can_be_no_picture_is_a_mistake_of_the_program(client: Client) -> None:
    with pytest.raises(TypeError, match="and no int"):
        client.predict(3)  # type: ignore[call-overload]


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut off"])
def test_bad_picture_is_told_by_its_name(client: Client, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(PictureError, match=r"bad\.jpg"):
        client.predict(tmp_path / "bad.jpg")
    with pytest.raises(PictureError, match="The picture"):
        client.predict(content)


def test_missing_picture_is_told_by_its_path(client: Client, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"nowhere\.jpg: there is no such file"):
        client.predict(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize(("top_k", "shown"), [(1, 1), (2, 2), (9, 3)])
def test_ranking_is_as_long_as_asked_for(
    client: Client, paths: list[Path], top_k: int, shown: int
) -> None:
    assert len(client.predict(paths[0], top_k).top_k) == shown
    assert [len(one.top_k) for one in client.predict(paths[:2], top_k)] == [shown] * 2


def test_ranking_of_nothing_is_refused(client: Client, paths: list[Path]) -> None:
    with pytest.raises(SettingError, match="top_k is 0"):
        client.predict(paths[0], 0)
    with pytest.raises(SettingError, match="top_k is 0"):
        client.predict(paths, 0)


def test_list_is_answered_in_order_in_few_requests(
    client: Client, predictor: Predictor, paths: list[Path]
) -> None:
    many: list[Any] = [*paths * 7, paths[0].read_bytes(), str(paths[1])]
    assert len(many) > 2 * 32  # of a chunk
    before = _requests(client)
    answers = client.predict(many)
    assert _requests(client) - before == -(-len(many) // 32)
    assert [answer.path for answer in answers[: len(paths)]] == [str(path) for path in paths]
    for answer, path in zip(answers, paths * 7):
        assert _close(answer, predictor.predict(path))
    assert _close(answers[-2], predictor.predict(paths[0]))
    assert client.predict([]) == []
    (single,) = client.predict([paths[0]])
    assert _close(single, predictor.predict(paths[0]))


def _requests(client: Client) -> float:
    """How many requests for answers the server has counted."""
    lines = [line for line in client.metrics().splitlines() if "/invocations" in line]
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("vizsla_requests_total")
    )


def test_one_bad_picture_costs_no_other_its_answer(
    client: Client, predictor: Predictor, paths: list[Path], tmp_path: Path
) -> None:
    missing = tmp_path / "nowhere.jpg"
    many: list[Any] = [*paths[:2], b"no picture", missing, np.zeros((2, 2, 2)), b"", *paths[2:]]
    answers = list(client.predict_each(many))
    for answer, picture in zip(answers, many, strict=True):
        if isinstance(picture, Path) and picture != missing:
            assert isinstance(answer, Prediction)
            assert _close(answer, predictor.predict(picture))
        else:
            assert isinstance(answer, PictureError)
    assert str(answers[2]).startswith(f"Picture 3 of {len(many)}: ")
    assert "nowhere.jpg" in str(answers[3])
    assert f"Picture 5 of {len(many)} is an array" in str(answers[4])
    assert str(answers[5]) == f"Picture 6 of {len(many)} is empty."
    assert isinstance(answers[2], PictureError)
    assert answers[2].code == "not_a_picture"  # the server's
    with pytest.raises(PictureError, match="Picture 3 of"):
        client.predict(many)


def test_list_is_cut_below_the_servers_limits(
    start_server: Any, finished_run: RunFolder, predictor: Predictor, tmp_path: Path
) -> None:
    server = start_server(finished_run.bundle, "--body-mb", "0.05", "--max-pictures", "5")
    noise = np.random.default_rng(0)
    pictures: list[Any] = [
        noise.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (60, 80, 200, 90, 100)
    ] + [np.zeros((8, 8), np.uint8)] * 13
    with Client(server.address) as client:
        answers = list(client.predict_each(pictures))
    assert isinstance(answers[2], PictureError)  # 120 kB: too large, by itself
    assert "Picture 3 of 18" in str(answers[2])
    for at, (answer, picture) in enumerate(zip(answers, pictures, strict=True)):
        if at != 2:
            assert isinstance(answer, Prediction)
            assert _close(answer, predictor.predict(Image.fromarray(picture)))


def test_image_whose_png_the_server_would_refuse_is_answered_all_the_same(
    start_server: Any, finished_run: RunFolder, predictor: Predictor, paths: list[Path]
) -> None:
    server = start_server(finished_run.bundle, "--body-mb", "1.5")
    with Image.open(paths[0]) as dog:
        smooth = np.asarray(dog.convert("RGB").resize((1200, 900)), np.int16)
    noise = np.random.default_rng(0).integers(-6, 7, smooth.shape)
    photograph = Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
    as_png = io.BytesIO()
    photograph.save(as_png, "PNG")
    expected = predictor.predict(photograph)
    with Client(server.address) as client:
        answers = [client.predict(photograph), client.predict(np.asarray(photograph))]
        answers += client.predict([photograph, paths[0]])[:1]
        for answer in answers:
            assert answer.class_name == expected.class_name
            assert answer.confidence == pytest.approx(expected.confidence, abs=0.02)
        with pytest.raises(PictureError, match="larger than 1.5 MB") as caught:
            client.predict(as_png.getvalue())  # a file goes as it is
    assert caught.value.code == "body_too_large"


def test_group_that_is_refused_as_a_whole_is_asked_one_by_one(paths: list[Path]) -> None:
    limits = {"limits": {"body_bytes": 10**6, "pictures": 64}}
    answer = {"predicted_label": "1", "class_name": "a", "confidence": 1.0, "top_k": []}
    lengths: list[int] = []

    def smaller_than_it_says(request: BaseHTTPRequestHandler) -> Scripted:
        if request.path == "/v1/model":
            return 200, {}, json.dumps(limits).encode()
        lengths.append(int(request.headers["Content-Length"]))
        if lengths[-1] > 1500:
            return _error(413, "body_too_large", "Above 1.5 kB.")
        return 200, {}, json.dumps(answer).encode()

    pictures: list[Any] = [b"x" * 1000, b"x" * 2000, b"x" * 900]
    with _scripted(smaller_than_it_says) as address, Client(address) as client:
        answers = list(client.predict_each(pictures))
    assert [type(one) for one in answers] == [Prediction, PictureError, Prediction]
    assert str(answers[1]) == "Picture 2 of 3: Above 1.5 kB."
    assert len(lengths) == 4


def test_url_is_fetched_here_and_without_the_token(
    start_server: Any, finished_run: RunFolder, predictor: Predictor, paths: list[Path]
) -> None:
    content = paths[0].read_bytes()
    asked: list[dict[str, str]] = []

    def web(request: BaseHTTPRequestHandler) -> Scripted:
        asked.append(dict(request.headers))
        if request.path == "/moved.jpg":
            return 302, {"Location": "/dog.jpg"}, b""
        return (200, {}, content) if request.path == "/dog.jpg" else (404, {}, b"")

    token = "a-token-of-enough-letters"
    server = start_server(finished_run.bundle, token=token)
    with _scripted(web) as address, Client(server.address, token) as client:
        for name in ("dog.jpg", "moved.jpg"):
            answer = client.predict(f"{address}/{name}")
            assert _close(answer, predictor.predict(content))
            assert answer.path == f"{address}/{name}"
        with pytest.raises(PictureError, match=r"gone\.jpg cannot be fetched: 404"):
            client.predict(f"{address}/gone.jpg")
        with pytest.raises(PictureError, match="cannot be fetched"):
            client.predict("http://a..b/dog.jpg")
    assert asked
    assert not any("authorization" in map(str.lower, headers) for headers in asked)
    with pytest.raises(PictureError, match="cannot be fetched"), Client(server.address) as client:
        client.predict(f"{address}/dog.jpg")  # nothing is there any more


def test_proxy_is_not_asked_for_what_lies_on_this_machine(
    server: Any, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with (
        _scripted(lambda _: (200, {}, paths[0].read_bytes())) as address,
        Client(server.address) as client,
    ):
        assert client.predict(f"{address}/dog.jpg").top_k


def test_url_is_fetched_up_to_a_size(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "LARGEST_FETCH_BYTES", 1000)
    with (
        _scripted(lambda _: (200, {}, b"x" * 5000)) as address,
        pytest.raises(PictureError, match="is larger than 1 kB"),
    ):
        client.predict(f"{address}/dog.jpg")


def test_model_ping_and_metrics(client: Client, predictor: Predictor, paths: list[Path]) -> None:
    assert client.ping() is True
    facts = client.model()
    names = [one["class_name"] for one in facts["classes"]]
    assert names == [label.name for label in predictor.facts.classes]
    client.predict(paths[0])
    assert "vizsla_requests_total" in client.metrics()


def test_token_is_sent_and_its_want_is_told(
    start_server: Any, finished_run: RunFolder, paths: list[Path]
) -> None:
    server = start_server(finished_run.bundle, token="a-token-of-enough-letters")
    with Client(server.address, "a-token-of-enough-letters") as client:
        assert client.predict(paths[0]).top_k
        assert client.predict(paths[:2])
    with Client(server.address) as client:
        assert client.ping() is True  # needs none
        with pytest.raises(SettingError, match=r"The token is missing: Client\(…, token=…\)"):
            client.predict(paths[0])
        with pytest.raises(SettingError, match="The token is missing"):
            client.model()
    with (
        Client(server.address, "another-token-altogether") as client,
        pytest.raises(SettingError, match="The token is not the server's"),
    ):
        client.predict(paths)


def test_threads_may_share_a_client(
    client: Client, predictor: Predictor, paths: list[Path]
) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(client.predict, paths * 4))
    for answer, path in zip(answers, paths * 4, strict=True):
        assert _close(answer, predictor.predict(path))


def test_connection_is_kept(client: Client, paths: list[Path]) -> None:
    sockets = []
    for _ in range(5):
        client.predict(paths[0])
        pool = client._http._transport._pool
        sockets.append([id(one) for one in pool.connections])
    assert len(sockets[0]) == 1
    assert all(one == sockets[0] for one in sockets)


def test_nobody_there_is_told_with_the_way_out(paths: list[Path]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with Client(address) as client:
        assert client.ping() is False
        with pytest.raises(WorkError, match=rf"Nothing answers at {address}.*vizsla serve BUNDLE"):
            client.predict(paths[0])


def test_busy_server_is_asked_again_after_the_wait_it_names(paths: list[Path]) -> None:
    answer = {"predicted_label": "1", "class_name": "a", "confidence": 1.0, "top_k": []}
    times: list[float] = []

    def busy_twice(request: BaseHTTPRequestHandler) -> Scripted:
        times.append(time.monotonic())
        if len(times) < 3:
            return _error(503, "overloaded", "Too many.", **{"Retry-After": "1"})
        return 200, {}, json.dumps(answer).encode()

    with _scripted(busy_twice) as address, Client(address) as client:
        assert client.predict(paths[0]).class_name == "a"
    assert len(times) == 3
    assert all(later - earlier >= 0.99 for earlier, later in zip(times, times[1:], strict=False))


def test_wait_that_makes_no_sense_is_none(paths: list[Path]) -> None:
    answer = {"predicted_label": "1", "class_name": "a", "confidence": 1.0, "top_k": []}
    times: list[float] = []

    def busy_once(request: BaseHTTPRequestHandler) -> Scripted:
        times.append(time.monotonic())
        if len(times) == 1:
            return _error(503, "overloaded", "Too many.", **{"Retry-After": "NaN"})
        return 200, {}, json.dumps(answer).encode()

    with _scripted(busy_once) as address, Client(address) as client:
        assert client.predict(paths[0]).class_name == "a"


def test_server_that_stays_busy_is_given_up_in_its_own_words(paths: list[Path]) -> None:
    times: list[float] = []

    def busy(request: BaseHTTPRequestHandler) -> Scripted:
        times.append(0)
        return _error(503, "overloaded", "12 pictures wait.", **{"Retry-After": "0"})

    with (
        _scripted(busy) as address,
        Client(address, retries=3) as client,
        pytest.raises(WorkError, match=r"says: 12 pictures wait\."),
    ):
        client.predict(paths[0])
    assert len(times) == 4


def test_broken_connection_is_tried_again(paths: list[Path]) -> None:
    answer = {"predicted_label": "1", "class_name": "a", "confidence": 1.0, "top_k": []}
    asked: list[str] = []

    def hang_up_once(request: BaseHTTPRequestHandler) -> Scripted:
        asked.append(request.path)
        return None if len(asked) == 1 else (200, {}, json.dumps(answer).encode())

    with _scripted(hang_up_once) as address, Client(address) as client:
        assert client.predict(paths[0]).class_name == "a"
    with (
        _scripted(lambda _: None) as address,
        Client(address, retries=1) as client,
        pytest.raises(WorkError, match="The connection to .* broke"),
    ):
        client.predict(paths[0])


def test_silent_server_is_given_up_in_time(paths: list[Path]) -> None:
    def sleep(request: BaseHTTPRequestHandler) -> Scripted:
        time.sleep(2)
        return None

    with (
        _scripted(sleep) as address,
        Client(address, timeout_s=0.3) as client,
        pytest.raises(WorkError, match="no answer within 300 ms"),
    ):
        client.predict(paths[0])


@pytest.mark.parametrize(
    ("told", "kind", "sentence"),
    [
        ((502, {}, b"<h1>Bad Gateway</h1>"), WorkError, "answered 502 Bad Gateway, and not as"),
        ((200, {}, b"<h1>Welcome</h1>"), WorkError, "in a form that this client does not know"),
        ((200, {}, b"{}"), WorkError, "in a form that this client does not know"),
        ((200, {"Content-Encoding": "gzip"}, b"{}"), WorkError, "The connection to .* broke"),
        ((502, {}, b'{"error": "Bad Gateway"}'), WorkError, "answered 502 Bad Gateway, and not as"),
        ((200, {}, b"[1]"), WorkError, "in a form that this client does not know"),
        (_error(500, "internal_error", "A mistake."), WorkError, r"says: A mistake\."),
        (_error(504, "deadline_exceeded", "Too late."), WorkError, r"says: Too late\."),
        (_error(404, "not_found", "Nothing here."), SettingError, r"says: Nothing here\."),
        (_error(400, "bad_query", "top_k is odd."), SettingError, r"says: top_k is odd\."),
        (_error(413, "body_too_large", "Above 16 MB."), PictureError, r"jpg: Above 16 MB\."),
        (_error(415, "unsupported_media_type", "No."), PictureError, r"jpg: No\."),
    ],
)
def test_refusals_become_our_errors(
    paths: list[Path], told: Scripted, kind: type[Exception], sentence: str
) -> None:
    with (
        _scripted(lambda _: told) as address,
        Client(address) as client,
        pytest.raises(kind, match=sentence),
    ):
        client.predict(paths[0])


@pytest.mark.parametrize(
    "address",
    [
        "", "ftp://a", "http://", "http://a:port", "http://a:0", "http://a?b", "http://a\0",
        "http://a..b",
    ],
)  # fmt: skip
def test_address_that_is_none_is_told(address: str) -> None:
    with pytest.raises(SettingError, match="is no address of a server"):
        Client(address)


def test_client_that_is_dropped_leaves_no_connection(server: Any, paths: list[Path]) -> None:
    with _scripted(lambda _: (200, {}, paths[0].read_bytes())) as address:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert Client(server.address).predict([paths[0], f"{address}/dog.jpg"])
            gc.collect()
        assert not told


def test_closed_client_is_not_ready(server: Any) -> None:
    client = Client(server.address)
    assert client.ping() is True
    client.close()
    assert client.ping() is False


def test_address_may_lack_its_scheme(server: Any, paths: list[Path]) -> None:
    with Client(server.address.removeprefix("http://") + "/") as client:
        assert client.address == server.address
        assert client.ping() is True


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"token": "two\nlines"}, "token must be one line"),
        ({"token": "tökén"}, "token must be one line"),
        ({"token": " "}, "token must be one line"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        Client("http://127.0.0.1:8080", **options)


def test_png_of_a_photograph_loses_nothing() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    sent = outgoing.outgoing(pixels, "it", None, lambda: 0)  # type: ignore[arg-type]
    with Image.open(io.BytesIO(sent.content)) as image:
        assert np.array_equal(np.asarray(image), pixels)
