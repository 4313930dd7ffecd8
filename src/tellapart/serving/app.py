"""The application: all parts put together, and the table of all endpoints. Knows no protocol and no socket."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tellapart import __version__
from tellapart.serving import api, open_inference, operations, page, tensorflow_serving
from tellapart.serving.access_log import RequestLog
from tellapart.serving.batching import Batcher
from tellapart.serving.endpoints import Endpoint, respond
from tellapart.serving.errors import error_response
from tellapart.serving.middleware import AccessMiddleware, context_of
from tellapart.serving.models import Models
from tellapart.serving.openapi import describe
from tellapart.serving.options import BatchOptions, ServerOptions
from tellapart.serving.prediction_log import PredictionLog
from tellapart.serving.service import Service
from tellapart.serving.telemetry import Telemetry

# The page's rows must come last: its /{file} matches any single-segment path, such as /models.
ENDPOINTS = (
    *api.ENDPOINTS,
    *operations.ENDPOINTS,
    *tensorflow_serving.ENDPOINTS,
    *open_inference.ENDPOINTS,
    *page.ENDPOINTS,
)
"""Everything that the server answers to. The first row counts whose path and method fit."""
_HEALTH = frozenset({"/v2/health/live", "/v2/health/ready"})
_DIRECT = frozenset({("POST", "/predict")})


def make_app(options: ServerOptions) -> Starlette:
    """Load the models and return the application that answers for them.

    Its ``state.service`` is the `Service` behind it. Threads start with the application and end with it.

    Raises:
        BundleError: a bundle cannot be served.
        InputError: the request store cannot be opened.
    """
    telemetry = Telemetry(options.metrics_folder)
    document = describe(ENDPOINTS, title="Tellapart", version=__version__, description="Classifies images.")
    pages = page.load_pages(document)
    # Before the models: a database that cannot be opened is found out in a moment.
    prediction_log = PredictionLog(options.store, telemetry) if options.store is not None else None
    service = Service(
        options, Models(options, telemetry), *_batchers(options.batches), telemetry, pages, prediction_log
    )
    log = RequestLog() if options.log else None
    direct = {
        (endpoint.method, endpoint.path): partial(respond, endpoint, service)
        for endpoint in ENDPOINTS
        if (endpoint.method, endpoint.path) in _DIRECT
    }
    access = Middleware(
        AccessMiddleware,
        options=options,
        telemetry=telemetry,
        log=log,
        # Every file of the page is open to all: none may hold anything of a request or a model.
        open_paths=_HEALTH | pages.keys(),
        direct=direct,
    )
    app = Starlette(
        routes=[_route(endpoint, service) for endpoint in ENDPOINTS],
        middleware=[access],
        exception_handlers={HTTPException: _refuse},
        lifespan=partial(_running, service, log),
    )
    # Otherwise Starlette redirects /predict/ to /predict, and the client uploads its images twice.
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def _batchers(options: BatchOptions) -> tuple[Batcher, Batcher, Batcher, Batcher]:
    """Return what works on predictions, on large pictures, on heat maps and in shadow; all but the first give way."""
    alone = replace(options, threads=1, max_batch_size=1, max_wait_ms=0.0, max_queue_ms=options.deadline_ms / 2)
    return (
        Batcher(options, "batch"),
        Batcher(alone, "large", in_background=True),
        Batcher(replace(alone, max_queue_ms=0.0), "heat", in_background=True),
        Batcher(replace(alone, max_queue_ms=0.0), "shadow", in_background=True),
    )


def _route(endpoint: Endpoint, service: Service) -> Route:
    route = Route(endpoint.path, partial(respond, endpoint, service), methods=[endpoint.method])
    route.methods = {endpoint.method}  # Starlette adds HEAD to GET; the description has none
    return route


@contextlib.asynccontextmanager
async def _running(service: Service, log: RequestLog | None, _: Starlette) -> AsyncIterator[None]:
    """Keep the threads running while the application does."""
    if log is not None:
        log.start()
    try:
        # Not in make_app: a batcher delivers its answers to the event loop that is running when it starts.
        service.start()
        service.models.start_polling()
        yield
        # Stop polling first, so that no version is loaded while the threads stop. The log closes last and misses
        # nothing.
        service.models.close()
        service.stop()
    finally:
        if log is not None:
            log.close()


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer in the form of all errors what the router refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}. GET /docs lists what there is."
    return error_response(request.scope["path"], error.status_code, message, context_of(request).id, error.headers)
