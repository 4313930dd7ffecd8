"""What each ingredient of a recipe is worth: `tellapart ablate PHOTOS` as a user runs it, kept in results/.

    python benchmarks/ablation.py ../shared/data/photos9 --set train.epochs=8

Finished runs in --out are kept and not repeated, so a killed benchmark goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tellapart
from machine import write_result
from tellapart.experiments.ablation.result import tables


def main() -> None:
    """Run the ablation, print its tables and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--set", nargs="*", default=[], help="further settings")
    parser.add_argument("--only", nargs="*", default=[], help="only these variants or ingredients")
    parser.add_argument("--name", help="of the results file, after ablation-; else that of the photos")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--note", default="", help="what a reader of the result must know")
    arguments = parser.parse_args()
    ablation = tellapart.ablate(
        arguments.photos, recipe=arguments.recipe, changes=arguments.set, seeds=arguments.seeds, only=arguments.only,
        out=arguments.out, cache=arguments.cache, announce=print,
    )  # fmt: skip
    changes = "".join(f" --set {change}" for change in arguments.set)
    changes += "".join(f" --only {name!r}" for name in arguments.only)
    command = f"tellapart ablate {arguments.photos.name} --seeds {arguments.seeds} --recipe {arguments.recipe}{changes}"
    path = write_result(
        f"ablation-{arguments.name or arguments.photos.name}",
        {"command": command, "note": arguments.note, **ablation.to_dict()},
    )
    print(tables(ablation))
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
