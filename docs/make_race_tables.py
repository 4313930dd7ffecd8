"""Prints the tables of docs/race.md and README.md from kept races: python docs/make_race_tables.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RACES = {
    "photos9": ("2m", "photos9, 10,268 in 9 classes"),
    "trash6": ("3m", "trash6, 2,516 in 6 classes"),
    "antsbees": ("1m", "antsbees, 397 in 2 classes"),
}
"""Photos → their time, and how README.md names them."""
PEERS = ("keras, pretrained", "fastai, pretrained", "keras, from scratch", "fastai, from scratch",
         "ultralytics, from scratch")  # fmt: skip

Values = dict[str, Any]


def what_it_costs(races: dict[str, Values]) -> str:
    """Return the races beside their recipes alone, as docs/race.md shows them."""
    lines = [_head("photos", "race, test (95 % over photos)", "kept", "took", "`fast` alone", "`transfer` alone",
                   "race less the better, points")]  # fmt: skip
    for photos, race in races.items():
        time, less = RACES[photos][0], race["race_less_the_better"]
        runs = race["race"]["runs"]
        kept = sorted({entry["name"] for run in runs for entry in run["race"] if entry["outcome"] == "won"})
        seconds = [run["wall_seconds"] for run in runs]
        low, high = less["interval"]
        lines.append(
            _row(
                f"{photos} `--time {time}` ([file](../results/race-{photos}-{time}.json))",
                f"{race['race']['test']:.3f} ({_ends(race['race']['interval_over_test_photos'])})",
                ", ".join(kept),
                f"{min(seconds):.0f} to {max(seconds):.0f} s",
                f"{race['fast']['test']:.3f}",
                f"{race['transfer']['test']:.3f}",
                f"{less['points']:+.1f} ({low:+.1f} to {high:+.1f}) on `{less['better']}`".replace("-", "−"),
            )
        )
    return "\n".join(lines)


def beside_peers(races: dict[str, Values]) -> str:
    """Return the races beside peers with the same seconds and cores, as docs/race.md shows them."""
    lines = [_head("photos", "tellapart", *PEERS)]
    for photos, race in races.items():
        cells = [race["race"], *(race.get(peer) for peer in PEERS)]
        lines.append(_row(f"{photos} `--time {RACES[photos][0]}`", *(_with_interval(cell) for cell in cells)))
    return "\n".join(lines)


def results(races: dict[str, Values]) -> str:
    """Return the table of README.md."""
    lines = [_head("photos", "time", "tellapart", "Keras, same weights", "fastai, same weights",
                   "from scratch: Keras, fastai, Ultralytics")]  # fmt: skip
    for photos, race in races.items():
        time, name = RACES[photos]
        both = f"{_ends(race['race']['interval_over_seeds'])}; {_ends(race['race']['interval_over_test_photos'])}"
        lines.append(
            _row(
                f"{name} ([file](results/race-{photos}-{time}.json))",
                f"`--time {time}`",
                f"{race['race']['test']:.3f} ({both})",
                *(_accuracy(race.get(peer)) for peer in PEERS[:2]),
                ", ".join(_accuracy(race.get(peer)) for peer in PEERS[2:]),
            )
        )
    return "\n".join(lines)


def _accuracy(cell: Values | None) -> str:
    return "" if cell is None else f"{cell['test']:.3f}"


def _with_interval(cell: Values | None) -> str:
    return "" if cell is None else f"{cell['test']:.3f} ({_ends(cell['interval_over_test_photos'])})"


def _ends(interval: Iterable[float]) -> str:
    low, high = interval
    return f"{low:.3f} to {high:.3f}"


def _head(*cells: str) -> str:
    return f"{_row(*cells)}\n{'|---' * len(cells)}|"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the three tables."""
    races = {}
    for photos, (time, _) in RACES.items():
        races[photos] = json.loads((ROOT / "results" / f"race-{photos}-{time}.json").read_text())
    sys.stdout.write("\n\n".join((what_it_costs(races), beside_peers(races), results(races))) + "\n")


if __name__ == "__main__":
    main()
