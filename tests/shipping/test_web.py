"""The page that needs no server: in a real browser, at a phone's size, then with the network cut off."""

from __future__ import annotations

import base64
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import tellapart
from serving.in_browser import CHROMIUM, NAMELESS, TOO_WIDE, WEAK, visit
from tellapart.bundles.bundle import open_bundle, write_record
from tellapart.bundles.predictor import explain_bundle, open_classifier
from tellapart.data.decode import decode, decode_square
from tellapart.errors import BundleError, InputError
from tellapart.shipping import web
from tellapart.shipping.web import export_web
from tellapart.shipping.web_heat import lay_open

pytest.importorskip("playwright.sync_api")
pytest.importorskip("ai_edge_litert")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm, which fetches the runtime of the page"),
]
QUICK = [
    "data.image_px=32", "train.epochs=8", "train.batch_size=16", "train.learning_rate=4e-3", "train.precision=float32",
    "train.warmup_epochs=1", "train.recalibrate_photos=256", "model.dropout=0.1", "model.l2=0.0",
]  # fmt: skip
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    photos = tellapart.draw(folder / "photos", num_images=400)
    run = tellapart.train(photos, changes=QUICK, out=folder / "run", cache=folder / "cache")
    tellapart.export(
        run.path, folder / "bundle", formats=["litert"], precision="int8", margin=0.5, cache=folder / "cache"
    )
    return folder


@pytest.fixture(scope="module")
def page_folder(place: Path) -> Path:
    try:
        return export_web(place / "bundle", place / "page")
    except InputError as error:  # a machine without a network
        pytest.skip(str(error))


