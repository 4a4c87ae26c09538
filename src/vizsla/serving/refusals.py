"""Why a request is not answered: every code that the server sends, with its HTTP status.

A refusal becomes `{"error": {"code": …, "message": …}}`. The message is for a person and says the
way out; the code is for programs and never changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STATUS_OF = {
    "bad_json": 400,
    "bad_base64": 400,
    "bad_multipart": 400,
    "bad_query": 400,
    "bad_request": 400,
    "empty_body": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "too_slow": 408,
    "already_loaded": 409,
    "body_too_large": 413,
    "too_many_pictures": 413,
    "unsupported_media_type": 415,
    "not_a_picture": 422,
    "broken_picture": 422,
    "picture_too_large": 422,
    "url_refused": 422,
    "url_failed": 422,
    "bundle_refused": 422,
    "internal_error": 500,
    "overloaded": 503,
    "not_ready": 503,
    "shutting_down": 503,
    "deadline_exceeded": 504,
    "no_memory": 507,
}

RETRY_AFTER = {"Retry-After": "1"}


class Refusal(Exception):
    """A request that is answered with an error. `code` is one of `STATUS_OF`; `unread` says that
    a part of the request was not read, so that the connection cannot be used again."""

    def __init__(
        self,
        code: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        *,
        unread: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = STATUS_OF[code]
        self.headers = {**(headers or {}), **({"Connection": "close"} if unread else {})}
        self.unread = unread

    def to_dict(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message}}


def overloaded(waiting: int) -> Refusal:
    """The answer where the queue is full."""
    return Refusal(
        "overloaded",
        f"{waiting} pictures are waiting already, which is as many as this server takes. "
        "Try again in a second.",
        RETRY_AFTER,
    )
