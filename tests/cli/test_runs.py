"""What the commands say about runs and bundles that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tellapart.bundles.bundle import Artefact, BundleRecord, Preprocessing, Proof, write_record
from tellapart.cli.main import _GROUPS, app
from tellapart.errors import InputError, RunError
from tellapart.files import write_json
from tellapart.run_folder import RunFolder, RunRequest, find_runs
from tellapart.settings import load_recipe


def said(*words: object) -> str:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def finished(folder: Path, validation: float, test: float) -> RunFolder:
    run = RunFolder(folder)
    run.create(load_recipe("fast"), RunRequest(photos="/photos"), {})
    run.update_record(classes=["cat", "dog"], num_photos=100, precision="float32", root="/photos")
    sides = {
        side: {
            "num_images": 20, "accuracy": value, "loss": 0.5, "precision_macro": value, "recall_macro": value,
            "f1_macro": value,
            "intervals": {name: [value - 0.05, value + 0.05] for name in METRICS},
        }
        for side, value in (("validation", validation), ("test", test))
    }  # fmt: skip
    write_json(run.metrics_path, {**sides, "seconds_total": 90.0, "best_epoch": 3})
    return run


METRICS = ("accuracy", "loss", "precision_macro", "recall_macro", "f1_macro")


def test_runs_are_listed_by_validation_and_not_by_test(tmp_path: Path):
    finished(tmp_path / "b" / "lucky", validation=0.7, test=0.99)
    finished(tmp_path / "good", validation=0.9, test=0.88)
    begun = RunFolder(tmp_path / "new")
    begun.create(load_recipe("fast"), RunRequest(photos="/photos"), {})
    assert [run.path.name for run in find_runs(tmp_path)] == ["lucky", "good", "new"]
    lines = [line.split() for line in said("runs", tmp_path).splitlines() if line.strip()][2:]
    assert [line[0] for line in lines] == ["good", "b/lucky", "new"]
    assert lines[0][1:4] == ["0.900", "0.880", "(0.830–0.930)"]
    assert "finished" in lines[2]
    with pytest.raises(InputError, match="no runs in"):
        said("runs", tmp_path / "nowhere")


def test_info_says_what_a_run_is(tmp_path: Path):
    text = said("info", finished(tmp_path / "run", 0.9, 0.88).path)
    for part in ("finished", "100 of /photos", "2: cat, dog", "convnet, 64 px, float32", "best epoch 3", "0.880"):
        assert part in text, part
    with pytest.raises(RunError, match="neither a run folder nor a bundle"):
        said("info", tmp_path)


def test_info_says_what_a_bundle_is(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"abc")
    proof = Proof(passed=True, reason="equal", num_images=9, agreement=1.0, largest_difference=1e-6)
    write_record(
        tmp_path,
        BundleRecord(
            name="pets", created="2026-01-01T00:00:00Z", classes=("cat", "dog"), max_pixels=10**8, temperature=1.2,
            preprocessing=Preprocessing(image_px=32, decoder_version=2), coverage=0.9, threshold=0.4,
            quality_range={"sharpness": (3.0, None)}, metrics={}, source={"run": "r"}, explains=None,
            artefacts=(Artefact(id="onnx", format="onnx", path="model.onnx", bytes=3, proofs={"onnxruntime": proof}),),
            reference_images={},
        ),
    )  # fmt: skip
    text = said("info", tmp_path)
    for part in ("pets, version", "32 × 32 px, RGB, uint8, NHWC", "onnxruntime passed (100.00%)", "sharpness 3 to …"):
        assert part in text, part


def test_the_report_of_a_run_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or True)
    with pytest.raises(InputError, match=r"has no report yet\. Make it first: tellapart evaluate"):
        said("open", tmp_path)
    (tmp_path / "report").mkdir()
    page = tmp_path / "report" / "report.html"
    page.write_text("<!doctype html>")
    said("open", tmp_path)
    assert opened == [page.resolve().as_uri()]


@pytest.mark.parametrize("name", [name for group in _GROUPS.values() for name in group])
def test_every_command_begins_with_a_short_sentence_and_has_an_example(name: str):
    help_text = typer.main.get_command(app).commands[name].help
    assert len(help_text.split("\n")[0]) <= 45, help_text.split("\n")[0]
    assert f"Example: tellapart {name}" in help_text
