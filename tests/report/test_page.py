"""What the report says of how a run was made."""

from __future__ import annotations

import json
from pathlib import Path

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
