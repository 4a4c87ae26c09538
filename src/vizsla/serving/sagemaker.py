"""What SageMaker's hosting asks of a container: its places, its environment, its limits.

`vizsla serve --sagemaker` takes the settings that `container_settings` reads from the environment;
flags that are spelled out come before them. SageMaker sends no token: its own network and access
rules stand before the container. The routes for several models are in `multi_model.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from vizsla.errors import SettingError
from vizsla.serving.answers import json_response
from vizsla.serving.settings import ServeSettings

MODEL_FOLDER = Path("/opt/ml/model")
MODELS_FOLDER = Path("/opt/ml/models")

_PORT = 8080
_BODY_MB = 6
_BATCH_BODY_MB = 100
_LARGEST_BODY_MB = 1024
# SageMaker gives up on an answer after 60 s, in a batch transform after 600; ours comes before.
_DEADLINE_S = 55.0
_BATCH_DEADLINE_S = 570.0
_READ_TIMEOUT_S = 30.0
_DRAIN_S = 25.0  # SIGKILL comes 30 s after SIGTERM


def container_settings(environ: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `ServeSettings` that SageMaker's environment sets.

    SAGEMAKER_BIND_TO_PORT          the port, in place of 8080
    SAGEMAKER_BATCH                 true in a batch transform: 100 MB a request in place of 6
    SAGEMAKER_MAX_PAYLOAD_IN_MB     the largest request; 0 is without a limit, here 1,024
    SAGEMAKER_MODEL_SERVER_WORKERS  processes that answer, in place of 1
    SAGEMAKER_MULTI_MODEL           see `is_multi_model`: always one process

    Raises `SettingError`, naming the variable, for a value that cannot be meant.
    """
    batch = _switch(environ, "SAGEMAKER_BATCH")
    body_mb = _whole(environ, "SAGEMAKER_MAX_PAYLOAD_IN_MB", _LARGEST_BODY_MB, least=0)
    if body_mb is None:
        body_mb = _BATCH_BODY_MB if batch else _BODY_MB
    port = _whole(environ, "SAGEMAKER_BIND_TO_PORT", 65535)
    workers = _whole(environ, "SAGEMAKER_MODEL_SERVER_WORKERS", 64)
    return {
        "sagemaker": True,
        "no_auth": True,
        "host": "0.0.0.0",
        "port": port if port is not None else _PORT,
        # The models of a multi-model endpoint are loaded by a request, which one process hears.
        "workers": 1 if is_multi_model(environ) else workers or 1,
        "body_mb": float(body_mb or _LARGEST_BODY_MB),
        "deadline_s": _BATCH_DEADLINE_S if batch else _DEADLINE_S,
        "read_timeout_s": _READ_TIMEOUT_S,
        "drain_s": _DRAIN_S,
    }


def is_multi_model(environ: Mapping[str, str]) -> bool:
    """Whether the container belongs to a multi-model endpoint: SAGEMAKER_MULTI_MODEL is true."""
    return _switch(environ, "SAGEMAKER_MULTI_MODEL")


def execution_parameters(
    settings: ServeSettings, cores: int
) -> Callable[[Request], Awaitable[Response]]:
    """`GET /execution-parameters`: what a batch transform may best ask of this container, where
    its job does not say. A request holds one picture's file, so records are never joined."""
    # The service takes at most 100 MB for a request times the requests at once.
    payload_mb = max(1, int(min(settings.body_mb, _BODY_MB)))  # 0 would be without a limit
    at_once = max(1, min(2 * cores, _BATCH_BODY_MB // payload_mb))
    facts = {
        "MaxConcurrentTransforms": at_once,
        "BatchStrategy": "SINGLE_RECORD",
        "MaxPayloadInMB": payload_mb,
    }

    async def answered(request: Request) -> Response:
        return json_response(facts)

    return answered


def _switch(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "").strip().lower()
    if value in ("", "false", "0"):
        return False
    if value in ("true", "1"):
        return True
    raise SettingError(f"{name} is {environ[name]!r}, but must be true or false.")


def _whole(environ: Mapping[str, str], name: str, most: int, least: int = 1) -> int | None:
    text = environ.get(name, "").strip()
    if not text:
        return None
    whole = text.isascii() and text.isdecimal() and len(text) < 10
    if not (whole and least <= int(text) <= most):
        raise SettingError(
            f"{name} is {text[:50]!r}, but must be a whole number from {least} to {most}."
        )
    return int(text)
