"""Asking a server for answers, from Python: `Client("http://127.0.0.1:8080").predict("dog.jpg")`.

A picture is sent as its file is; arrays and Pillow images are sent as PNG, which loses nothing, so
that the answer is the one that the bundle's own predictor gives. Only where PNG is more than the
server reads, as of a large photograph, they are sent as JPEG, which loses next to nothing. Several
pictures travel in as few requests as the server's limits allow, and are read as they are sent: a
folder of any length does not fill the memory. What becomes of a picture before it is sent is
`outgoing.py`'s.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, overload
from urllib.parse import urlsplit

from vizsla.errors import PictureError, SettingError, VizslaError, WorkError
from vizsla.extras import require
from vizsla.records import Prediction, RankedClass
from vizsla.serving.outgoing import Fetcher, Outgoing, Picture, Pictures, called, outgoing, path_of
from vizsla.words import duration

_UNREADY = 503
_LONGEST_WAIT_S = 10.0
_MOST_IN_ONE = 32  # pictures; more would only bring a request nearer to its deadline
_ROOM_FOR_HEADERS = 512  # bytes that a part of a multipart body needs beside its picture
_OF_PICTURES = (400, 413, 415, 422)


class Client:
    """Asks the server at `address`. Safe to use from several threads; connections are kept alive.

    `token` is what the server was started with; `timeout_s` is the longest wait for an answer;
    a request that the server was too busy for, or whose connection broke, is sent `retries` times
    more, after the wait that the server asks for.

    >>> with Client("http://127.0.0.1:8080") as client:  # doctest: +SKIP
    ...     client.predict("doberman.jpg").class_name
    'Doberman_pinscher'
    """

    def __init__(
        self, address: str, token: str | None = None, timeout_s: float = 30, retries: int = 2
    ) -> None:
        self.address = _checked_address(address)
        if timeout_s <= 0:
            raise SettingError(f"timeout_s is {timeout_s}, but must be more than 0.")
        if retries < 0:
            raise SettingError(f"retries is {retries}, but must be at least 0.")
        if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
            raise SettingError("token must be one line of printable ASCII characters.")
        self._httpx = require("httpx2", "serve", "Client")
        self._timeout_s = timeout_s
        self._retries = retries
        self._has_token = token is not None
        headers = {"Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token.strip()}"
        # A proxy of the environment cannot reach this machine's own loopback.
        local = urlsplit(self.address).hostname in ("127.0.0.1", "localhost", "::1")
        self._http = self._httpx.Client(
            base_url=self.address, headers=headers, timeout=timeout_s, trust_env=not local
        )
        self._fetcher = Fetcher(self._httpx, timeout_s)
        # Also of a client that is dropped unclosed: Client(…).predict(…) leaves no connection open.
        self._close = weakref.finalize(self, _closed, self._http, self._fetcher)
        self._limits: dict[str, int] | None = None
        self._limits_lock = threading.Lock()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. A closed client answers no more."""
        self._close()

    @overload
    def predict(self, picture: Picture, top_k: int = 5) -> Prediction: ...

    @overload
    def predict(self, picture: Pictures, top_k: int = 5) -> list[Prediction]: ...

    def predict(self, picture: Picture | Pictures, top_k: int = 5) -> Prediction | list[Prediction]:
        """The answer for one picture, or for each of a list.

        A picture is a path, a URL (a text that begins with http:// or https://; fetched from
        here), the bytes of a file, a Pillow image, or an array (height, width, 3), or (height,
        width) for grey, of bytes or of floats in 0 to 1.

        Raises `PictureError` for one that cannot be read, sent or decoded, and names it; in a list
        the first such ends the whole: `predict_each` goes on. Raises `SettingError` for a wrong
        token or `top_k`, and `WorkError` where no server answers or the server could not.
        """
        if isinstance(picture, list | tuple):
            answers = []
            for answer in self.predict_each(picture, top_k):
                if isinstance(answer, PictureError):
                    raise answer
                answers.append(answer)
            return answers
        sent = outgoing(picture, called(picture), self._fetcher, self._most_bytes)
        facts = self._ask(
            "POST",
            "/invocations",
            params={"top_k": _checked_top_k(top_k)},
            content=sent.content,
            headers={"Content-Type": sent.content_type},
            name=sent.name,
        )
        return _prediction(facts, path_of(picture), self.address)

    def predict_each(
        self, pictures: Pictures, top_k: int = 5
    ) -> Iterator[Prediction | PictureError]:
        """The answer for each picture in turn; the error stands in its place for one that has
        none, and costs no other its answer. Raises as `predict` does for all else."""
        _checked_top_k(top_k)
        waiting: list[tuple[Picture, Outgoing | PictureError]] = []
        held = 0
        for number, picture in enumerate(pictures, start=1):
            limits = self._server_limits()
            name = called(picture, number, len(pictures))
            try:
                sent: Outgoing | PictureError = outgoing(
                    picture, name, self._fetcher, self._most_bytes
                )
            except PictureError as error:
                sent = error
            room = 0 if isinstance(sent, PictureError) else len(sent.content) + _ROOM_FOR_HEADERS
            if waiting and (
                held + room > limits["body_bytes"] or len(waiting) >= limits["pictures"]
            ):
                yield from self._answers(waiting, top_k)
                waiting, held = [], 0
            waiting.append((picture, sent))
            held += room
        if waiting:
            yield from self._answers(waiting, top_k)

    def model(self) -> dict[str, Any]:
        """What the server says of its model: name, classes, input, engine, metrics, limits."""
        return self._ask("GET", "/v1/model")

    def ping(self) -> bool:
        """Whether a server answers there and is ready; False of a closed client."""
        try:
            return not self._http.is_closed and bool(self._http.get("/ping").status_code == 200)
        except self._httpx.HTTPError:
            return False

    def metrics(self) -> str:
        """The server's counters, as Prometheus reads them."""
        return str(self._sent("GET", "/metrics", headers={"Accept": "text/plain"}).text)

    def _answers(
        self, group: list[tuple[Picture, Outgoing | PictureError]], top_k: int
    ) -> Iterator[Prediction | PictureError]:
        """The answers for a group that fits into one request."""
        sent = [one for _, one in group if isinstance(one, Outgoing)]
        answers = iter(self._several(sent, top_k))
        for picture, one in group:
            answer = one if isinstance(one, PictureError) else next(answers)
            if isinstance(answer, PictureError):
                yield answer
            else:
                yield _prediction(answer, path_of(picture), self.address)

    def _several(self, sent: list[Outgoing], top_k: int) -> list[dict[str, Any] | PictureError]:
        if not sent:
            return []
        files = [
            ("pictures", (f"{number}", one.content, one.content_type))
            for number, one in enumerate(sent)
        ]
        try:
            facts = self._ask(
                "POST", "/invocations", params={"top_k": top_k}, files=files, name=sent[0].name
            )
        except PictureError as error:
            if len(sent) == 1:
                return [error]
            # The whole was refused: one by one, each has its own answer or error.
            return [one for single in sent for one in self._several([single], top_k)]
        if len(sent) == 1:
            return [facts]
        entries = facts.get("predictions")
        if not isinstance(entries, list) or len(entries) != len(sent):
            raise _strange(self.address)
        return [
            _picture_error(one.name, entry, self.address)
            if isinstance(entry, dict) and "error" in entry
            else entry
            for one, entry in zip(sent, entries, strict=True)
        ]

    def _most_bytes(self) -> int:
        """The most that a picture may have, alone in its request."""
        return self._server_limits()["body_bytes"]

    def _server_limits(self) -> Mapping[str, int]:
        """The bytes and pictures that one request may carry; asked for once."""
        with self._limits_lock:
            if self._limits is None:
                told = self.model().get("limits", {})
                try:
                    self._limits = {
                        # The last boundary of a multipart body is in this, too.
                        "body_bytes": int(told["body_bytes"]) - _ROOM_FOR_HEADERS,
                        "pictures": max(1, min(_MOST_IN_ONE, int(told["pictures"]))),
                    }
                except (KeyError, TypeError, ValueError):
                    raise _strange(self.address) from None
            return self._limits

    def _ask(self, method: str, path: str, name: str = "", **options: Any) -> dict[str, Any]:
        """The object that the server answers with."""
        answer = self._sent(method, path, name, **options)
        try:
            facts = answer.json()
        except ValueError:
            facts = None
        if not isinstance(facts, dict):
            raise _strange(self.address)
        return facts

    def _sent(self, method: str, path: str, name: str = "", **options: Any) -> Any:
        """The response of a request that went well, after as many tries as are allowed."""
        for left in range(self._retries, -1, -1):
            try:
                answer = self._http.request(method, path, **options)
            except (self._httpx.ConnectError, self._httpx.ConnectTimeout) as error:
                raise WorkError(
                    f"Nothing answers at {self.address} ({error}). Start a server with "
                    "vizsla serve BUNDLE, or give its address."
                ) from None
            except self._httpx.TimeoutException:
                raise WorkError(
                    f"{self.address} gave no answer within {duration(self._timeout_s)}. Raise "
                    "timeout_s, or see whether the server is overloaded."
                ) from None
            except self._httpx.RequestError as error:
                # A kept connection that the server closed at that moment: a new one may do.
                if not left:
                    raise WorkError(
                        f"The connection to {self.address} broke ({error or type(error).__name__})."
                    ) from None
                continue
            if answer.status_code == 200:
                return answer
            if answer.status_code != _UNREADY or not left:
                raise self._error(answer, name)
            time.sleep(min(_wait_s(answer, self._retries - left), self._timeout_s))
        raise AssertionError("the last try returns or raises")

    def _error(self, answer: Any, name: str) -> VizslaError:
        """What a refusal means to the caller."""
        try:
            code, sentence = _refusal(answer.json())
        except (ValueError, KeyError, TypeError):
            return WorkError(
                f"{self.address} answered {answer.status_code} {answer.reason_phrase}, and not as "
                "vizsla's server does. See whether the address is right, and what stands between."
            )
        if answer.status_code == 401:
            cure = "is not the server's" if self._has_token else "is missing: Client(…, token=…)"
            return SettingError(f"The token {cure}. {self.address} says: {sentence}")
        if code == "bad_query" or answer.status_code in (403, 404, 405, 406):
            return SettingError(f"{self.address} says: {sentence}")
        if answer.status_code in _OF_PICTURES and name:
            return PictureError(f"{name}: {sentence}", code)
        return WorkError(f"{self.address} says: {sentence}")


