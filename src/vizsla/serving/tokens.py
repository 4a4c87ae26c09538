"""Whether a request brings the server's token."""

from __future__ import annotations

import hashlib
import hmac

from starlette.requests import Request


class Token:
    """What requests must bring as `Authorization: Bearer TOKEN`; with None, nothing."""

    def __init__(self, token: str | None) -> None:
        self._hash = None if token is None else _hashed(token)

    @property
    def is_wanted(self) -> bool:
        return self._hash is not None

    def is_brought_by(self, request: Request) -> bool:
        """Whether the request brings the token, where one is wanted."""
        if self._hash is None:
            return True
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        # Hashes are compared, so that the time tells not even the token's length.
        return kind.lower() == "bearer" and hmac.compare_digest(_hashed(token.strip()), self._hash)


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
