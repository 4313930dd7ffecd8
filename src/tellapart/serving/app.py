"""The application: all parts put together. Knows no protocol and no socket."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tellapart import __version__
from tellapart.serving import api, open_inference, page, tensorflow_serving
from tellapart.serving.access_log import JsonHandler, RequestLog
from tellapart.serving.batching import Batcher
from tellapart.serving.errors import error_body
from tellapart.serving.middleware import AccessMiddleware, Endpoint, visit_of
from tellapart.serving.models import Models
from tellapart.serving.options import BatchOptions, ServerOptions
from tellapart.serving.service import Service
from tellapart.serving.telemetry import Telemetry

HEALTH = frozenset({"/v2/health/live", "/v2/health/ready"})


def make_app(options: ServerOptions) -> FastAPI:
    """Load the models and return the application that answers for them.

    Its ``state.service`` is the `Service` behind it. Threads start with the application and end with it.

    Raises:
        BundleError: a bundle cannot be served.
    """
    telemetry = Telemetry(options.metrics_folder)
    service = Service(options, Models(options, telemetry), *_batchers(options.batches), telemetry)
    log = RequestLog() if options.log else None

    app = FastAPI(
        title="Tellapart",
        version=__version__,
        description="Names images.",
        lifespan=partial(_running, service, log),
        redirect_slashes=False,
        openapi_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # looked up anew for each request otherwise
    )
    app.state.service = service
    assets = page.load_assets()
    own = api.router(service)
    for routes in (own, tensorflow_serving.router(service), open_inference.router(service)):
        app.include_router(routes)
    app.include_router(page.router(app, assets))
    app.openapi = partial(_describe, app)  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, _refuse)
    free = HEALTH | {"/", "/docs", "/openapi.json"} | {f"/{name}" for name in assets}
    app.add_middleware(
        AccessMiddleware,
        options=options,
        telemetry=telemetry,
        log=log,
        open_paths=frozenset(free),
        direct={("POST", "/predict"): _endpoint(own, "/predict")},
    )
    return app


def _batchers(options: BatchOptions) -> tuple[Batcher, Batcher, Batcher]:
    """Return what works on predictions, on pictures that are large, and on heat maps; the last two give way."""
    alone = replace(options, threads=1, max_batch_size=1, max_wait_ms=0.0, max_queue_ms=options.deadline_ms / 2)
    return (
        Batcher(options, "batch"),
        Batcher(alone, "large", in_background=True),
        Batcher(replace(alone, max_queue_ms=0.0), "heat", in_background=True),
    )


@contextlib.asynccontextmanager
async def _running(service: Service, log: RequestLog | None, _: FastAPI) -> AsyncIterator[None]:
    """Keep the threads running while the application does."""
    with _logging_to(log):
        service.start()
        service.models.watch()
        yield
        service.models.close()
        service.stop()


def _endpoint(routes: APIRouter, path: str) -> Endpoint:
    """Return the function behind a path."""
    for route in routes.routes:
        if isinstance(route, APIRoute) and route.path == path:
            return route.endpoint
    raise RuntimeError(f"{path} has no route.")


def _describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, without FastAPI's own error: nothing here answers in its form."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        document.pop("components", None)
        for methods in document["paths"].values():
            for told in methods.values():
                if "HTTPValidationError" in str(told["responses"].get("422")):
                    del told["responses"]["422"]
        app.openapi_schema = document
    return app.openapi_schema


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer in the form of all errors what the router refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}. GET /docs lists what there is."
    body = error_body(request.scope["path"], error.status_code, message, visit_of(request.scope).id)
    return Response(body, error.status_code, headers=error.headers, media_type="application/json")


@contextlib.contextmanager
def _logging_to(log: RequestLog | None) -> Iterator[None]:
    if log is None:
        yield
        return
    library, handler = logging.getLogger("tellapart"), JsonHandler(log)
    library.addHandler(handler)
    log.start()
    try:
        yield
    finally:
        library.removeHandler(handler)
        log.close()
