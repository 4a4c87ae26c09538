"""Fetching pictures that a request names by address: from allowed prefixes alone.

Refused unless scheme, host and port are a prefix's own and the path lies under its path. Nothing
is followed elsewhere, and no more is read than a request may bring.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

import httpx2

from vizsla.serving.refusals import Refusal
from vizsla.serving.settings import ServeSettings

_PORTS = {"http": 80, "https": 443}
# What different programs read differently: dots, doubled slashes, backslashes and their codes.
_UNCLEAR = re.compile(r"[\\\s\x00-\x1f]|//|%2e|%2f|%5c|(^|/)\.\.?([/;]|$)", re.IGNORECASE)


class Allowance:
    """How many bytes one request may still have fetched, from all its addresses together."""

    def __init__(self, most_bytes: int) -> None:
        self._most = self._left = most_bytes

    def spend(self, size: int) -> None:
        """Raises `Refusal` where that is more than is left."""
        self._left -= size
        if self._left < 0:
            raise Refusal(
                "url_failed",
                f"What lies at the request's addresses is larger than {self._most / 2**20:g} MB, "
                "the most in all.",
            )


class Fetcher:
    """Fetches pictures over connections that are kept; close it at the end."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        # Packed content is not asked for and not unpacked: a little of it can fill the memory.
        self._client = httpx2.AsyncClient(
            timeout=settings.read_timeout_s,
            follow_redirects=False,
            headers={"Accept-Encoding": "identity"},
        )

    async def fetch(self, url: str, allowance: Allowance) -> bytes:
        """The picture at `url`. Raises `Refusal` where that is not allowed or fails."""
        check_allowed(url, self._settings.allow_url)
        try:
            async with self._client.stream("GET", url) as response:
                if response.status_code != 200:
                    raise Refusal(
                        "url_failed", f"The address answered with {response.status_code}, not 200."
                    )
                parts = []
                async for part in response.aiter_raw():
                    allowance.spend(len(part))
                    parts.append(part)
                return b"".join(parts)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            why = type(error).__name__
            raise Refusal("url_failed", f"The address could not be fetched ({why}).") from None

    async def close(self) -> None:
        await self._client.aclose()


def check_allowed(url: str, prefixes: Sequence[str]) -> None:
    """Raise `Refusal` unless `url` lies under one of `prefixes`."""
    try:
        asked = urlsplit(url)
        plain = "@" not in asked.netloc and not _UNCLEAR.search(asked.path)
        if plain and any(_lies_under(asked, urlsplit(prefix)) for prefix in prefixes):
            return
    except ValueError:  # an address that is none, or a port that is no number
        pass
    way_out = (
        "the server's owner allows prefixes with --allow-url"
        if not prefixes
        else "it lies under none of the prefixes that the server's owner allows"
    )
    raise Refusal(
        "url_refused", f"Pictures are not fetched from this address; {way_out}. Send the picture."
    )


def _lies_under(asked: SplitResult, prefix: SplitResult) -> bool:
    return _origin(asked) == _origin(prefix) and asked.path.startswith(prefix.path)


def _origin(address: SplitResult) -> tuple[str, str, int | None]:
    host = (address.hostname or "").lower()
    return address.scheme, host, address.port or _PORTS.get(address.scheme)
