"""The page about a model in production, and what it asks: on a real server, with a real store, in a real browser."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.in_browser import CHROMIUM, NAMELESS, TOO_WIDE, WEAK, visit
from serving.process import ServerProcess
from tellapart.bundles.bundle import open_bundle
from tellapart.monitoring.retraining_history import RetrainingHistory
from tellapart.request_store import RequestStore, StoredPrediction

pytestmark = [pytest.mark.integration, pytest.mark.slow]
KEY = "a-key-of-enough-letters"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "requests.db"


@pytest.fixture
def server(start: Callable[..., ServerProcess], bundle: Path, photos: list[Path], file: Path) -> ServerProcess:
    """A server that has answered four requests, whose photos are stored."""
    server = start(bundle, "--store", file, "--keep-photos", "--api-key", KEY)
    server.headers["X-API-Key"] = KEY
    for photo in photos[::25][:4]:
        assert server.call("/predict", photo.read_bytes())[0] == 200
    until = time.monotonic() + 20
    while len(server.json("/operations/review")[1]["questions"]) < 4:
        assert time.monotonic() < until
        time.sleep(0.05)
    return server


def test_it_answers_who_holds_the_key_and_nobody_else(server, start, bundle, file, tmp_path):
    paths = ("/operations", "/operations/review", "/operations/photos/x")
    for path in paths:
        assert server.call(path, headers={"X-API-Key": "another-key-of-letters"})[0] == 401
    assert server.call("/operations/review", b"[]", headers={"X-API-Key": ""})[0] == 401
    assert server.call("/operations.html", headers={"X-API-Key": ""})[0] == 200, "it asks for the key"
    without_store = start(bundle, "--api-key", KEY)
    without_store.headers["X-API-Key"] = KEY
    without_key = start(bundle, "--store", file)
    for other in (without_store, without_key):
        for path in paths:
            status, answer = other.json(path)
            assert (status, "with a key and a request store only" in answer["error"]["message"]) == (404, True)


def test_photos_are_asked_about_judged_and_come_no_more(server, file):
    status, answer = server.json("/operations/review?count=2")
    assert (status, len(answer["questions"])) == (200, 2)
    first, second = answer["questions"]
    status, data, headers = server.call(f"/operations/photos/{first['id']}")
    assert (status, headers["content-type"], data[:2]) == (200, "image/jpeg", b"\xff\xd8")
    assert server.call("/operations/photos/nothing")[0] == 404
    label = next(name for name in answer["classes"] if name != first["label"])
    said = [{"id": first["id"], "verdict": "wrong", "label": label}, {"id": second["id"], "verdict": "right"}]
    assert server.call("/operations/review", json.dumps(said).encode())[0] == 204
    left = {question["id"] for question in server.json("/operations/review")[1]["questions"]}
    assert len(left) == 2
    assert not left & {first["id"], second["id"]}
    assert server.json("/operations")[1]["labelled"] == 2
    for wrong in ({}, [1], [{"id": "x", "verdict": "maybe"}], [{"id": "x", "verdict": "wrong", "label": "cow"}]):
        assert server.call("/operations/review", json.dumps(wrong).encode())[0] == 400
    store = RequestStore(f"sqlite:///{file}")
    found = {row.id: (feedback.verdict, feedback.label) for row, feedback in store.predictions("shapes") if feedback}
    assert found == {first["id"]: ("wrong", label), second["id"]: ("right", None)}
    store.close()


def test_the_overview_says_how_the_model_does(server, bundle, file):
    opened, store = open_bundle(bundle), RequestStore(f"sqlite:///{file}")
    history = RetrainingHistory(store)
    retraining = history.begin("shapes", "here", "drift")
    history.end(retraining, "rejected", "lost 3 points")
    store.add([
        StoredPrediction(f"far{number}.0", 9e9 + number, "shapes", opened.version, similarity=-1.0, is_unknown=True)
        for number in range(400)
    ])  # fmt: skip
    store.close()
    status, answer = server.json("/operations")
    assert status == 200
    assert [(version["digest"], version["aliases"]) for version in answer["versions"]] == [
        (opened.version, ["champion"])
    ]
    assert answer["watch"]["is_drifting"]
    assert answer["watch"]["num_photos"] == 404
    low, high = answer["watch"]["accuracy"]["interval"]
    assert 0 <= low <= answer["watch"]["accuracy"]["value"] <= high <= 1
    assert answer["test"] is None
    assert [(one["outcome"], [step["name"] for step in one["steps"]]) for one in answer["retrainings"]] == [
        ("rejected", ["trigger", "end"])
    ]


SLOW = """() => {
    const asked = window.fetch;
    const later = (...words) => new Promise((go) => setTimeout(go, 300)).then(() => asked(...words));
    window.fetch = (url, words) => (String(url).includes("review?") ? later : asked)(url, words);
}"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_a_person_labels_photos_with_keys_and_fingers(browser: Any, server, file, width, scheme, tmp_path):
    phone = {"has_touch": True, "is_mobile": True} if width < 600 else {}
    size = {"width": width, "height": 800}
    path = f"/operations.html#key={KEY}"
    with visit(browser, server.url, path, viewport=size, color_scheme=scheme, **phone) as page:
        counts: list[str] = []
        page.on("request", lambda request: counts.extend(re.findall(r"/review\?.*count=(\d+)", request.url)))
        page.locator("#photo[src^=blob]").wait_for()
        assert KEY not in page.url, "no key stays in the address bar"
        page.locator("#versions td").first.wait_for()
        for found in (WEAK, NAMELESS, TOO_WIDE):
            assert page.evaluate(found) == []
        shown = page.evaluate("document.querySelector('#photo').naturalWidth")
        assert shown > 0
        asked = [page.locator("#predicted").inner_text()]
        # A slow server: what was asked before the skip is still being answered, and must not swallow the next question.
        page.evaluate(SLOW)
        page.locator("#predicted").click()
        page.locator("#review-state", has_text="1 labelled").wait_for()
        if width > 600:
            page.keyboard.press("2")
            page.keyboard.press("b")
            page.keyboard.press("ArrowLeft")
            page.locator("#review-state", has_text="2 labelled").wait_for()
            page.keyboard.press("n")
        else:
            page.locator("#classes button").nth(1).tap()
            page.locator("#none").tap()
        page.locator("#review-state", has_text="3 labelled").wait_for()
        page.locator("#skip").click()
        page.locator("#review-state", has_text="No photo waits").wait_for()
        for _ in range(100):
            if "31" in counts:
                break
            page.wait_for_timeout(100)
        assert counts[-1] == "31", "one more than usual, for the one that was skipped comes again"
    store = RequestStore(f"sqlite:///{file}")
    said = [feedback.verdict for _, feedback in store.predictions("shapes") if feedback]
    assert sorted(said) in (["right", "wrong", "wrong"], ["right", "right", "wrong"]), asked
    store.close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_without_a_key_the_page_asks_for_it_and_a_server_that_shows_nothing_says_so(
    browser: Any, server, start, bundle
):
    with visit(browser, server.url, "/operations.html", refusals=True) as page:
        page.locator("#key-value").fill(KEY)
        page.locator("#key-form .main").click()
        page.locator("#photo[src^=blob]").wait_for()
    with visit(browser, start(bundle).url, "/operations.html", refusals=True) as page:
        page.locator("#trouble", has_text="with a key and a request store only").wait_for()


def test_the_review_command_serves_the_page_with_a_key_of_its_own(bundle, file, photos):
    words = [sys.executable, "-m", "tellapart", "review", bundle, "--store", file, "--no-browser"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            found = re.match(r"Review: (http://127\.0\.0\.1:\d+)/operations\.html#key=(\S{20,})", line)
            assert found, line
            url, key = found.groups()
            request = urllib.request.Request(f"{url}/operations", headers={"X-API-Key": key})
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert json.load(answer)["no_watch"] == "No photo is stored yet."
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{url}/operations", timeout=30)
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 0
