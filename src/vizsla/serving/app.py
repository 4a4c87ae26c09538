"""The server's routes: who may ask what, and that every answer is counted and every error JSON.

GET  /ping                        whether it is ready              nobody is asked for a token
POST /invocations, /v1/predict    pictures to answers
GET  /v1/model                    what is being served
POST /v1/model                    take the bundle that lies in the folder now
GET  /metrics, /openapi.json
GET  /, /page.css, /page.js       the page                         nobody is asked for a token
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from vizsla.data.cores import available_cores
from vizsla.errors import BundleError, SettingError, VizslaError
from vizsla.serving.answers import error_response, json_response
from vizsla.serving.bodies import ClientDisconnect
from vizsla.serving.description import describe
from vizsla.serving.fleet import Fleet
from vizsla.serving.invocation import Desk, answer_request
from vizsla.serving.metrics import CONTENT_TYPE, Metrics
from vizsla.serving.model import Holder
from vizsla.serving.openapi import openapi
from vizsla.serving.refusals import Refusal
from vizsla.serving.sagemaker import execution_parameters
from vizsla.serving.settings import ServeSettings
from vizsla.serving.tokens import Token

Endpoint = Callable[[Request], Awaitable[Response]]

_OF_PICTURES = ("/invocations", "/v1/predict")
_PAGE_TYPES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_CLIENT_LEFT = 499  # nobody reads it; for the count alone
_log = logging.getLogger("vizsla.serving")


class Server:
    """One process's part of a server: its model, its settings, and what it counts."""

    def __init__(self, folder: Path, settings: ServeSettings, fleet: Fleet) -> None:
        self.settings, self.fleet = settings, fleet
        self.metrics = Metrics()
        self.token = Token(settings.token())
        self.holder = Holder(folder, settings, self.metrics)
        self.fleet.tell(self.holder.current.digest)

    @property
    def is_ready(self) -> bool:
        return self.holder.current.is_alive and self.fleet.is_ready()

    def stand(self) -> None:
        """Note how things stand, for the metrics."""
        current = self.holder.current
        self.metrics.stand(current.under_way, current.is_alive)

    async def reload(self) -> bool:
        """Take the bundle that lies in the folder now, in this process."""
        changed = await self.holder.reload()
        self.fleet.tell(self.holder.current.digest)
        return changed


def build_app(server: Server) -> ASGIApp:
    """The application that answers for `server`."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with (
            Desk.opened(server.settings, server.metrics) as app.state.desk,
            server.fleet.at_work(server.reload, server.stand),
        ):
            yield
        await server.holder.close()

    return _with_short_way(application(routes_of(server), lifespan))


def application(routes: Sequence[Route], lifespan: Lifespan[Starlette]) -> Starlette:
    """An application whose every error is JSON, also for a path or method that is not there."""
    app = Starlette(routes=routes, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.add_exception_handler(HTTPException, _http_error)
    return app


def _with_short_way(app: Starlette) -> ASGIApp:
    """`app`, with a look-up in place of its router for the routes that pictures come by: the way
    through the router takes as long as a tenth of a small network's answer."""
    short = {
        route.path: route.endpoint
        for route in app.routes
        if isinstance(route, Route) and route.path in _OF_PICTURES
    }

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = short.get(scope.get("path", "")) if scope.get("method") == "POST" else None
        if endpoint is None:
            await app(scope, receive, send)
            return
        scope["app"] = app
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

    return answered


