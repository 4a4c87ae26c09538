"""Answers as a client reads them: JSON or CSV, and errors that are always JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vizsla.errors import PictureError
from vizsla.records import Prediction
from vizsla.serving.refusals import Refusal

# How long what a refused client still sends is thrown away, so that it gets to read the answer:
# a connection that is closed on unread bytes is reset, and the answer with it.
_LINGER_S = 1.0

Entry = Prediction | PictureError | Refusal


def wants_csv(request: Request) -> bool:
    """Whether the answer shall be CSV. Raises `Refusal` where neither JSON nor CSV will do."""
    accepted = ",".join(request.headers.getlist("accept")).strip()
    if accepted in ("", "*/*", "application/json"):
        return False
    as_json, as_csv = _liking(accepted, "application/json"), _liking(accepted, "text/csv")
    if not (as_json[0] or as_csv[0]):
        raise Refusal(
            "not_acceptable",
            f"Answers are application/json or text/csv, and not {accepted[:100]!r}.",
        )
    return as_csv > as_json


def answer(
    entries: Sequence[Entry], *, several: bool, csv_wanted: bool, model: str, ms: float
) -> Response:
    """The response for a request's pictures; of a single one it raises what went wrong."""
    if not several and not isinstance(entries[0], Prediction):
        raise refusal_of(entries[0])
    if csv_wanted:
        return Response(_as_csv(entries), media_type="text/csv")
    facts = {"model": model, "ms": round(ms, 2)}
    if several:
        content: dict[str, Any] = {"predictions": [_as_dict(entry) for entry in entries], **facts}
    else:
        content = {**_as_dict(entries[0]), **facts}
    return json_response(content)


def json_response(
    content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(_encoded(content), status, headers, media_type="application/json")


def error_response(refusal: Refusal) -> Response:
    """The JSON that says why a request is not answered."""
    kind = _LingeringResponse if refusal.unread else Response
    body = _encoded(refusal.to_dict())
    return kind(body, refusal.status, refusal.headers, media_type="application/json")


def refusal_of(error: PictureError | Refusal | Prediction) -> Refusal:
    """The refusal that a picture's error means."""
    if isinstance(error, PictureError):
        return Refusal(error.code, str(error))
    assert isinstance(error, Refusal)
    return error


class _LingeringResponse(Response):
    """Says at once why a request is refused, then throws away what is still sent, for a while."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await send(start)
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with anyio.move_on_after(_LINGER_S):
            more = True
            while more:
                message = await receive()
                more = message["type"] == "http.request" and message.get("more_body", False)
        await send({"type": "http.response.body", "body": b""})


def _liking(accepted: str, kind: str) -> tuple[float, int]:
    """How much a client likes a type by its Accept header (RFC 9110, 12.5.1): the quality that the
    narrowest of its ranges gives, then how early it stands there, as a negative number."""
    ranges = ("*/*", kind.split("/")[0] + "/*", kind)
    best = (-1, 0.0, 0)
    for at, part in enumerate(accepted.split(",")):
        name, _, parameters = part.partition(";")
        if name.strip().lower() in ranges:
            quality = re.search(r"(?:^|;)\s*q=([01](?:\.\d*)?)\s*(?:;|$)", parameters.lower())
            narrowness = ranges.index(name.strip().lower())
            best = max(best, (narrowness, float(quality[1]) if quality else 1.0, -at))
    return best[1:]


def _encoded(content: Mapping[str, Any]) -> bytes:
    # JSON can hold half a surrogate pair, which UTF-8 cannot.
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _as_dict(entry: Entry) -> dict[str, Any]:
    return entry.to_dict() if isinstance(entry, Prediction) else refusal_of(entry).to_dict()


def _as_csv(entries: Sequence[Entry]) -> str:
    """A line a picture: label, class name, confidence; for one without an answer, empty fields and
    the error's code."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for entry in entries:
        if isinstance(entry, Prediction):
            writer.writerow([entry.predicted_label, entry.class_name, f"{entry.confidence:.6f}"])
        else:
            writer.writerow(["", "", "", refusal_of(entry).code])
    return text.getvalue()
