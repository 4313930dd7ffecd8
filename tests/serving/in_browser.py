"""A page in a real browser, and what a look at it finds wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "google-chrome")) if path), None)
FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
TOO_WIDE = """() => [...document.querySelectorAll('body *')].filter((e) => {
  const {left, right, width} = e.getBoundingClientRect();
  const cut = e.closest('.scroll, #thumbs, .aside, .skip, #start h1');
  return width && !cut && (right > innerWidth + 1 || left < -1);
}).map((e) => e.outerHTML.slice(0, 80))"""
WEAK = """() => {
  const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parse = (text) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = text;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const below = (e) => {
    for (let at = e; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255];
  };
  const written = (e) => [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const skipped = ['SCRIPT', 'NOSCRIPT', 'OPTION'];
  return [...document.querySelectorAll('body *')]
    .filter((e) => e.checkVisibility({visibilityProperty: true}) && written(e) && !skipped.includes(e.tagName))
    .map((e) => {
      const both = [light(parse(getComputedStyle(e).color)), light(below(e))].sort((x, y) => y - x);
      return [e.textContent.slice(0, 40), (both[0] + 0.05) / (both[1] + 0.05)];
    }).filter(([, ratio]) => ratio < 4.5);
}"""
"""WCAG 2.2's contrast of each text with what is behind it, where it is below 4.5."""
NAMELESS = """() => [...document.querySelectorAll('button, input, select, canvas, img, dialog, nav, main > section')]
  .filter((e) => !e.closest('[hidden], [aria-hidden=true]'))
  .filter((e) => !e.hasAttribute('alt') && !e.ariaLabel && !e.getAttribute('aria-labelledby') && !e.labels?.length)
  .filter((e) => e.tagName !== 'BUTTON' || !e.textContent.trim())
  .map((e) => e.outerHTML.slice(0, 80))"""


@contextmanager
def visit(browser: Any, url: str, path: str = "/", *, refusals: bool = False, **options: Any) -> Iterator[Any]:
    """Open the page; in the end nothing was wrong: no error, no breach of the policy, no other host.

    Args:
        browser: it.
        url: of the server.
        path: of the page.
        refusals: whether the server is expected to refuse something, which Chromium writes to the console.
        options: of the browser's context.
    """
    wrong: list[str] = []
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
    context.add_init_script(
        "document.addEventListener('securitypolicyviolation', (e) => console.error('policy', e.violatedDirective))"
    )
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda said: (
            wrong.append(said.text)
            if said.type in ("error", "warning") and not (refusals and "Failed to load resource" in said.text)
            else None
        ),
    )
    page.on(
        "request",
        lambda request: None if request.url.startswith((url + "/", "blob:" + url)) else wrong.append(request.url),
    )
    page.goto(url + path)
    try:
        yield page
        assert wrong == []
    finally:
        context.close()
