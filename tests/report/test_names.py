"""Class names that mean something to matplotlib, HTML or JavaScript are shown as they are."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from tellapart.evaluation.ranking import curves
from tellapart.files import json_in_html
from tellapart.report import figures

NAMES = ["$", "a$b$c", "_hidden", "$\\frac$", "x_y^z"]


@pytest.mark.parametrize("draw", [figures.roc, figures.precision_recall])
def test_names_with_dollars_and_underscores_stand_in_the_legend(draw):
    rng = np.random.default_rng(0)
    true = rng.integers(0, len(NAMES), 200)
    drawn = draw(curves(true, rng.dirichlet(np.ones(len(NAMES)), 200), NAMES))
    texts = {(each.text or "").strip() for each in ElementTree.fromstring(drawn).iter() if each.tag.endswith("text")}
    assert set(NAMES) <= texts


class Scripts(HTMLParser):
    """Collects what stands in scripts, as a browser's tokeniser ends them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = False

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "script"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.found.append(data)


@pytest.mark.parametrize("name", ["<!--<script>", "</script><script>alert(1)</script>", "a&b", "\u2028\u2029", "cat"])
def test_a_name_cannot_leave_the_script_it_stands_in(name):
    text = json_in_html({"classes": [name]})
    assert not re.search("[<>&\u2028\u2029]", text)
    page = Scripts()
    page.feed(f'<script type="application/json">{text}</script><p>after</p>')
    assert json.loads("".join(page.found)) == {"classes": [name]}
