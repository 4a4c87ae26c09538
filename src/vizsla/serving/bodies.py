"""A request's body to the bytes of its pictures.

The body is read within a limit and a time, into memory and never into a file. What it says it
is decides how it is read: a picture as it is, several in multipart, or JSON with pictures in
base64 or, where allowed, by address.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from vizsla.serving.refusals import RETRY_AFTER, Refusal
from vizsla.serving.settings import ServeSettings

PICTURE_TYPES = frozenset(
    [
        "image/jpeg", "image/jpg", "image/pjpeg", "image/png", "image/webp", "image/gif",
        "image/bmp", "image/x-bmp", "image/x-ms-bmp", "image/tiff", "application/x-image",
        "application/octet-stream",
    ]
)  # fmt: skip
_KNOWN = "a picture as JPEG, PNG, WebP, GIF, BMP or TIFF, several as multipart/form-data, or JSON"

_LISTS = ("images", "instances")
# Past these, a body of a few MB would take many times its size in memory, or seconds to take apart.
_MOST_JSON_VALUES = 100_000
_LONGEST_CONTENT_TYPE = 1000
_WHITESPACE = b" \t\r\n\v\f"

# What the bodies of all requests may take in memory at once.
_ROOM_BYTES = 512 << 20


@dataclass(frozen=True)
class Address:
    """A picture that is to be fetched."""

    url: str


@dataclass(frozen=True)
class Pictures:
    """What a request asks about. An entry is a picture's bytes, where to fetch it, or why it is
    neither; `several` tells whether the answer is a list, even of one; `top_k` is how many classes
    it asks for, where it says so in JSON."""

    entries: tuple[bytes | Address | Refusal, ...]
    several: bool
    top_k: int | None = None


class Room:
    """The memory that bodies may take, shared by all requests. Use it in one event loop."""

    def __init__(self, settings: ServeSettings) -> None:
        self._free = max(_ROOM_BYTES, 2 * settings.body_bytes)

    @contextmanager
    def shared(self) -> Iterator[Share]:
        """A share that is given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self._free += share.taken

    def take(self, size: int) -> None:
        """Raises `Refusal` where there is no room for so many bytes more."""
        if size > self._free:
            raise Refusal(
                "overloaded",
                "The requests under way fill the memory that this server has for them. Try again "
                "in a second.",
                RETRY_AFTER,
                unread=True,
            )
        self._free -= size


@dataclass
class Share:
    """What one request has taken of the room, in bytes."""

    room: Room = field(repr=False)
    taken: int = 0

    def take(self, size: int) -> None:
        """Raises `Refusal` where there is no room for so many bytes more."""
        self.room.take(size)
        self.taken += size


