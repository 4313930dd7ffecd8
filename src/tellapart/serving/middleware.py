"""What every request passes: identity, permission, headers, counts, one line in the log. Pure ASGI.

Knows nothing about images or models.
"""

from __future__ import annotations

import hmac
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tellapart.monitoring.ab_test import ABTest
from tellapart.serving.access_log import RequestLog
from tellapart.serving.errors import ApiError, code_of, error_response
from tellapart.serving.limits import Body, BodyBudget, ClientLeftError, RateLimit
from tellapart.serving.options import ServerOptions
from tellapart.serving.telemetry import ModelCounts, Telemetry

if TYPE_CHECKING:
    from tellapart.serving.model_version import ModelVersion

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""Status in log and metrics of a request whose client left; nobody gets it."""

OVERLOAD = frozenset({429, 503, 504})
"""Statuses of requests that were turned away because there was too much to do."""

# A client's id is echoed in a header and written to the log: allow nothing that could inject a line into either.
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,100}")
_SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
_NOTHING = [
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]


class RequestContext:
    """One request, from its arrival to its line in the log.

    Attributes:
        id: of the request.
        headers: by name in lower case; of a repeated one the last.
        query: the parameters after its "?", as the endpoint has parsed them.
        body: how its body is read.
        counts: of the version that it names, once it is known.
        model: name and version for the log.
        images: how many it holds.
        test: the A/B test that it is part of; None: of none.
        shadowed_by: the challenger that sees its images too; None: none does.
    """

    __slots__ = (
        "began", "body", "counts", "headers", "id", "images", "model", "query", "shadowed_by", "status", "test",
    )  # fmt: skip

    def __init__(self, scope: Scope, body: Body) -> None:
        self.began = time.perf_counter()
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        client_id = self.headers.get(b"x-request-id", b"")
        # No secret; and the system's random bytes would hand Python's lock to a working thread, which keeps it.
        self.id = client_id.decode("ascii") if _SANE_ID.fullmatch(client_id) else f"{random.getrandbits(64):016x}"
        self.query: Mapping[str, Any] = {}
        self.body = body
        self.counts: ModelCounts | None = None
        self.model: tuple[str, str] | None = None
        self.images = 0
        self.status = 0
        self.test: ABTest | None = None
        self.shadowed_by: ModelVersion | None = None

    @property
    def subject(self) -> str:
        """Who asks: the header X-User-ID, or the request's own id."""
        user = self.headers.get(b"x-user-id", b"")
        return user.decode("ascii") if _SANE_ID.fullmatch(user) else self.id


