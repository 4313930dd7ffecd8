"""Test accuracy with MobileNetV2 within a time, beside Keras' own way on the same split of the same photos.

    python benchmarks/transfer.py ../shared/data/photos9 --weights FILE --time 5m

Tellapart runs as a user runs it, with an empty cache; then the peer gets the seconds that tellapart took, and the very
photos of its train, validation and test sides.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from accuracy import train
from machine import write_result
from tellapart.run_folder import read_manifest
from tellapart.shares import wilson

PEER = Path(__file__).parent / "peers" / "keras_transfer.py"


def lay_out(run: Path, folder: Path) -> None:
    """Link the photos of a run into train, validation and test."""
    manifest = read_manifest(run)
    root = Path(json.loads((run / "environment.json").read_text())["root"])
    for number, row in enumerate(manifest[manifest["error"] == ""].itertuples()):
        place = folder / row.split / row.label
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}{Path(row.path).suffix.lower()}").symlink_to((root / row.path).resolve())


def main() -> None:
    """Run both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--time", default="", help="time budget, as in tellapart train --time")
    parser.add_argument("--recipe", default="transfer")
    parser.add_argument("--set", nargs="*", default=[], help="further settings")
    parser.add_argument("--work", type=Path, default=Path("runs/transfer"))
    arguments = parser.parse_args()
    options = ["--recipe", arguments.recipe, "--set", f"model.weights={arguments.weights.resolve()}"]
    options += ["--time", arguments.time] if arguments.time else []
    for change in arguments.set:
        options += ["--set", change]
    arguments.work.mkdir(parents=True, exist_ok=True)
    run = arguments.work / f"transfer-{arguments.photos.name}"
    ours = train(arguments.photos, options, 0, run)
    with tempfile.TemporaryDirectory() as folder:
        lay_out(run, Path(folder))
        command = [sys.executable, str(PEER), folder, "--weights", str(arguments.weights.resolve())]
        done = subprocess.run(
            [*command, "--seconds", str(ours["wall_seconds"])], check=True, capture_output=True, text=True
        )
    peer = json.loads(done.stdout.strip().splitlines()[-1])
    for found in (ours, peer):
        interval = wilson(found["test"] * ours["num_test"], ours["num_test"])
        found["interval"] = [interval.low, interval.high]
    values = {"photos": arguments.photos.name, "tellapart": ours, "keras": peer}
    print(json.dumps(values, indent=2))
    print(f"Written to {write_result(f'transfer-{arguments.photos.name}', values)}")


if __name__ == "__main__":
    main()
