"""BentoML with the benchmark's model: one service, `batchable`, workers as its own processes.

BentoML gives a raw body as a temporary file, and cannot batch those. `_Jpeg` and `_Json`, an
input and an output specification of our own, pass the bytes on instead: its dispatcher batches
lists of bytes. Access log, metrics and traces are off.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import bentoml
from _bentoml_sdk.io_models import IORootModel
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.rivals.answering import Model, options


class _Jpeg(IORootModel[list[bytes]]):
    __root_input__ = True

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> _Jpeg:
        return cls.model_construct(root=[await request.body()])


class _Json(IORootModel[list[bytes]]):
    @classmethod
    async def to_http_response(cls, obj: Any, serde: Any) -> Response:
        return Response(obj[0], media_type="application/json")


_BUNDLE = os.environ.get("RIVAL_BUNDLE", "")
_WORKERS = int(os.environ.get("RIVAL_WORKERS", "1"))
_THREADS = int(os.environ.get("RIVAL_THREADS", "2"))
_BATCH = int(os.environ.get("RIVAL_BATCH", "8"))


@bentoml.service(
    workers=_WORKERS,
    traffic={"timeout": 60, "max_concurrency": 256},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Answering:
    def __init__(self) -> None:
        self._model = Model(_BUNDLE, _THREADS)

    @bentoml.api(
        route="/invocations",
        batchable=_BATCH > 1,
        max_batch_size=max(2, _BATCH),
        max_latency_ms=10_000,
        input_spec=_Jpeg,
        output_spec=_Json,
    )
    def answers(self, bodies: list[bytes], /) -> list[bytes]:
        return self._model.answers(bodies)


def main() -> None:
    """Hand over to BentoML's own command, which reads the settings where the service is made."""
    chosen = options()
    os.environ.update(
        RIVAL_BUNDLE=str(chosen.bundle),
        RIVAL_WORKERS=str(chosen.workers),
        RIVAL_THREADS=str(chosen.threads),
        RIVAL_BATCH=str(chosen.batch),
        BENTOML_DO_NOT_TRACK="True",
    )
    command = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        "benchmarks.rivals.bentoml_server:Answering",
    ]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(chosen.port)])


if __name__ == "__main__":
    main()
