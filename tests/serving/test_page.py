"""The page for people, in a real browser on a real server: what a person does and sees, at small and large sizes."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from serving.in_browser import CHROMIUM, NAMELESS, TOO_WIDE, WEAK, visit
from tellapart.bundles.bundle import open_bundle, write_record

pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.integration, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

PAGE = Path(__file__).parents[2] / "src" / "tellapart" / "serving" / "page"
KEY = "a-key-of-enough-letters"
HEATED = '#heat:not([width="1"]):not(.old)'
COLOURS = """() => {const c = document.querySelector('#heat'); let n = 0;
const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 40 && Math.abs(d[i] - d[i + 2]) > 25) n++; return n;}"""


def choose(page: Any, *files: Path) -> None:
    """Choose pictures and wait for the answer to the first."""
    page.set_input_files("#files", list(files))
    page.locator("#found").wait_for()


def picture(path: Path, pixels: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), pixels)
    return path


def changed(bundle: Path, to: Path, **values: Any) -> Path:
    shutil.copytree(bundle, to)
    write_record(to, open_bundle(bundle).record.model_copy(update=values))
    return to


def verdicts(server: Any) -> list[dict]:
    file = server.log.parent / "feedback.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def transfer(page: Any, path: Path) -> Any:
    """Return a DataTransfer that holds a file, as a drop or a paste brings it."""
    script = """([name, text]) => {
      const data = new DataTransfer(), bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      data.items.add(new File([bytes], name, {type: 'image/jpeg'}));
      return data;
    }"""
    return page.evaluate_handle(script, [path.name, base64.b64encode(path.read_bytes()).decode()])


def test_the_page_is_small_and_holds_no_inline_code_and_no_address():
    texts = {path.name: path.read_text() for path in PAGE.iterdir()}
    sizes = {name: len(text.encode()) for name, text in texts.items()}
    of_operations = sum(size for name, size in sizes.items() if name.startswith("operations"))
    assert sum(sizes.values()) - of_operations < 64_000
    assert of_operations < 24_000
    for name, text in texts.items():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name
    assert not re.search(r"""\s(style|on\w+)=["']|<style|<script>""", texts["index.html"] + texts["operations.html"])


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light"), (3840, "dark")])
def test_a_person_sees_what_a_picture_is_and_why(
    browser: Any, server: Any, photos: list[Path], width: int, scheme: str
):
    size = {"width": width, "height": 2160 if width == 3840 else 800}
    phone = {"has_touch": True, "is_mobile": True} if width == 360 else {}
    with visit(browser, server.url, viewport=size, color_scheme=scheme, **phone) as page:
        page.locator("#about").wait_for()
        assert page.locator("#photograph").is_visible() == (width == 360)
        assert page.evaluate(WEAK) == []
        choose(page, *photos[::40][:4])
        page.locator(HEATED).wait_for()
        assert page.evaluate(COLOURS) > 20
        assert page.locator("#thumbs button").count() == 4
        first = page.locator("#bars button").first
        assert page.locator("#headline").inner_text() in (first.locator(".name").inner_text(), "I am not sure")
        assert re.fullmatch(r"[<>]?\s?\d+\.\d\s%", first.locator(".share").inner_text())
        page.locator("#thumbs button:has-text('…')").first.wait_for(state="detached")
        assert page.evaluate(WEAK) == []
        assert page.evaluate(NAMELESS) == []
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width

        second = page.locator("#bars button").nth(1)
        second.click()
        page.locator(HEATED).wait_for()
        label = second.locator(".name").inner_text()
        assert page.locator("#heat").get_attribute("aria-label").endswith(f"speaks for {label}")
        assert second.get_attribute("aria-pressed") == "true"
        strong = page.locator("#frame").screenshot()
        page.locator("#strength").fill("0")
        page.wait_for_timeout(300)  # the change is drawn gradually
        assert page.locator("#strength-text").inner_text() == "0 %"
        assert page.locator("#frame").screenshot() != strong

        before = len(verdicts(server))
        page.locator("#wrong").click()
        page.locator("#truth").fill(label[:3])
        page.locator(f"#options li:text-is('{label}')").click()
        page.locator("#thanks:has-text('Thank you')").wait_for()
        assert page.evaluate(WEAK) == []
        (line,) = verdicts(server)[before:]
        assert (line["verdict"], line["label"]) == ("wrong", label)


def test_pictures_are_pasted_dropped_and_removed(browser: Any, server: Any, photos: list[Path]):
    with visit(browser, server.url) as page:
        paste = "(data) => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}))"
        page.evaluate(paste, transfer(page, photos[0]))
        page.locator("#found").wait_for()
        assert photos[0].name in page.locator("#file-name").inner_text()
        data = transfer(page, photos[-1])
        page.dispatch_event("body", "dragover", {"dataTransfer": data})
        assert page.locator("#drop").is_visible()
        page.dispatch_event("body", "drop", {"dataTransfer": data})
        page.locator(f"#file-name:has-text('{photos[-1].name}')").wait_for()
        page.locator("#found").wait_for()
        assert not page.locator("#drop").is_visible()
        assert page.locator("#thumbs button").count() == 2
        page.locator("#remove").click()
        assert photos[0].name in page.locator("#file-name").inner_text()
        page.locator("#clear").click()
        assert page.locator("#work").is_hidden()
        assert page.locator("h1").is_visible()


