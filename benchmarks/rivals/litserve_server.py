"""LitServe with the benchmark's model.

LitServe reads JSON or a form by default. A body of type `Annotated[bytes, Body(...)]` on
`decode_request` makes FastAPI hand over the raw bytes, which then go to the worker as they are;
decoding there is a part of `predict`, so that a worker of two threads can decode on both.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

import litserve
from fastapi import Body, Response

from benchmarks.rivals.answering import Model, options

# LitServe inspects the annotation itself, so it must not be a string.
_Jpeg = Annotated[bytes, Body(media_type="image/jpeg")]


class _Api(litserve.LitAPI):
    def __init__(self, bundle: str, threads: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.bundle, self.threads = bundle, threads

    def setup(self, device: str) -> None:
        self.model = Model(self.bundle, self.threads)

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return request

    def predict(self, x: Any) -> Any:
        return self.model.answers(x) if isinstance(x, list) else self.model.answers([x])[0]

    def batch(self, inputs: Any) -> Any:
        return list(inputs)

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        return Response(output, media_type="application/json")


_Api.decode_request.__annotations__["request"] = _Jpeg
_Api.encode_response.__annotations__["return"] = Response


def main() -> None:
    chosen = options()
    api = _Api(
        str(chosen.bundle),
        chosen.threads,
        max_batch_size=chosen.batch,
        batch_timeout=0.002 if chosen.batch > 1 else 0.0,
        api_path="/invocations",
    )
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=chosen.workers,
        fast_queue=True,
        healthcheck_path="/ping",
        loggers=None,
    )
    server.run(
        host="127.0.0.1",
        port=chosen.port,
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )


if __name__ == "__main__":
    logging.getLogger("litserve").setLevel(logging.WARNING)
    main()