class AccessMiddleware:
    """Wraps the application.

    Args:
        app: what is inside.
        options: of the server.
        telemetry: where requests are counted.
        log: where their lines go, or None.
        open_paths: that need no key: health, and the page that asks for one.
        direct: (method, path) → what answers without what is inside: routing and its middleware are a third of what a
            request costs in Python.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        options: ServerOptions,
        telemetry: Telemetry,
        log: RequestLog | None,
        open_paths: frozenset[str],
        direct: Mapping[tuple[str, str], Callable[[Request], Awaitable[Response]]],
    ) -> None:
        self._app, self._telemetry, self._log, self._open = app, telemetry, log, open_paths
        self._options, self._direct = options, direct
        self._held = BodyBudget(options.limits.max_held_bytes)
        self._rate = RateLimit(options.limits.rate)
        # Against DNS rebinding: a page of a site whose name was made to resolve to this machine still sends the site's
        # name as Host. A server that other machines reach cannot know its own names and accepts any.
        own = {"localhost", "127.0.0.1", "::1", options.host.strip("[]")}
        self._hosts = own | {host.lower() for host in options.allowed_hosts} if options.is_local else None
        self._key = options.api_key.encode() if options.api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it."""
        if scope["type"] != "http":
            # Start-up and shutdown pass through; anything else, such as a websocket, is not answered.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        # From here on the request is counted, and `finally` below counts and logs its end, whatever happens.
        context = scope["context"] = RequestContext(scope, Body(self._options.limits, self._held))
        self._telemetry.enter()
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                context.status = message["status"]
                _add_headers(message, context.id)
            await send(message)

        try:
            # Checked before the body is read: a request that is not allowed must not cost memory.
            self._refuse(scope, context)
            respond = self._direct.get((scope["method"], scope["path"]))
            if respond is None:
                await self._app(scope, receive, send_with_headers)
            else:
                response = await respond(Request(scope, receive))
                await response(scope, receive, send_with_headers)
        except ClientLeftError:
            context.status = CLIENT_LEFT
        except ApiError as refusal:
            refused = error_response(scope["path"], refusal.status, refusal.message, context.id, refusal.headers)
            await refused(scope, receive, send_with_headers)
        except Exception as error:  # the edge: one request fails, the server goes on
            logger.exception("Request %s failed.", context.id)
            if started:  # the status line is out: a second answer would become part of the first one's body
                raise
            message = f"Something is wrong with the server ({type(error).__name__}); its log says more."
            await error_response(scope["path"], 500, message, context.id)(scope, receive, send_with_headers)
        finally:
            self._end(scope, context)

    def _refuse(self, scope: Scope, context: RequestContext) -> None:
        """Refuse who may not ask.

        Raises:
            ApiError: wrong host, other origin, no key, or too many requests.
        """
        if self._hosts is not None and (host := _host(context.headers.get(b"host", b""))) not in self._hosts:
            raise ApiError(
                421, f"Host {host!r} is not allowed. Expected one of {', '.join(sorted(self._hosts))}; "
                "tellapart serve --allowed-host adds a name.",
            )  # fmt: skip
        # Browsers name the site that a request comes from. With a key this check is not needed: no other site knows the
        # key. Behind a proxy, X-Forwarded-Host holds the name that the browser used.
        if (origin := context.headers.get(b"origin")) is not None and self._key is None:
            try:
                named = urlsplit(origin.decode("latin-1")).netloc.encode("latin-1")
            except ValueError:  # such as http://[
                raise ApiError(400, "The Origin header is not an origin. Expected it as browsers send it.") from None
            if named not in (context.headers.get(b"host"), context.headers.get(b"x-forwarded-host")):
                raise ApiError(403, "The request comes from the page of another site, which may not use this server.")
        path = scope["path"]
        if self._key is not None and path not in self._open and not self._has_key(context.headers):
            raise ApiError(
                401, "Expected the API key, as Authorization: Bearer KEY or X-API-Key: KEY.",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        # Health checks are exempt: a load balancer that got a 429 would take the server for dead.
        if not path.startswith("/v2/health/"):
            client = scope.get("client")
            if wait := self._rate.take(client[0] if client else ""):
                message = f"More than {self._options.limits.rate:g} requests in a second came from this address."
                raise ApiError(429, message, {"Retry-After": str(int(wait) + 1)})

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        assert self._key is not None
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        key = bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        # Constant time: with == the time would tell how many leading bytes are right.
        return hmac.compare_digest(key, self._key)

    def _end(self, scope: Scope, context: RequestContext) -> None:
        context.body.end()
        self._telemetry.leave()
        seconds = time.perf_counter() - context.began
        if context.counts is not None:
            context.counts.request(context.status)
            # A refusal takes no time: counted with the answers, overload would look fast.
            if context.images and context.status < 400:
                context.counts.whole.observe(seconds)
                self._telemetry.answered(seconds)
        if context.status in OVERLOAD:
            self._telemetry.turned_away()
        # Labelled by kind, never by path or message: clients must not be able to add series.
        if context.status == CLIENT_LEFT or context.status >= 400:
            kind = "client_left" if context.status == CLIENT_LEFT else code_of(context.status)
            self._telemetry.errors.labels(kind).inc()
        if self._log is not None:
            client = scope.get("client")
            name, version = context.model or (None, None)
            self._log.write(
                request_id=context.id, method=scope["method"], path=scope["path"], status=context.status,
                ms=round(1000 * seconds, 3), client=client[0] if client else None, model=name, version=version,
                images=context.images,
            )  # fmt: skip


def _add_headers(message: Message, request_id: str) -> None:
    """Add the headers that every answer has, and those that it has unless it brings its own."""
    headers: list[tuple[bytes, bytes]] = [*message.get("headers", ()), *_SECURITY]
    headers.append((b"x-request-id", request_id.encode()))
    present = {name for name, _ in headers}
    headers += [field for field in _NOTHING if field[0] not in present]
    message["headers"] = headers


def _host(header: bytes) -> str:
    """Return the name in a Host header, without port and brackets."""
    text = header.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")


def context_of(request: Request) -> RequestContext:
    """Return what `AccessMiddleware` knows of a request."""
    context: RequestContext = request.scope["context"]
    return context
