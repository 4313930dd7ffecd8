"""The page for people, and the description of the endpoints. Knows nothing about models or images.

All files are read when the server starts: what is not among them cannot be asked for.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from tellapart.serving import openapi as d
from tellapart.serving.errors import ApiError
from tellapart.serving.middleware import visit_of

FOLDER = Path(__file__).parent / "page"
CSP = (
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
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_DOCS_CSP = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Asset:
    """A file of the page."""

    data: bytes
    media_type: str
    etag: str


def load_assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """Read the files of the page, by name."""
    assets = {}
    for path in sorted(folder.glob("*")):
        if path.suffix in _TYPES and path.is_file():
            data = path.read_bytes()
            assets[path.name] = Asset(data, _TYPES[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:24]}"')
    return assets


def router(app: FastAPI, assets: dict[str, Asset]) -> APIRouter:
    """Return the routes; the last of them takes any name, so this router comes last."""
    routes = APIRouter(tags=["page"])
    unchanged = {304: {"description": "The file is as the client has it."}}
    page = {"text/html": d.TEXT}

    @routes.get("/docs", response_class=Response, **d.endpoint("This description, for people.", page))
    async def docs() -> Response:
        return Response(
            _docs(app.openapi()), media_type=_TYPES[".html"], headers={"Content-Security-Policy": _DOCS_CSP}
        )

    description = d.endpoint("This description, for programs.", {"application/json": {"type": "object"}})

    @routes.get("/openapi.json", response_class=Response, **description)
    async def openapi() -> Response:
        return Response(json.dumps(app.openapi()), media_type="application/json")

    @routes.get("/", response_class=Response, **d.endpoint("The page.", page, errors=(404,), others=unchanged))
    async def index(request: Request) -> Response:
        return _asset(request, assets, "index.html")

    words = d.endpoint("A file of the page.", {"*/*": d.TEXT}, errors=(404,), others=unchanged)

    @routes.get("/{file}", response_class=Response, **words)
    async def asset(request: Request, file: str) -> Response:
        return _asset(request, assets, file)

    return routes


def _asset(request: Request, assets: dict[str, Asset], name: str) -> Response:
    found = assets.get(name)
    if found is None:
        raise ApiError(404, f"There is no page {name!r:.80} here. GET /docs lists what there is.")
    headers = {"ETag": found.etag, "Cache-Control": "no-cache", "Content-Security-Policy": CSP}
    if found.etag in visit_of(request.scope).headers.get(b"if-none-match", b"").decode("latin-1"):
        return Response(status_code=304, headers=headers)
    return Response(found.data, media_type=found.media_type, headers=headers)


def _docs(document: dict[str, Any]) -> str:
    """Render the OpenAPI document as one page that needs nothing else."""
    info = document["info"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style><main><h1>{escape(info['title'])}</h1>"
        f"<p>{escape(info.get('description', ''))} The same for programs: <a href='openapi.json'>openapi.json</a>.</p>"
    ]
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            parts.append(
                f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(told.get('summary', ''))}</p>"
            )
            parts.append(_docs_of(told))
    return "".join(parts) + "</main></html>"


def _docs_of(told: dict[str, Any]) -> str:
    rows = []
    for each in told.get("parameters", ()):
        meaning = escape(each.get("description", "part of the path"))
        rows.append(f"<tr><td><code>{escape(each['name'])}</code></td><td>{meaning}</td></tr>")
    parts = [f"<table>{''.join(rows)}</table>"] if rows else []
    for kind, content in told.get("requestBody", {}).get("content", {}).items():
        parts.append(_details(f"Body: {kind}", content.get("schema", {})))
    for status, response in told["responses"].items():
        for kind, content in response.get("content", {}).items():
            if status.startswith("2"):
                parts.append(_details(f"{status}: {kind}", content.get("schema", {})))
    others = [
        f"<tr><td>{escape(status)}</td><td>{escape(response['description'])}</td></tr>"
        for status, response in told["responses"].items()
    ]
    return "".join(parts) + f"<table>{''.join(others)}</table>"


def _details(title: str, schema: Any) -> str:
    text = escape(json.dumps(schema, indent=1, ensure_ascii=False))
    return f"<details><summary>{escape(title)}</summary><pre>{text}</pre></details>"