@pytest.fixture
def served(page_folder: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(page_folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_a_phone_classifies_with_the_network_cut_off(
    served: str, page_folder: Path, place: Path, browser: Any, tmp_path: Path
):
    photos = sorted((place / "photos").rglob("*.jpg"))[::80]
    with visit(browser, served, **PHONE) as page:
        page.get_by_text("On this device, also without a network").wait_for(timeout=30_000)
        assert page.evaluate("self.crossOriginIsolated"), "threads need it"
        page.context.set_offline(True)
        page.reload()
        page.get_by_text("On this device, also without a network").wait_for(timeout=30_000)
        classifier = open_classifier(place / "bundle", runtime="litert-int8")
        for number, photo in enumerate(photos):
            page.set_input_files("#files", photo)
            page.locator("#found").wait_for()
            page.wait_for_function(f"document.querySelectorAll('#thumbs button').length === {number + 1}")
            page.locator("#file-name", has_text=photo.name).wait_for()
            page.locator("#frame:not(.busy)").wait_for()  # before that the last picture's answer may still stand there
            (expected,) = classifier.predict([photo], top_k=len(classifier.classes))
            shown = page.locator("#bars .name").first.inner_text()
            # Not the label alone: two classes may share the highest of the 256 values that int8 has.
            assert dict(expected.top)[shown] > expected.probability - 0.02
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate(WEAK) == []
        assert page.evaluate(NAMELESS) == []
        broken = tmp_path / "broken.jpg"
        broken.write_bytes(b"\xff\xd8 no picture")
        page.set_input_files("#files", broken)
        page.get_by_text("This is no picture that can be read").first.wait_for()
    total = sum(path.stat().st_size for path in page_folder.rglob("*") if path.is_file())
    assert total < 13e6


def test_heat_maps_are_the_bundles_and_are_drawn(served: str, place: Path, browser: Any):
    photos = sorted((place / "photos").rglob("*.jpg"))[::100]
    explain, classifier = explain_bundle(open_bundle(place / "bundle")), open_classifier(place / "bundle")
    differences = []
    script = """async ([text, label]) => {
      const {ask} = await import('./ask.js'), body = await (await fetch(`data:image/jpeg;base64,${text}`)).blob();
      return (await ask(`explain?label=${label}`, {body})).heat;
    }"""
    with visit(browser, served) as page:
        page.get_by_text("On this device, also without a network").wait_for(timeout=30_000)
        for photo in photos:
            square = decode_square(photo.read_bytes(), 32)[None]
            for number, label in enumerate(classifier.classes):
                expected = explain(square, np.array([number]))[0]
                found = page.evaluate(script, [base64.b64encode(photo.read_bytes()).decode(), label])
                differences.append(np.abs(np.array(found) - expected).mean())
        # Each is scaled to its own largest value; the network here is in int8.
        assert np.mean(differences) < 0.05
        assert np.median(differences) < 0.03
        page.set_input_files("#files", photos[0])
        page.get_by_text("Bright places speak most for").wait_for()
        assert page.locator("#heat").evaluate("(canvas) => canvas.width") == 32
        assert page.locator(".strength").is_visible()


def test_a_network_that_ends_otherwise_draws_none(place: Path, page_folder: Path, tmp_path: Path):
    (artefact,) = (each for each in open_bundle(place / "bundle").record.artefacts if each.format == "litert")
    model = (place / "bundle" / artefact.path).read_bytes()
    opened = lay_open(model)
    assert opened.size == (8, 8)
    assert [layer.rows.shape for layer in opened.layers] == [(256, 128), (10, 256)]
    with pytest.raises(InputError, match="features"):
        lay_open(opened.model)
    said: list[str] = []
    shutil.copytree(place / "bundle", tmp_path / "bundle")
    record = open_bundle(tmp_path / "bundle").record.model_copy(update={"reference_images": {}})
    write_record(tmp_path / "bundle", record)
    page = export_web(tmp_path / "bundle", tmp_path / "page", announce=said.append)
    assert "draws no heat maps" in said[0]
    assert ".strength, #heat-text" in (page / "index.html").read_text()
    assert not (page / "heat.bin").exists()


def test_pictures_are_shrunk_as_they_are_here(served: str, browser: Any):
    sizes = [(64, 64), (200, 100), (65, 333), (40, 20), (500, 33)]
    random = np.random.default_rng(0)
    with visit(browser, served) as page:
        page.get_by_text("On this device, also without a network").wait_for(timeout=30_000)  # it is loaded twice
        for width, height in sizes:
            picture = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
            script = """async ([width, height, values]) => {
              const {square} = await import('./square.js'), data = new Uint8ClampedArray(width * height * 4);
              for (let i = 0; i < width * height; i++) data.set([...values.slice(3 * i, 3 * i + 3), 255], 4 * i);
              return [...square({width, height, data}, 32)];
            }"""
            found = page.evaluate(script, [width, height, picture.ravel().tolist()])
            encoded = cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes()
            expected = decode_square(encoded, 32)
            np.testing.assert_array_equal(decode(encoded), picture)
            difference = np.abs(np.array(found).reshape(32, 32, 3) - expected.astype(int))
            assert difference.max() <= 1, (width, height)


@pytest.mark.by_hand
def test_what_has_no_proved_litert_model_makes_no_page(place: Path, tmp_path: Path, page_folder: Path):
    tellapart.export(place / "run", tmp_path / "plain", cache=place / "cache")
    with pytest.raises(BundleError, match="--format litert"):
        export_web(tmp_path / "plain", tmp_path / "page")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(InputError, match=r"thesis\.txt, which"):
        export_web(place / "bundle", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert not (tmp_path / "page").exists()


def test_a_package_that_is_another_one_is_refused(
    page_folder: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TELLAPART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(web.PACKAGES, "@litertjs/wasm-utils", ("2.5.3", "0" * 64))
    monkeypatch.delitem(web.PACKAGES, "@litertjs/core")
    with pytest.raises(InputError, match="is not what it was"):
        export_web(place / "bundle", tmp_path / "page")
    assert not (tmp_path / "page").exists()
    assert not list((tmp_path / "cache" / "npm").glob("*"))
