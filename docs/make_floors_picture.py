"""Draws docs/pictures/floors.svg from the imports: which floor of the house stands on which.

`make docs` runs it; a test says when the picture no longer fits the imports.
"""

from __future__ import annotations

import ast
import math
import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "pictures" / "floors.svg"
_ROW, _LEFT, _WIDTH, _BOX = 46, 16, 980, 700
_MOST_SIDE_BY_SIDE = 4  # more boxes in a row are too narrow for their names: a floor goes on in another row


def floors() -> list[list[str]]:
    """Return the floors from the top down, as the first import contract has them; some hold several packages."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip().removeprefix("tellapart.") for name in layer.split("|")] for layer in layers]


def imports_between(levels: list[list[str]]) -> set[tuple[int, int]]:
    """Return (floor, floor that it imports from) for all pairs of different floors."""
    graph = grimp.build_graph("tellapart")
    level_of = {f"tellapart.{name}": number for number, level in enumerate(levels) for name in level}

    def floor(module: str) -> int | None:
        return level_of.get(".".join(module.split(".")[:2]))

    found = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            above, below = floor(module), floor(imported)
            if above is not None and below is not None and above != below:
                found.add((above, below))
    return found


def says(name: str) -> str:
    """Return the first sentence of a package's or module's docstring."""
    place = ROOT / "src" / "tellapart" / name
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return text.splitlines()[0].split(". ")[0].rstrip(".")


def drawing() -> str:
    """Return the picture as SVG."""
    levels = floors()
    rows = [math.ceil(len(level) / _MOST_SIDE_BY_SIDE) for level in levels]
    tops = [8 + _ROW * sum(rows[:number]) for number in range(len(levels))]
    height = _ROW * sum(rows) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for above, below in sorted(imports_between(levels)):
        start, end = (tops[level] + _ROW * rows[level] / 2 - 4 for level in (above, below))
        reach = _LEFT + _BOX + 24 + 15 * abs(below - above)
        colour = "#d55e00" if below < above else "#0072b2"
        parts.append(
            f'<path d="M {_LEFT + _BOX} {start} C {reach} {start}, {reach} {end}, {_LEFT + _BOX} {end}" fill="none" '
            f'stroke="{colour}" stroke-opacity="0.4"/>'
        )
    for top, row_count, level in zip(tops, rows, levels, strict=True):
        side_by_side = math.ceil(len(level) / row_count)
        wide = _BOX / side_by_side
        for place, name in enumerate(level):
            row, column = divmod(place, side_by_side)
            x, y = _LEFT + wide * column, top + _ROW * row
            sentence, most = says(name), int((wide - 24) / 5.6)
            sentence = sentence if len(sentence) <= most else sentence[: most - 1].rsplit(" ", 1)[0] + " …"
            box = f'<rect x="{x:.0f}" y="{y}" width="{wide - 4:.0f}" height="{_ROW - 8}" rx="5"'
            parts += [
                f'{box} fill="#eef3f8" stroke="#9db4c8"/>',
                f'<text x="{x + 10:.0f}" y="{y + 16}" font-size="13" font-weight="600">{escape(name)}</text>',
                f'<text x="{x + 10:.0f}" y="{y + 31}" font-size="11" fill="#3c4b59">{escape(sentence)}</text>',
            ]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")
