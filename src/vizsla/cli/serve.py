"""vizsla serve: a bundle answers over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vizsla.errors import SettingError
from vizsla.serving.settings import ServeSettings


def serve(
    model: Path | None = None,
    /,
    *,
    settings: Annotated[ServeSettings | None, Parameter(name="*")] = None,
) -> None:
    """Serve a run or a bundle: a page, an API, health and metrics.

    Parameters
    ----------
    model
        A run's or a bundle's folder; with --sagemaker by default where SageMaker puts it.
    """
    from vizsla.serving.server import serve as serve_bundle
    from vizsla.serving.server import serve_container

    if settings is not None and settings.sagemaker:
        given = settings.model_dump(exclude_unset=True)
        serve_container(model, given, os.environ, _announce)
        return
    if model is None:
        raise SettingError("Nothing to serve: vizsla serve RUN_OR_BUNDLE")
    serve_bundle(model, settings, _announce)


def _announce(address: str, facts: dict[str, Any]) -> None:
    if not facts:
        print(f"address   {address} (models are loaded by POST /models)", flush=True)
        return
    engine = facts["engine"]
    print(
        f"serving   {facts['name']}: {facts['architecture']}, {len(facts['classes'])} classes\n"
        f"engine    {engine['name']}{_measured(engine['measured'])}\n"
        f"address   {address} (a page; POST /invocations, GET /ping /v1/model /metrics "
        "/openapi.json)\n"
        f"try       curl -X POST -H 'Content-Type: image/jpeg' --data-binary @picture.jpg "
        f"{address}/invocations",
        flush=True,
    )


def _measured(measured: dict[str, dict[str, Any]]) -> str:
    shown = [
        f"{name} {found['alone_ms']:g} ms alone, {found['batch_ms']:g} ms each in a batch"
        for name, found in measured.items()
        if "alone_ms" in found
    ]
    return f" (measured: {'; '.join(shown)})" if shown else ""
