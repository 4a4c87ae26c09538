"""Uvicorn's HTTP protocol with two things that it leaves to a proxy: patience and bounds.

A client that does not send its request in time, or sends a head without end, is answered with an
error and left; so is one that does not take its answer, or asks on and on without taking any. What
is not HTTP at all gets its error in JSON like every other.
"""

from __future__ import annotations

import asyncio
import json
import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vizsla.serving.refusals import Refusal

_MOST_HEAD_BYTES = 65_536
_MOST_AHEAD = 64  # requests on one connection before the first of them is answered
_OFFER = re.compile(rb"(?<=\n)upgrade(?=[ \t]*:)", re.IGNORECASE)


def patient_protocol(timeout_s: float) -> type[PatientProtocol]:
    """The protocol class, which uvicorn makes objects of, with a patience of `timeout_s`."""
    return type("PatientProtocol", (PatientProtocol,), {"timeout_s": timeout_s})


class PatientProtocol(HttpToolsProtocol):
    """Waits `timeout_s` for a request's head, and as long for an answer to be taken."""

    timeout_s = 10.0
    _timer: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None
    # Since the last of a body or the end of a head: of a head, of trailers, of empty lines.
    _bytes_in_vain = 0
    _in_head = _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._stop_taking()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._bytes_in_vain += len(data)
        super().data_received(data if self._in_body else _without_offer(data))
        if self._bytes_in_vain > _MOST_HEAD_BYTES:
            self._leave(Refusal("bad_request", "The request's head is too long."), 431)
        elif self._timer is None and not self._is_answering:
            # The rest of a request that is answered already, or no request at all: uvicorn has
            # just stopped its own timer, and nothing else would end this.
            self._arm()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._arm()

    def on_headers_complete(self) -> None:
        self._disarm()
        self._in_head, self._in_body, self._bytes_in_vain = False, True, 0
        super().on_headers_complete()
        if len(self.pipeline) > _MOST_AHEAD:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self._bytes_in_vain = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._bytes_in_vain = False, 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = self.loop.call_later(self.timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_taking()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # closing would wait for what the client has not taken

    def send_400_response(self, msg: str) -> None:
        self._leave(Refusal("bad_request", "The request is not HTTP as this server reads it."))

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _arm(self) -> None:
        self._disarm()
        self._timer = self.loop.call_later(self.timeout_s, self._out_of_time)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_taking(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _out_of_time(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_answering:
            self._arm()  # an answer is under way; what came after it has time until then
        elif self._in_head:
            words = f"The request did not arrive within {self.timeout_s:g} s."
            self._leave(Refusal("too_slow", words))
        else:
            self.transport.close()

    def _leave(self, refusal: Refusal, status: int | None = None) -> None:
        if self.transport.is_closing():
            return
        body = json.dumps(refusal.to_dict()).encode()
        head = (
            f"HTTP/1.1 {status or refusal.status} Refused\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _without_offer(data: bytes) -> bytes:
    """`data` with the Upgrade of a request's head under another name: no other protocol is spoken
    here, and the parser would not read the body of a request that offers one."""
    end = data.find(b"\r\n\r\n")
    found = _OFFER.search(data, 0, len(data) if end < 0 else end)
    return data if found is None else data[: found.start()] + b"ignored" + data[found.end() :]