def _closed(http: Any, fetcher: Fetcher) -> None:
    http.close()
    fetcher.close()


def _checked_address(address: str) -> str:
    """The address with its scheme and without a slash at its end."""
    whole = address.strip() if "://" in address else f"http://{address.strip()}"
    try:
        parts = urlsplit(whole)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        valid = valid and whole.isprintable() and not (parts.query or parts.fragment)
        (parts.hostname or "").encode("idna")
    except ValueError:  # a port that is no number, or a name that no machine can have
        valid = False
    if not valid:
        raise SettingError(
            f"{address!r} is no address of a server; it looks like http://127.0.0.1:8080."
        )
    return whole.rstrip("/")


def _checked_top_k(top_k: int) -> int:
    if top_k < 1:
        raise SettingError(f"top_k is {top_k}, but must be at least 1.")
    return top_k


def _wait_s(answer: Any, tried: int) -> float:
    """The wait that the server asks for, or one that doubles with every try."""
    try:
        asked = float(answer.headers.get("Retry-After", ""))
    except ValueError:
        asked = 0.5 * 2**tried
    return min(max(0.0, asked), _LONGEST_WAIT_S)  # in this order NaN becomes 0


def _refusal(told: Any) -> tuple[str, str]:
    """Code and sentence of one of the server's errors. Raises `KeyError` or `TypeError` where it is
    none of its own."""
    return str(told["error"]["code"]), str(told["error"]["message"])


def _picture_error(name: str, entry: Any, address: str) -> PictureError:
    """Why one picture of several has no answer."""
    try:
        code, sentence = _refusal(entry)
    except (KeyError, TypeError):
        raise _strange(address) from None
    return PictureError(f"{name}: {sentence}", code)


def _prediction(facts: Any, path: str | None, address: str) -> Prediction:
    """The record that an answer is. Raises `WorkError` for one of another form."""
    try:
        ranking = tuple(
            RankedClass(str(one["label"]), str(one["class_name"]), float(one["confidence"]))
            for one in facts["top_k"]
        )
        return Prediction(
            str(facts["predicted_label"]),
            str(facts["class_name"]),
            float(facts["confidence"]),
            ranking,
            path,
        )
    except (KeyError, TypeError, ValueError):
        raise _strange(address) from None


def _strange(address: str) -> WorkError:
    return WorkError(
        f"{address} answered in a form that this client does not know. See whether it is a server "
        "of vizsla, and of this version."
    )