def test_everything_can_be_done_with_the_keyboard(browser: Any, server: Any, photos: list[Path]):
    with visit(browser, server.url) as page:
        page.locator("#about").wait_for()

        def tab_to(selector: str) -> None:
            for _ in range(40):
                page.keyboard.press("Tab")
                if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
                    outline = page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")
                    assert outline >= 2, f"the focus on {selector} is seen"
                    return
            pytest.fail(f"Tab never came to {selector}")

        # Playwright does not wait until the browser has heard that it listens: Enter right after could come first.
        page.on("filechooser", lambda _: None)
        tab_to("#choose")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(photos[:3])
        page.locator(HEATED).wait_for()
        tab_to("#thumbs button")
        page.keyboard.press("ArrowRight")
        assert photos[1].name in page.locator("#file-name").inner_text()
        page.locator(HEATED).wait_for()
        top = page.locator("#bars .name").first.inner_text()
        tab_to("#strength")
        page.keyboard.press("ArrowRight")
        assert page.locator("#strength-text").inner_text() == "71 %"
        tab_to("#bars li:nth-child(2) button")
        page.keyboard.press("Space")
        assert page.locator("#bars button").nth(1).get_attribute("aria-pressed") == "true"
        page.keyboard.press("Escape")
        assert page.locator("#bars button").first.get_attribute("aria-pressed") == "true"
        tab_to("#wrong")
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
        assert page.locator("#options").is_hidden()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        chosen = page.locator("#options [aria-selected=true]")
        assert page.locator("#truth").get_attribute("aria-activedescendant") == chosen.get_attribute("id")
        assert chosen.inner_text() != top
        page.keyboard.press("Enter")
        page.locator("#thanks").wait_for()
        assert page.evaluate("document.activeElement.id") == "thanks"
        tab_to("#by-class summary")
        page.keyboard.press("Enter")
        assert page.locator("#by-class table").is_visible()
        page.locator("#scheme").focus()
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.keyboard.press("Space")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper
        page.reload()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper, "the choice is kept"


def test_strange_pictures_and_what_is_none_are_said_in_plain_words(
    browser: Any, server: Any, photos: list[Path], tmp_path: Path
):
    black = picture(tmp_path / "black.png", np.zeros((20, 30, 3), np.uint8))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff no")
    with visit(browser, server.url, refusals=True) as page:
        page.locator("#about").wait_for()
        choose(page, black)
        text = page.locator("#quality").inner_text()
        assert "unlike those that the model was measured on" in text
        assert "too dark" in text
        assert "too small" in text
        page.set_input_files("#files", [broken, photos[0]])
        page.locator("#failed-title:has-text('This is no picture that can be read')").wait_for()
        assert page.locator("#failed-text").inner_text().startswith("The file ")
        page.locator("#thumbs button").nth(2).click()
        page.locator("#found").wait_for()
        assert page.locator("#found").is_visible(), "the others get their answer"


def test_it_says_that_it_is_not_sure_and_models_can_be_chosen(
    browser: Any, start: Callable[..., Any], bundle: Path, photos: list[Path], tmp_path: Path
):
    unsure = changed(bundle, tmp_path / "unsure", threshold=0.0)
    strict = changed(bundle, tmp_path / "strict", name="strict", threshold=1.0, explains=None)
    server = start(bundle, unsure, strict)
    name, version = open_bundle(bundle).record.name, open_bundle(unsure).version
    with visit(browser, server.url, refusals=True) as page:
        page.locator("#model-field").wait_for()
        page.select_option("#version", version)
        choose(page, photos[0])
        assert page.locator("#headline").inner_text() == "I am not sure"
        assert page.locator("#sentence").inner_text().startswith("It could be ")
        assert version in page.locator("#took").inner_text()
        page.select_option("#model", "strict")
        page.locator("#took:has-text('strict')").wait_for()
        assert "No class is likely enough" in page.locator("#sentence").inner_text()
        page.locator("#heat-text:has-text('no heat maps')").wait_for()
        assert page.locator("#version-field").is_hidden()
        page.select_option("#model", name)
        page.select_option("#version", open_bundle(bundle).version)
        page.locator(f"#took:has-text('{open_bundle(bundle).version}')").wait_for()
        page.locator(HEATED).wait_for()


