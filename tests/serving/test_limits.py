"""What clients may not do: too much, too fast, too slowly, without a key, from elsewhere."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

from corpus import bomb
from serving.process import COMMAND, ServerProcess, changed, slow_form
from tellapart.errors import InputError
from tellapart.serving.errors import ApiError
from tellapart.serving.limits import RateLimit
from tellapart.serving.multipart import parse_multipart
from tellapart.serving.options import ServerOptions, check_access, is_loopback

KEY = "0123456789abcdef-key"


def connect(server: ServerProcess) -> socket.socket:
    place = urlsplit(server.url)
    assert place.hostname is not None
    return socket.create_connection((place.hostname, place.port or 0), timeout=20)


def answer_to(server: ServerProcess, request: bytes) -> bytes:
    """Send bytes and return what comes until the server closes the connection or is silent for a second."""
    with connect(server) as link:
        link.sendall(request)
        return read_all(link)


def read_all(link: socket.socket, seconds: float = 1.0) -> bytes:
    link.settimeout(seconds)
    data = b""
    try:
        while piece := link.recv(65536):
            data += piece
    except (TimeoutError, ConnectionError):
        pass
    return data


@pytest.mark.integration
def test_bodies_above_the_limit_are_refused_before_they_are_read(start: Callable[..., ServerProcess], bundle: Path):
    server = start(bundle, "--max-body-mb", "0.1", "--deadline-ms", "5000")
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
    declared = answer_to(server, head + b"Content-Length: 99999999999999999999\r\n\r\nabc")
    assert declared.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
    declared = answer_to(server, head + b"Content-Length: 200000\r\n\r\nabc")
    assert declared.startswith(b"HTTP/1.1 413")
    assert b"The body declares 200,000 bytes; at most 104,857 are taken" in declared
    chunk = b"8000\r\n" + bytes(0x8000) + b"\r\n"
    assert answer_to(server, head + b"Transfer-Encoding: chunked\r\n\r\n" + 4 * chunk).startswith(b"HTTP/1.1 413")
    chunked = answer_to(server, head + b"Transfer-Encoding: chunked\r\n\r\n" + 2 * chunk + b"0\r\n\r\n")
    assert chunked.startswith(b"HTTP/1.1 422"), "below the limit chunks are read"
    assert server.json("/predict", bytes(50_000))[0] == 422
    assert b"tellapart_in_flight 1.0" in server.call("/metrics")[1], "nothing is left behind"


@pytest.mark.integration
def test_bombs_and_too_many_files_are_refused(server: ServerProcess):
    began = time.perf_counter()
    status, found = server.json("/predict", bomb())
    assert status == 422
    assert "65,535 x 65,535 pixels; at most 100,000,000" in found["predictions"][0]["error"]
    assert time.perf_counter() - began < 1
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert server.json("/predict", 65 * part + b"--x--", headers=headers)[0] == 413
    assert server.json("/predict", 500 * part + b"--x--", headers=headers)[0] == 413
    status, found = server.json("/predict", b"abc", headers={"Content-Encoding": "gzip"})
    assert status == 415
    assert "encoded as 'gzip'" in found["error"]["message"]


@pytest.mark.integration
@pytest.mark.parametrize(("given", "holds"), [(None, 80_000), ("60000", 60_000), ("90000", 80_000)])
def test_a_server_decodes_no_more_pixels_than_its_bundle_and_its_option_allow(
    start: Callable[..., ServerProcess], bundle: Path, tmp_path: Path, given: str | None, holds: int
):
    server = start(changed(bundle, tmp_path / "small", max_pixels=80_000), *(["--max-pixels", given] if given else []))
    assert server.json("/models")[1]["models"][0]["max_pixels"] == holds
    fits, too_large = (
        cv2.imencode(".png", np.zeros((200, holds // 200 + more), np.uint8))[1].tobytes() for more in (0, 1)
    )
    for path in ("/predict", "/explain?format=json"):
        assert server.json(path, fits)[0] == 200
        status, body, _ = server.call(path, too_large)
        assert status == 422
        assert f"at most {holds:,}".encode() in body


def test_a_form_is_cut_where_it_should_be():
    body = (
        b'preamble\r\n--x\r\nContent-Disposition: form-data; name="note"\r\n\r\n --x is no boundary\r\n'
        b"--x  \r\ncontent-type: image/jpeg\r\n"
        b'content-disposition: form-data; filename="a \\"b\\".jpg"; name=file\r\n\r\n'
        b"\r\n\x00\xff\r\n\r\n--x--\r\nepilogue"
    )
    note, file = parse_multipart(body, b'multipart/form-data; charset=utf-8; boundary="x"', 8)
    assert (note.name, note.filename, note.data) == ("note", None, b" --x is no boundary")
    assert (file.name, file.filename, file.data) == ("file", 'a "b".jpg', b"\r\n\x00\xff\r\n")
    assert parse_multipart(b"--x--", b"multipart/form-data; boundary=x", 8) == []


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"", b"multipart/form-data; boundary=x", "does not occur"),
        (b"--x\r\n", b"multipart/form-data", "names no boundary"),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nabc", b"m; boundary=x", "the end boundary is missing"),
        (b"--x\r\n\r\n--x--", b"m; boundary=x", "no empty line"),
        (b"--xy\r\n\r\n\r\n--x--", b"m; boundary=x", "followed by something else"),
        (b"--x\r\nA: b\r\n\r\nabc\r\n--x--", b"m; boundary=x", "no Content-Disposition"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--", b"m; boundary=x", "no Content-Disposition"),
        (b"--x\r\nA: " + b"b" * 9000 + b"\r\n\r\nabc\r\n--x--", b"m; boundary=x", "longer than 8192"),
    ],
)
def test_malformed_forms_are_refused(body: bytes, kind: bytes, message: str):
    with pytest.raises(ApiError, match=message) as caught:
        parse_multipart(body, kind, 8)
    assert caught.value.status == 400


def test_no_bytes_make_the_form_parser_fail_otherwise():
    random = np.random.default_rng(0)
    good = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
    for _ in range(3000):
        data = bytearray(good)
        for at in random.integers(0, len(data), 4):
            data[at] = random.choice(list(b'\r\n-x";: a'))
        with contextlib.suppress(ApiError):
            parse_multipart(bytes(data), b"multipart/form-data; boundary=x", 8)


@pytest.mark.integration
def test_requests_that_are_no_http_or_have_endless_headers_end(server: ServerProcess):
    assert answer_to(server, b"GARBAGE\r\n\r\n").startswith(b"HTTP/1.1 400")
    endless = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 900) for n in range(100))
    assert answer_to(server, endless).startswith(b"HTTP/1.1 431")
    assert answer_to(server, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n").startswith(b"HTTP/1.1 431")
    assert server.json("/stats")[0] == 200


@pytest.mark.integration
def test_slow_clients_are_sent_away(bundle: Path, tmp_path: Path):
    """With shorter times than a person can set: headers that do not end, bodies that do not come, read or unread."""
    program = (
        "import sys; from pathlib import Path\n"
        "from tellapart.serving import http_server; http_server._LEFT_OVER_SECONDS = 0.4\n"
        "from tellapart.serving.app import make_app\n"
        "from tellapart.serving.http_server import Server, bind\n"
        "from tellapart.serving.options import Limits, ServerOptions\n"
        "limits = Limits(header_seconds=0.4, body_seconds=0.4)\n"
        "options = ServerOptions((Path(sys.argv[1]),), limits=limits, log=False)\n"
        "bound = bind('127.0.0.1', 0); app = make_app(options)\n"
        "Server(app, options, ready=lambda: print(bound.getsockname()[1], flush=True)).run([bound])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, bundle], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        server = ServerProcess(process, f"http://127.0.0.1:{int(process.stdout.readline())}", tmp_path / "none")
        for beginning in (b"", b"GET /stats HTTP/1.1\r\nHost: localhost\r\nX-A"):
            with connect(server) as link:
                link.sendall(beginning)
                assert read_all(link, 5).startswith(b"HTTP/1.1 408")
        with connect(server) as link:
            link.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            found = read_all(link, 5)
        assert found.startswith(b"HTTP/1.1 408")
        assert b"did not arrive within 0.4 seconds" in found
        with connect(server) as link:
            link.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99000000\r\n\r\nabc")
            began = time.monotonic()
            assert read_all(link, 5).startswith(b"HTTP/1.1 413")
            assert time.monotonic() - began < 4, "nobody waits for the rest of it"
        assert server.json("/stats")[0] == 200
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0
        process.stdout.close()


@pytest.mark.integration
def test_a_full_queue_answers_503_at_once_and_a_client_that_leaves_makes_room(
    start: Callable[..., ServerProcess], bundle: Path, photos: list[Path]
):
    server = start(bundle, "--threads", "1", "--max-queue", "2", "--max-batch-size", "1")
    body = slow_form(20)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    request = head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with connect(server) as link:
        link.sendall(request)
        until = time.monotonic() + 5
        while server.json("/stats")[1]["queue"] < 2 and time.monotonic() < until:
            time.sleep(0.002)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            status, answer, headers = server.call("/predict", photos[0].read_bytes())
            times.append(time.perf_counter() - began)
            assert (status, headers.get("retry-after")) == (503, "1"), answer
        assert min(times) < 0.02
    until = time.monotonic() + 5
    while server.json("/stats")[1]["queue"] > 1 and time.monotonic() < until:
        time.sleep(0.002)
    assert server.json("/predict", photos[0].read_bytes())[0] == 200
    text = server.call("/metrics")[1].decode()
    assert 'tellapart_errors_total{kind="busy"} 3.0' in text
    assert 'tellapart_errors_total{kind="client_left"} 1.0' in text
    with connect(server) as link:
        link.sendall(request)
        assert read_all(link, 10).startswith(b"HTTP/1.1 200"), "more than may wait, when nothing waits"


@pytest.mark.integration
def test_after_the_deadline_the_answer_is_504(start: Callable[..., ServerProcess], bundle: Path, photos: list[Path]):
    server = start(bundle, "--deadline-ms", "1")
    status, found = server.json("/predict", cv2.imencode(".png", np.zeros((3000, 3000), np.uint8))[1].tobytes())
    assert status == 504
    assert "no answer within 1 ms" in found["error"]["message"]


def test_a_bucket_holds_one_second_and_fills_again(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("tellapart.serving.limits.time.monotonic", lambda: now)
    limit = RateLimit(4.0)
    assert [limit.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.25]
    assert limit.take("b") == 0
    now = 100.25
    assert limit.take("a") == 0
    assert limit.take("a") > 0
    assert RateLimit(0.0).take("a") == 0


@pytest.mark.integration
def test_a_key_a_rate_and_open_health(start: Callable[..., ServerProcess], bundle: Path, photos: list[Path]):
    server = start(bundle, "--api-key", KEY, "--rate", "20")
    data = photos[0].read_bytes()
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": KEY + "x"}, {"Authorization": f"Basic {KEY}"}):
        status, body, answered = server.call("/predict", data, headers)
        assert (status, answered["www-authenticate"]) == (401, "Bearer")
        assert json.loads(body)["error"]["code"] == "no_key"
    for path in ("/metrics", "/stats", "/models", "/v2", "/v1/models/shapes"):
        assert server.call(path)[0] == 401, path
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}):
        assert server.call("/predict", data, headers)[0] == 200
    for path in ("/v2/health/live", "/v2/health/ready", "/", "/openapi.json", "/docs"):
        assert server.call(path)[0] == 200
    found = [server.call("/stats", headers={"X-API-Key": KEY}) for _ in range(40)]
    refused = [headers for status, _, headers in found if status == 429]
    assert refused
    assert refused[0]["retry-after"] == "1"
    assert server.call("/v2/health/live")[0] == 200
    assert KEY not in server.log.read_text()


@pytest.mark.integration
def test_other_hosts_and_origins_are_refused(server: ServerProcess):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert server.json("/stats", headers={"Host": host})[0] == 421, host
    for host in ("localhost", "127.0.0.1:1234", "[::1]:80", "LOCALHOST"):
        assert server.json("/stats", headers={"Host": host})[0] == 200, host
    own = {"Origin": server.url}
    assert server.json("/stats", headers=own)[0] == 200
    for origin in ("http://[", "http://[::1", "http://a]b", "http://[v]"):
        assert server.json("/stats", headers={"Origin": origin})[0] in (400, 403), origin
    for origin in ("https://evil.example", "null"):
        assert server.json("/feedback", b"{}", headers={"Origin": origin})[0] == 403


@pytest.mark.integration
@pytest.mark.parametrize(
    "path",
    ["/../pyproject.toml", "/%2e%2e/app.py", "/..%2fapp.py", "/page/../../app.py", "//etc/passwd", "/.", "/a\\b"],
)
def test_no_path_leads_out_of_the_page(server: ServerProcess, path: str):
    found = answer_to(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert re.match(rb"HTTP/1.1 40[04]", found)


def test_a_server_for_others_needs_a_key_or_a_word():
    for host in ("0.0.0.0", "::", "192.168.1.5", "pets.example"):
        assert not is_loopback(host)
        with pytest.raises(InputError, match="Give --api-key or set TELLAPART_API_KEY; or say --no-auth"):
            check_access(ServerOptions(host=host), no_auth=False)
        check_access(ServerOptions(host=host), no_auth=True)
        check_access(ServerOptions(host=host, api_key=KEY), no_auth=False)
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        check_access(ServerOptions(host=host), no_auth=False)
    with pytest.raises(InputError, match=r"The API key has 5 characters. Expected at least 16"):
        check_access(ServerOptions(api_key="short"), no_auth=False)


@pytest.mark.integration
def test_an_address_that_is_taken_is_one_clear_error(server: ServerProcess, bundle: Path):
    port = server.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, bundle, "--port", port], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
