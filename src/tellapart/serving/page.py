"""The page for people, and the description of the endpoints. Knows nothing about models or images.

All files are read when the server starts: what is not among them cannot be asked for.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tellapart.serving import openapi as d
from tellapart.serving.endpoints import JSON, Endpoint, Protocol
from tellapart.serving.errors import ApiError
from tellapart.serving.middleware import context_of
from tellapart.serving.service import Service

FOLDER = Path(__file__).parent / "page"
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webmanifest": "application/manifest+json",
}
_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code,pre{font-family:ui-monospace,monospace}h2{margin-top:2.5rem}"
    "pre{overflow:auto;max-height:24rem;padding:.5rem;border:1px solid #8886}"
    "table{border-collapse:collapse}td{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
)
# /docs has an inline style; with its hash the policy allows this one and no other.
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_DOCS_CSP = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def load_pages(document: dict[str, Any], folder: Path = FOLDER) -> dict[str, Response]:
    """Return what is answered as it is, by path: the files of the page, and the OpenAPI document in two forms."""
    docs = Response(_as_html(document), media_type=_TYPES[".html"], headers={"Content-Security-Policy": _DOCS_CSP})
    pages = {"/docs": docs, "/openapi.json": Response(json.dumps(document), media_type=JSON)}
    for path in sorted(folder.glob("*")):
        if path.suffix in _TYPES and path.is_file():
            data = path.read_bytes()
            headers = _headers(f'"{hashlib.sha256(data).hexdigest()[:24]}"')
            pages[f"/{path.name}"] = Response(data, media_type=_TYPES[path.suffix], headers=headers)
    pages["/"] = pages["/index.html"]
    return pages


def _headers(etag: str) -> dict[str, str]:
    # no-cache: a browser may keep a file but must ask each time whether it has changed (304 if not), so a new page
    # never runs an old script.
    return {"ETag": etag, "Cache-Control": "no-cache", "Content-Security-Policy": _CSP}


async def page(service: Service, request: Request) -> Response:
    """Return a page, or say that the client has it."""
    path: str = request.scope["path"]
    response = service.pages.get(path)
    if response is None:
        raise ApiError(404, f"There is no page {path[1:]!r:.80} here. GET /docs lists what there is.")
    etag = response.headers.get("etag")
    if etag is not None and etag in context_of(request).headers.get(b"if-none-match", b"").decode("latin-1"):
        return Response(status_code=304, headers=_headers(etag))
    return response


def _as_html(document: dict[str, Any]) -> str:
    """Render the OpenAPI document as one page that needs nothing else."""
    info = document["info"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style><main><h1>{escape(info['title'])}</h1>"
        f"<p>{escape(info['description'])} The same for programs: <a href='openapi.json'>openapi.json</a>.</p>"
    ]
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(described['summary'])}</p>")
            parts.append(_operation_html(described))
    return "".join(parts) + "</main></html>"


def _operation_html(described: dict[str, Any]) -> str:
    parameters = {
        f"<code>{escape(parameter['name'])}</code>": parameter["description"]
        for parameter in described.get("parameters", ())
    }
    statuses = {escape(status): response["description"] for status, response in described["responses"].items()}
    bodies = [("Body", described.get("requestBody", {}))]
    bodies += [(status, response) for status, response in described["responses"].items() if status.startswith("2")]
    schemas = [
        _details(f"{title}: {kind}", content["schema"])
        for title, body in bodies
        for kind, content in body.get("content", {}).items()
    ]
    return (_table(parameters) if parameters else "") + "".join(schemas) + _table(statuses)


def _table(rows_html: dict[str, str]) -> str:
    cells = (f"<tr><td>{name}</td><td>{escape(meaning)}</td></tr>" for name, meaning in rows_html.items())
    return f"<table>{''.join(cells)}</table>"


def _details(title: str, schema: Any) -> str:
    text = escape(json.dumps(schema, indent=1, ensure_ascii=False))
    return f"<details><summary>{escape(title)}</summary><pre>{text}</pre></details>"


_PAGE = Protocol("page", d.ERROR)
_HTML, _FILE = {"text/html": d.TEXT}, {"*/*": d.TEXT}
_UNCHANGED = {304: {"description": "The file is as the client has it."}}

ENDPOINTS = (
    Endpoint(_PAGE, "GET", "/docs", page, "This description, for people.", _HTML, None),
    Endpoint(_PAGE, "GET", "/openapi.json", page, "This description, for programs.", {JSON: d.OBJECT}, None),
    Endpoint(_PAGE, "GET", "/", page, "The page.", _HTML, None, further=_UNCHANGED),
    # Takes any name, so it is the last.
    Endpoint(_PAGE, "GET", "/{file}", page, "A file of the page.", _FILE, None, errors=(404,), further=_UNCHANGED),
)  # fmt: skip