def test_a_picture_of_no_known_class_is_said_to_be_one(
    browser: Any, start: Callable[..., Any], bundle: Path, photos: list[Path], tmp_path: Path
):
    strict, opened = tmp_path / "strict", open_bundle(bundle)
    shutil.copytree(bundle, strict)
    assert opened.detector is not None
    replace(opened.detector, threshold=1.5).save(strict / "unknown.npz")  # nothing is near enough
    write_record(strict, opened.record)
    with visit(browser, start(strict).url) as page:
        page.locator("#about").wait_for()
        choose(page, photos[0])
        assert page.locator("#headline").inner_text() == "None of the known classes"
        assert re.match(r"The nearest is \w+\. Of photos .* 5\s% at most", page.locator("#sentence").inner_text())
        assert page.locator("#thumbs button").inner_text() == "unknown"
        assert "none of the known classes" in (page.locator("#thumbs button").get_attribute("aria-label") or "")
        assert page.locator("#bars .in-set").count() == 0


def test_a_key_is_asked_for_and_a_large_file_is_refused(
    browser: Any, start: Callable[..., Any], bundle: Path, photos: list[Path], tmp_path: Path
):
    server = start(bundle, "--api-key", KEY, "--max-body-mb", "0.1")
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    with visit(browser, server.url, refusals=True) as page:
        for key, title in (("wrong", "This server needs a key"), (KEY, "That key was not accepted")):
            page.locator(f"#key-title:has-text('{title}')").wait_for()
            page.locator("#key-value").fill(key)
            page.keyboard.press("Enter")
        page.locator("#about").wait_for()
        assert page.locator("#metrics").is_hidden(), "a link brings no key"
        assert page.evaluate("sessionStorage.getItem('tellapart-key')") == KEY
        choose(page, photos[0])
        page.set_input_files("#files", [picture(tmp_path / "large.png", noise)])
        page.locator("#failed").wait_for()
        assert page.locator("#failed-title").inner_text() in ("This file is too large", "The connection broke")
        page.reload()
        page.locator("#about").wait_for()
        assert page.locator("#key").is_hidden(), "the key is kept as long as the tab"


def test_it_asks_again_by_itself_when_the_server_is_busy_or_away(browser: Any, server: Any, photos: list[Path]):
    with visit(browser, server.url, refusals=True) as page:
        page.locator("#about").wait_for()
        busy = {"error": {"code": "busy", "message": "The queue is full.", "request_id": "1"}}
        page.route(
            "**/predict?*",
            lambda route: route.fulfill(status=503, headers={"Retry-After": "1"}, body=json.dumps(busy)),
            times=1,
        )
        page.set_input_files("#files", [photos[0]])
        page.locator("#busy-text:has-text('The server is busy')").wait_for()
        page.locator("#found").wait_for()
        page.context.set_offline(True)
        page.set_input_files("#files", [photos[1]])
        page.locator("#failed-title:has-text('cannot be reached')").wait_for()
        page.locator("#state-text:has-text('does not answer')").wait_for()
        page.context.set_offline(False)
        page.locator("#found").wait_for()
        assert page.locator("#state-text").inner_text() == "The server answers"


def test_names_and_labels_are_text(browser: Any, start: Callable[..., Any], bundle: Path, photos: list[Path], tmp_path):
    record = open_bundle(bundle).record
    classes = tuple(f"<img src=x onerror=alert({number})>" for number in range(len(record.classes)))
    server = start(changed(bundle, tmp_path / "evil", classes=classes))
    evil = tmp_path / "<b>name<b>.jpg"
    shutil.copy(photos[0], evil)
    with visit(browser, server.url) as page:
        page.locator("#about").wait_for()
        choose(page, evil)
        page.locator(HEATED).wait_for()
        assert page.locator("#bars .name").first.inner_text() in classes
        assert evil.name in page.locator("#file-name").inner_text()
        assert page.locator("[onerror], #file-name b").count() == 0


def test_the_live_camera_names_what_it_sees_and_keeps_a_picture(browser: Any, server: Any):
    with visit(browser, server.url, permissions=["camera"]) as page:
        page.locator("#about").wait_for()
        page.locator("#camera").click()
        page.locator("#seen").filter(has_text=re.compile(r"%|Not sure|None of the known")).wait_for()
        page.locator("#take").click()
        page.locator("#found").wait_for()
        assert page.locator("#live").is_hidden()
        assert "camera-" in page.locator("#file-name").inner_text()
        assert page.evaluate("document.querySelector('#video').srcObject") is None, "the camera is off"


def test_live_numbers_and_the_card_are_shown(browser: Any, server: Any, bundle: Path, photos: list[Path]):
    accuracy = open_bundle(bundle).record.metrics["test"]["accuracy"]
    with visit(browser, server.url, reduced_motion="reduce") as page:
        page.locator("#about").wait_for()
        assert page.locator("#facts .big").inner_text() == f"{100 * accuracy:.1f}\u00a0%"
        assert "Where it ends" in page.locator("#facts").inner_text()
        choose(page, photos[0])
        page.locator("#numbers dd").nth(1).filter(has_text=" ms").wait_for()
        points = page.locator("#numbers polyline").first.get_attribute("points")
        assert len(points.split()) == 60
        assert page.evaluate("document.getAnimations().length") == 0, "nothing moves for who wants it still"
