"""The documentation is complete and as the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import tellapart
from tellapart.data import health, oddities, shortcuts
from tellapart.data.corrupt import CORRUPTIONS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def _reference():
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date():
    made = _reference()
    assert (DOCS / "cli.md").read_text() == made.reference(), "run `make docs`"
    assert (DOCS / "settings.md").read_text() == made.settings(), "run `make docs`"
    assert (DOCS / "python.md").read_text() == made.python(), "run `make docs`"


def test_the_index_names_every_page():
    pages = {page.name for page in DOCS.glob("*.md")} - {"index.md"}
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "index.md").read_text()))
    assert pages - linked == set()


def test_every_finding_is_documented():
    source = "".join(Path(module.__file__).read_text() for module in (health, oddities, shortcuts))
    kinds = {*re.findall(r'(?:Finding|_some)\(\s*"([a-z_0-9]+)"', source), *oddities._UNUSUAL}
    kinds |= {"exact_duplicates", "near_duplicates"}
    assert {"leakage", "unreadable", "grey", "tiny", "metadata_shortcut"} <= kinds
    page = (DOCS / "check.md").read_text()
    assert [kind for kind in sorted(kinds) if kind not in page] == []


def test_every_corruption_is_documented_with_its_group():
    page = (DOCS / "corruptions.md").read_text()
    assert [name for name, group in CORRUPTIONS.items() if f"| {group} | `{name}` |" not in page] == []


def test_every_public_name_has_a_docstring_and_links_lead_somewhere():
    assert [name for name in tellapart.__all__ if not getattr(tellapart, name).__doc__] == []
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
