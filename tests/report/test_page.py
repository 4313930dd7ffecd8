"""What the report says of how a run was made, and of an accuracy that a guess has too."""

from __future__ import annotations

import json
from pathlib import Path

from tellapart.report.parts.metrics import METRICS, Metrics
from tellapart.report.parts.reproduce import made_by
from tellapart.run_folder import RunRecord


def test_a_run_is_reproduced_and_an_ensemble_joined_again(tmp_path: Path):
    assert (
        made_by(tmp_path, RunRecord.model_validate({"order": {"photos": "cats"}})) == f"tellapart reproduce {tmp_path}"
    )
    assert made_by(tmp_path, RunRecord()) == f"tellapart reproduce {tmp_path}"
    standings = [{"name": name, "run": f"runs/{name[0]}"} for name in ("a", "b")]
    (tmp_path / "ensemble.json").write_text(json.dumps({"standings": standings}))
    ensemble = RunRecord.model_validate({"request": {"ensemble": {"a": 0.5, "b": 0.5}}})
    assert made_by(tmp_path, ensemble) == "tellapart ensemble runs/a runs/b"
    standings.append({"name": "a/snapshot-1", "run": "runs/a"})
    (tmp_path / "ensemble.json").write_text(json.dumps({"standings": standings}))
    assert made_by(tmp_path, ensemble) == "tellapart ensemble runs/a runs/b --snapshots"


def test_an_accuracy_that_a_guess_has_too_is_not_praised():
    """60 % where one class has 57.5 % of the photos, and where it has a third."""
    for counts, beats in (([23, 17], False), ([14, 13, 13], True)):
        per_class = {str(number): {"num_images": count} for number, count in enumerate(counts)}
        main = {"num_images": 40, "accuracy": 0.6, "per_class": per_class, "intervals": {"accuracy": [0.446, 0.737]}}
        metrics = Metrics({"test": main}, None, {}, [], "test")
        assert metrics.guessing == max(counts) / 40
        assert metrics.beats_guessing is beats
        texts = [step.text for step in METRICS.advice(None, metrics)]
        assert any("beat guessing" in text for text in texts) is not beats