async def read_pictures(request: Request, settings: ServeSettings, share: Share) -> Pictures:
    """The pictures of a request. Raises `Refusal` where the request as a whole is no good, and
    `ClientDisconnect` where the client has left."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in PICTURE_TYPES and kind not in ("multipart/form-data", "application/json"):
        called = f"The Content-Type {kind[:100]!r}" if kind else "A request without Content-Type"
        raise Refusal("unsupported_media_type", f"{called} is not read here; send {_KNOWN}.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refusal("unsupported_media_type", "Compressed bodies are not read; send it as it is.")
    body = await _read(request, settings, share)
    if not body:
        raise Refusal("empty_body", "The request has no body; send a picture in it.")
    if kind == "application/json":
        return await asyncio.to_thread(_from_json, body, settings.max_pictures)
    if kind == "multipart/form-data":
        given = request.headers["content-type"]
        return await asyncio.to_thread(_from_multipart, given, body, settings.max_pictures)
    return Pictures((body,), several=False)


async def _read(request: Request, settings: ServeSettings, share: Share) -> bytes:
    """The body, or a refusal as soon as it is known to be too large or too slow."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > settings.body_bytes:
        raise _too_large(settings)
    parts, size = [], 0
    try:
        with anyio.fail_after(settings.read_timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > settings.body_bytes:
                    raise _too_large(settings)
                share.take(len(part))
                parts.append(part)
    except TimeoutError:
        raise Refusal(
            "too_slow",
            f"The request did not arrive within {settings.read_timeout_s:g} s.",
            unread=True,
        ) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(settings: ServeSettings) -> Refusal:
    return Refusal(
        "body_too_large",
        f"The request is larger than {settings.body_mb:g} MB, the most that this server reads; "
        "send a smaller picture, or fewer at once.",
        unread=True,
    )


def _too_many(most: int) -> Refusal:
    return Refusal(
        "too_many_pictures", f"The request has more than {most} pictures, the most at once."
    )


def _from_multipart(content_type: str, body: bytes, most: int) -> Pictures:
    files = _Files(most)
    try:
        if len(content_type) > _LONGEST_CONTENT_TYPE:
            raise FormParserError("its Content-Type is too long")
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise FormParserError("its Content-Type names no boundary")
        parser = MultipartParser(boundary, files.callbacks())
        parser.write(body)
    # The parser lets other errors through on hostile bytes.
    except (FormParserError, ValueError, LookupError) as error:
        raise Refusal("bad_multipart", f"The multipart body is broken: {error}.") from None
    if not files.is_whole:
        raise Refusal("bad_multipart", "The multipart body ends before its last boundary.")
    if not files.found:
        raise Refusal(
            "bad_multipart", "The multipart body has no file; send each picture as a file part."
        )
    empty = Refusal("not_a_picture", "This part of the request is empty.")
    entries = tuple(content or empty for content in files.found)
    return Pictures(entries, several=len(entries) > 1)


class _Files:
    """Gathers the files of a multipart body from its parser's calls; fields are passed over.

    Not Starlette's reader, which decodes fields in whatever encoding the request names: some take
    minutes for a megabyte.
    """

    def __init__(self, most: int) -> None:
        self.found: list[bytes] = []
        self.is_whole = False
        self._most = most
        self._parts = 0
        self._name = self._value = self._disposition = b""
        self._content: list[bytes] | None = None

    def callbacks(self) -> Any:
        return {
            f"on_{name}": getattr(self, f"_{name}")
            for name in (
                "part_begin", "header_field", "header_value", "header_end", "headers_finished",
                "part_data", "part_end", "end",
            )
        }  # fmt: skip

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > 2 * self._most:  # as many fields as files
            raise _too_many(self._most)
        self._name = self._value = self._disposition = b""
        self._content = None

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value[:_LONGEST_CONTENT_TYPE]
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        if b"filename" in parse_options_header(self._disposition)[1]:
            self._content = []
            if len(self.found) == self._most:
                raise _too_many(self._most)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._content is not None:
            self._content.append(data[start:end])

    def _part_end(self) -> None:
        if self._content is not None:
            self.found.append(b"".join(self._content))

    def _end(self) -> None:
        self.is_whole = True


def _from_json(body: bytes, most: int) -> Pictures:
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_JSON_VALUES:
        raise Refusal("bad_json", "The JSON has more values in it than pictures could need.")
    try:
        content = json.loads(body)
    except RecursionError:
        raise Refusal("bad_json", "The body is not read as JSON: it is nested too deep.") from None
    except ValueError as error:
        raise Refusal("bad_json", f"The body is not JSON: {str(error)[:200]}.") from None
    top_k = content.get("top_k") if isinstance(content, dict) else None
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise Refusal("bad_json", "top_k must be a whole number from 1 on.")
    if isinstance(content, dict) and "image" in content:
        entry = _from_item(content["image"])
        if isinstance(entry, Refusal):
            raise entry
        return Pictures((entry,), False, top_k)
    if isinstance(content, dict):
        content = next((content[name] for name in _LISTS if name in content), None)
    if not isinstance(content, list) or not content:
        raise Refusal(
            "bad_json",
            'The JSON must be {"image": …} or {"images": […]} with pictures in base64.',
        )
    if len(content) > most:
        raise _too_many(most)
    return Pictures(tuple(map(_from_item, content)), True, top_k)


def _from_item(item: Any) -> bytes | Address | Refusal:
    """A picture in base64, as a data: URL, or as an object with `b64` or `url`."""
    if isinstance(item, dict) and isinstance(item.get("url"), str):
        return Address(item["url"])
    text = item.get("b64") if isinstance(item, dict) else item
    if not isinstance(text, str):
        return Refusal("bad_json", 'A picture must be text in base64, {"b64": …} or {"url": …}.')
    if text[:8].lower().startswith(("http://", "https:/")):
        return Address(text)
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            return Refusal("bad_base64", "A data: URL must hold its picture in base64.")
    try:
        plain = text.encode("ascii").translate(None, _WHITESPACE)
        data = base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError) as error:
        return Refusal("bad_base64", f"A picture is not in base64: {error}.")
    return data or Refusal("not_a_picture", "A picture in the request is empty.")


__all__ = ["PICTURE_TYPES", "Address", "ClientDisconnect", "Pictures", "Room", "read_pictures"]
