"""Which rate the recipe `transfer` fine-tunes at, chosen by the loss on validation photos; no test photo is looked at.

    python benchmarks/transfer_rate.py ../shared/data/trash6 ../shared/data/antsbees --weights FILE

Each rate and seed is one run of `tellapart train --recipe transfer`. A run keeps the head where fine-tuning made the
validation loss no better, so what is compared is what a user gets. Runs that are finished are kept in --work and not
repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from accuracy import train
from machine import write_result

RATES = (3e-5, 1e-4, 3e-4, 1e-3)


def main() -> None:
    """Train with each rate, choose and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/transfer-rate"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = [
        row(folder, arguments, rate, seed)
        for folder in arguments.photos for rate in arguments.rates for seed in range(arguments.seeds)
    ]  # fmt: skip
    gained = {
        rate: float(np.mean([row["gained"] for row in rows if row["learning_rate"] == rate]))
        for rate in arguments.rates
    }
    chosen = max(gained, key=lambda rate: gained[rate])
    values = {"mean_loss_gained": gained, "chosen": chosen, "runs": rows}
    print(json.dumps(values, indent=2))
    print(f"Written to {write_result('transfer-rate', values)}")


def row(folder: Path, arguments: argparse.Namespace, rate: float, seed: int) -> dict:
    """Return the validation loss of the head alone and of what a run with this rate and seed kept."""
    run = arguments.work / f"{folder.name}-{rate:g}-{seed}"
    options = ["--recipe", "transfer", "--set", f"model.weights={arguments.weights.resolve()}"]
    result = train(folder, [*options, "--set", f"train.learning_rate={rate}"], seed, run)
    history = [line.split(",") for line in (run / "history.csv").read_text().splitlines()]
    column = history[0].index("val_loss")
    losses = [float(line[column]) for line in history[1:]]
    return {
        "photos": folder.name,
        "learning_rate": rate,
        "seed": seed,
        "head_loss": losses[0],
        "kept_loss": min(losses),
        "gained": losses[0] - min(losses),
        "fine_tuned_losses": losses[1:],
        "validation_accuracy": result["validation"],
    }


if __name__ == "__main__":
    main()
