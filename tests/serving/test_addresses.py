"""Which addresses pictures may be fetched from, and how fetching ends."""

from __future__ import annotations

import base64
import http.server
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizsla.serving.addresses import check_allowed
from vizsla.serving.refusals import Refusal

PREFIXES = ("https://pictures.example/dogs/", "http://127.0.0.1:9000/")


@pytest.mark.parametrize(
    "url",
    [
        "https://pictures.example/dogs/a.jpg",
        "https://PICTURES.example:443/dogs/x/y.jpg?size=2",
        "http://127.0.0.1:9000/any",
    ],
)
def test_what_lies_under_a_prefix_is_allowed(url: str) -> None:
    check_allowed(url, PREFIXES)  # raises where it is refused
    with pytest.raises(Refusal):
        check_allowed(url, ())


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.example/dogs/a.jpg",
        "https://pictures.example/cats/a.jpg",
        "https://pictures.example/dogs",
        "https://pictures.example:444/dogs/a.jpg",
        "https://pictures.example.evil.example/dogs/a.jpg",
        "https://pictures.example@evil.example/dogs/a.jpg",
        "https://evil.example/https://pictures.example/dogs/a.jpg",
        "https://pictures.example/dogs/../secret",
        "https://pictures.example/dogs/%2e%2e/secret",
        "https://pictures.example/dogs/..%2fsecret",
        "https://pictures.example/dogs/..\\secret",
        "https://pictures.example//dogs/a.jpg",
        "http://127.0.0.1:90000/any",
        "http://127.0.0.1/any",
        "http://[::1/any",
        "file:///etc/passwd",
        "ftp://pictures.example/dogs/a.jpg",
        "",
    ],
)
def test_everything_else_is_refused(url: str) -> None:
    with pytest.raises(Refusal) as refused:
        check_allowed(url, PREFIXES)
    assert refused.value.code == "url_refused"


@given(st.text(max_size=60))
def test_any_text_is_judged_without_failing(text: str) -> None:
    for url in (text, f"https://pictures.example/{text}", f"https://{text}/dogs/a.jpg"):
        try:
            check_allowed(url, PREFIXES)
        except Refusal:
            continue
        assert url.lower().startswith(("https://pictures.example", "http://127.0.0.1:9000/"))


class _Pictures(http.server.BaseHTTPRequestHandler):
    picture = b""

    def do_GET(self) -> None:
        if self.path == "/dogs/elsewhere":
            self.send_response(302)
            self.send_header("Location", "/dogs/a.jpg")
            self.end_headers()
            return
        self.send_response(200 if self.path == "/dogs/a.jpg" else 404)
        body = b"" if self.path != "/dogs/a.jpg" else self.picture
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


def test_allowed_picture_is_fetched_and_answered_as_if_it_were_sent(
    start_server: Any, finished_run: Any, elsewhere: Any, picture: bytes
) -> None:
    place = elsewhere(type("Handler", (_Pictures,), {"picture": picture}))
    server = start_server(finished_run.bundle, "--allow-url", f"{place}/dogs/")

    def asked(*items: Any) -> Any:
        body = json.dumps({"images": items}).encode()
        return server.post(body, "application/json").json()["predictions"]

    sent, fetched, missing, moved, other = asked(
        base64.b64encode(picture).decode(),
        {"url": f"{place}/dogs/a.jpg"},
        {"url": f"{place}/dogs/none.jpg"},
        f"{place}/dogs/elsewhere",
        {"url": f"{place}/cats/a.jpg"},
    )
    assert fetched == sent
    assert missing["error"]["code"] == moved["error"]["code"] == "url_failed"
    assert other["error"]["code"] == "url_refused"