def routes_of(server: Server) -> list[Route]:
    """Every route of a server of one model."""

    async def ping(request: Request) -> Response:
        if not server.is_ready:
            raise Refusal("not_ready", server.fleet.reason() or "The model's threads are at fault.")
        return json_response({"status": "ready"})

    async def predict(request: Request) -> Response:
        return await answer_request(request, lambda: server.holder.current, request.app.state.desk)

    async def model(request: Request) -> Response:
        return json_response(describe(server.holder.current, server.settings))

    async def swap(request: Request) -> Response:
        if not server.token.is_wanted:
            raise Refusal(
                "forbidden",
                "This server was started without a token, so it takes no new bundle by request. "
                "Start it with --token-file, or send its process SIGHUP.",
            )
        try:
            changed = await server.reload()
        except (BundleError, SettingError) as error:
            raise Refusal("bundle_refused", str(error)) from None
        await server.fleet.follow(server.holder.current.digest)
        facts = describe(server.holder.current, server.settings)
        return json_response({"changed": changed, "name": facts["name"], "sha256": facts["sha256"]})

    async def metrics(request: Request) -> Response:
        server.stand()
        return Response(server.metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    async def description(request: Request) -> Response:
        return json_response(openapi(server.holder.current.name, server.token.is_wanted))

    def route(path: str, endpoint: Endpoint, method: str = "GET", *, free: bool = False) -> Route:
        return Route(path, guarded(server, path, endpoint, free=free), methods=[method])

    routes = [
        *(route(path, predict, "POST") for path in _OF_PICTURES),
        route("/ping", ping, free=True),
        route("/v1/model", model),
        route("/v1/model", swap, "POST"),
        route("/metrics", metrics),
        route("/openapi.json", description),
        route("/", _page("index.html"), free=True),
        route("/page.css", _page("page.css"), free=True),
        route("/page.js", _page("page.js"), free=True),
    ]
    if server.settings.sagemaker:
        parameters = execution_parameters(server.settings, available_cores())
        routes.append(route("/execution-parameters", parameters, free=True))
    return routes


class Guard(Protocol):
    """Who says who may ask, and counts."""

    @property
    def metrics(self) -> Metrics: ...

    @property
    def token(self) -> Token: ...


def guarded(server: Guard, path: str, endpoint: Endpoint, *, free: bool = False) -> Endpoint:
    """`endpoint`, for those who bring the token unless it is `free`; its errors become JSON, and
    it is counted under `path`."""

    async def answered(request: Request) -> Response:
        code = None
        try:
            if not free and not server.token.is_brought_by(request):
                raise Refusal(
                    "unauthorized",
                    "This server wants its token: send Authorization: Bearer TOKEN.",
                    {"WWW-Authenticate": "Bearer"},
                )
            response = await endpoint(request)
        except Refusal as refusal:
            code, response = refusal.code, error_response(refusal)
        except ClientDisconnect:
            response = Response(status_code=_CLIENT_LEFT)
        except asyncio.CancelledError:  # the time for last answers is over: nothing else cancels
            code = "shutting_down"
            response = error_response(Refusal(code, "The server is shutting down."))
        except Exception as error:  # a fault of ours: told of in the log, and the server goes on
            _log.exception("answering %s failed", path)
            code = "internal_error"
            said = str(error) if isinstance(error, VizslaError) else "The server made a mistake."
            response = error_response(Refusal(code, said))
        server.metrics.responded(path, response.status_code, code)
        return response

    return answered


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: an unknown path, or another method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        # Starlette names the methods of the path's first route alone.
        there = [route for route in request.app.routes if route.matches(request.scope)[0].value]
        allowed = ", ".join(sorted({method for route in there for method in route.methods}))
        refusal = Refusal(
            "method_not_allowed",
            f"{request.method[:20]} is not answered here, only {allowed}.",
            {"Allow": allowed},
        )
    else:
        refusal = Refusal("not_found", "There is nothing at this path.")
    metrics: Metrics = request.app.state.desk.metrics
    metrics.responded("other", refusal.status, refusal.code)
    return error_response(refusal)


def _page(name: str) -> Endpoint:
    content = resources.files("vizsla.serving").joinpath(f"page/{name}").read_bytes()
    headers: dict[str, Any] = {**_PAGE_HEADERS}

    async def page(request: Request) -> Response:
        return Response(content, headers=headers, media_type=_PAGE_TYPES[name])

    return page
