"""Takes the pictures of a report for docs/evaluate.md: python docs/make_report_pictures.py RUN/report/report.html NAME.

Needs Chromium and the `dev` extra. Photos that may not be passed on are blurred beyond recognition.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURES = Path(__file__).parent / "pictures"
BLURRED = "img, dialog canvas { filter: blur(7px); }"


def main() -> None:
    """Open the report and take the confusion matrix and the corruptions."""
    report, name = Path(sys.argv[1]), sys.argv[2]
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 760}, device_scale_factor=1.5)
        page.goto(report.resolve().as_uri())
        page.add_style_tag(content=BLURRED)
        page.locator("section#confusion").scroll_into_view_if_needed()
        page.locator(".confusion button.wrong:not(.none)").first.click()
        page.evaluate("document.querySelector('section#confusion').scrollIntoView()")
        take(page, f"{name}-confusion")
        page.evaluate("document.querySelector('section#quality').scrollIntoView()")
        take(page, f"{name}-quality")
        browser.close()


def take(page: Page, name: str) -> None:
    """Write what the window shows as a small PNG."""
    page.wait_for_timeout(600)  # pictures are decoded as they come into sight
    page.screenshot(path=PICTURES / f"{name}.png")


if __name__ == "__main__":
    main()
