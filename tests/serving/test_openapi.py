"""The OpenAPI document is true, and docs/serve.md names what there is."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks

from serving.process import ServerProcess
from tellapart.serving.telemetry import Telemetry

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
TRUE = [
    checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance, checks.response_headers_conformance, checks.negative_data_rejection,
    checks.unsupported_method,
]  # fmt: skip
"""What must hold for every request that can be made of the document. That each of them is answered well is not among
it: what is a text by its schema need not be an image or a model's name."""


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> dict[str, Any]:
    status, found = server.json("/openapi.json")
    assert status == 200
    return found


@pytest.mark.integration
@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=pytest.mark.slow, id=mode.value) for mode in GenerationMode],
)
def test_every_endpoint_does_what_its_description_says(
    server: ServerProcess, document: dict[str, Any], mode: GenerationMode
):
    """With requests that fit the description, and with such as do not."""
    schema, asked = schemathesis.openapi.from_url(f"{server.url}/openapi.json"), set()
    for result in schema.get_all_operations():
        operation = result.ok()
        try:
            cases = operation.as_strategy(generation_mode=mode)
        except Unsatisfiable:
            continue

        @given(case=cases)
        @settings(
            max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
        )
        def ask(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=TRUE)
            asked.add((case.method, case.path))

        with contextlib.suppress(Unsatisfiable):  # there is no wrong request to an endpoint that takes anything
            ask()
    asked.add(("GET", "/openapi.json"))  # schemathesis leaves out where the document came from
    everything = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert mode is GenerationMode.NEGATIVE or asked == everything


@pytest.mark.integration
def test_the_description_for_people_lists_everything_and_asks_nobody(server: ServerProcess, document: dict[str, Any]):
    status, body, headers = server.call("/docs")
    page = body.decode()
    assert status == 200
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            assert f"<code>{method.upper()} {path}</code>" in page
            assert told["summary"] in page
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:|//)", page)
    assert "<script" not in page
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")


@pytest.mark.integration
def test_every_endpoint_is_documented(document: dict[str, Any]):
    paths = {re.sub(r"\{\w+\}", "*", path) for path in document["paths"]}
    named = {re.sub(r"\{\w+\}", "*", path) for path in re.findall(r"(?<=[ `])/[\w/{}.:]*", PAGE)}
    assert {"/predict", "/v2/models/*/infer", "/metrics", "/"} <= paths
    assert paths - named == set()


def test_every_metric_is_documented():
    names = {metric.name for metric in Telemetry().registry.collect()}
    assert len(names) > 12
    assert {name for name in names if f"`{name}" not in PAGE} == set()
