"""A registry says which version is champion, and how to go back; what it holds is what was added."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

pytest.importorskip("mlflow")

from serving.process import changed
from tellapart.bundles.bundle import open_bundle
from tellapart.cli.main import app
from tellapart.errors import BundleError, InputError
from tellapart.promotion import GateLimits, begin_test, judge
from tellapart.registry import Change, Registry
from written_bundle import PROOF, bundle_record, write_bundle
from written_run import CLASSES, COUNT, write_run, wrong_at

pytestmark = pytest.mark.integration


@pytest.fixture
def registry(empty_registry: Path, tmp_path: Path) -> Registry:
    file = tmp_path / "runs" / "models.db"
    file.parent.mkdir()
    file.write_bytes(empty_registry.read_bytes())
    return Registry(file)


def add(registry: Registry, place: Path, model: str, said: np.ndarray | None = None, **changes: object):
    """Add a version whose run classified its test photos as `said`."""
    run = None if said is None else write_run(place / f"run-{model}", said)
    bundle = write_bundle(place / f"bundle-{model}", model=model.encode(), classes=tuple(CLASSES), **changes)
    return registry.add(bundle, run=run)


def test_what_was_added_comes_back_byte_for_byte_from_any_folder(registry, tmp_path, monkeypatch):
    metrics = {"test": {"accuracy": 0.9, "intervals": {"accuracy": [0.85, 0.94]}, "classes": {"cat": 1}}}
    version = add(registry, tmp_path, "a", metrics=metrics)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = Registry(tmp_path / "runs" / "models.db")
    assert again.names() == ["pets"]
    assert again.version("pets", "1") == again.version("pets", version.digest) == version
    assert version.metrics["test.accuracy"] == 0.9
    assert version.metrics["test.accuracy.low"] == 0.85
    came = again.fetch_bundle(version, tmp_path / "cache")
    added = tmp_path / "bundle-a"
    assert open_bundle(came).version == open_bundle(added).version == version.digest
    assert {path.relative_to(came) for path in came.rglob("*")} == {
        path.relative_to(added) for path in added.rglob("*")
    }
    assert list((tmp_path / "elsewhere").iterdir()) == [], "nothing is written into the current folder"


def test_the_same_bundle_is_one_version_however_often_it_is_added(registry, tmp_path):
    first = add(registry, tmp_path, "a")
    assert registry.add(tmp_path / "bundle-a") == first
    assert add(registry, tmp_path, "b").number == 2
    assert [version.number for version in registry.versions("pets")] == [2, 1]


def test_a_run_joins_a_version_that_was_added_without_it(registry, tmp_path):
    version = add(registry, tmp_path, "a")
    assert not version.has_run
    run = write_run(tmp_path / "run-a", wrong_at(3))
    again = registry.add(tmp_path / "bundle-a", run=run)
    assert (again.number, again.has_run, again.run) == (1, True, version.run)
    assert len(registry.versions("pets")) == 1
    came = registry.fetch_run(again, tmp_path / "cache")
    assert (came / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()


def test_a_name_that_is_no_folder_is_refused_and_an_address_may_be_relative(registry, tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "bundle-a", model=b"a")
    with pytest.raises(InputError, match="The name is 'pet#s'"):
        registry.add(bundle, name="pet#s")
    monkeypatch.chdir(tmp_path)
    assert Registry("sqlite:///runs/models.db").names() == []


def test_a_test_without_anybody_to_compare_with_is_refused(registry, tmp_path):
    first, second = add(registry, tmp_path, "a"), add(registry, tmp_path, "b")
    registry.promote(first, "")
    with pytest.raises(InputError, match=r"The share is 1\. Expected above 0 and below 1"):
        begin_test(registry, second, "split", 1.0)
    with pytest.raises(InputError, match=r"The share is 0\. Expected above 0 and at most 1"):
        begin_test(registry, second, "shadow", 0.0)
    with pytest.raises(InputError, match="The mode of the test is 'both'"):
        begin_test(registry, second, "both", 0.5)
    assert registry.version("pets", "2").aliases == ()


def test_rollback_goes_back_step_by_step_and_says_why(registry, tmp_path):
    versions = [add(registry, tmp_path, letter) for letter in "abc"]
    for version in versions:
        registry.promote(version, f"test {version.number}")
    registry.promote(versions[2], "again")  # changes nothing: it is champion
    assert registry.champion_digest("pets") == registry.champion("pets").digest == versions[2].digest
    assert [(change.before, change.after) for change in registry.changes("pets")] == [(None, 1), (1, 2), (2, 3)]
    assert registry.rollback("pets", "complaints about owls").number == 2
    assert registry.version("pets", "3").tags["tellapart.rolled_back"] == "complaints about owls"
    assert registry.rollback("pets", "more").aliases == ("champion",)
    assert registry.champion("pets").number == 1
    with pytest.raises(InputError, match="no other champion"):
        registry.rollback("pets", "once more")
    assert registry.champion("pets").number == 1


def test_a_promotion_that_was_killed_half_way_is_not_rolled_back(registry, tmp_path):
    """Noted, but the alias was not set: the champion is still the first, and there is nothing before it."""
    first, second, third = (add(registry, tmp_path, letter) for letter in "abc")
    registry.promote(first, "")
    registry.promote(second, "")
    registry._write_changes("pets", [*registry.changes("pets"), Change(2, third.number, 0.0, "killed")])
    assert registry.rollback("pets", "").number == 1


def test_a_promoted_challenger_is_a_challenger_no_more(registry, tmp_path):
    version = add(registry, tmp_path, "a")
    registry.set_challenger(version)
    assert registry.version("pets", "challenger").number == 1
    registry.promote(version, "")
    assert registry.version("pets", "1").aliases == ("champion",)
    registry.set_challenger(version)
    registry.remove_challenger("pets")
    registry.remove_challenger("pets")
    assert registry.version("pets", "1").aliases == ("champion",)


def test_what_is_not_there_is_said_with_what_is(registry, tmp_path):
    with pytest.raises(InputError, match="It has these models: none yet"):
        registry.versions("pets")
    add(registry, tmp_path, "a")
    with pytest.raises(InputError, match=r"pets has no version '7'\. Expected one of 1\."):
        registry.version("pets", "7")
    with pytest.raises(InputError, match="added without its run"):
        registry.fetch_run(registry.version("pets", "1"), tmp_path / "cache")
    with pytest.raises(InputError, match="cannot be opened: file is not a database"):
        Registry(__file__)


def test_another_run_than_the_exported_one_is_refused(registry, tmp_path):
    run = write_run(tmp_path / "run", wrong_at(0))
    record = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(record | {"run_id": "b" * 32}))
    bundle = write_bundle(tmp_path / "bundle", source={"run": "r", "run_id": "a" * 32})
    with pytest.raises(InputError, match="was made from the run aaaaaaaaaaaa"):
        registry.add(bundle, run=run)
    assert registry.names() == []


def test_a_bundle_that_was_changed_in_the_registry_is_refused(registry, tmp_path):
    version = add(registry, tmp_path, "a")
    (stored,) = (tmp_path / "runs").rglob("model.onnx")
    stored.write_bytes(b"xyz")
    with pytest.raises(BundleError, match="is not what it was"):
        registry.fetch_bundle(version, tmp_path / "cache")


@pytest.fixture
def speeds(monkeypatch) -> list[float]:
    """The bundles here have no network that could be timed: milliseconds of the old and the new version."""
    milliseconds = [1.0, 1.0]
    monkeypatch.setattr("tellapart.promotion.median_latencies", lambda bundles, progress: milliseconds)
    return milliseconds


def outcome(registry: Registry, version, **limits: float) -> dict[str, bool]:
    return {gate.name: gate.passed for gate in judge(registry, version, limits=GateLimits(**limits)).gates}


def test_gates_fail_one_by_one(registry, tmp_path, speeds):
    """600 photos of three classes; the champion is wrong on 30 of them."""
    registry.promote(add(registry, tmp_path, "old", wrong_at(*range(30))), "")
    better = add(registry, tmp_path, "better", wrong_at(*range(10)))
    assert set(outcome(registry, better).values()) == {True}
    assert judge(registry, better).reason == "passed 6 gates"

    # 60 of the 200 photos of one class (every third) are wrong now, and the 30 are right: 30 more in all.
    one_class = add(registry, tmp_path, "class", wrong_at(*range(30, 210, 3)))
    failed = {name for name, passed in outcome(registry, one_class).items() if not passed}
    assert failed == {"no worse overall", "no class worse", "negative flips", "calibration"}
    assert outcome(
        registry, one_class, accuracy_points=9, class_points=26, negative_flips=10, loss_nats=0.2
    ) == dict.fromkeys(outcome(registry, one_class), True)

    # As often wrong as before, on other photos.
    elsewhere = add(registry, tmp_path, "elsewhere", wrong_at(*range(100, 130)))
    assert not outcome(registry, elsewhere)["negative flips"]
    assert outcome(registry, elsewhere, negative_flips=5.0)["negative flips"], "30 of 600"

    speeds[:] = 1.0, 1.6
    assert not outcome(registry, better)["latency"]
    assert outcome(registry, better, slowdown=1.6)["latency"]


def test_few_photos_cannot_show_that_a_version_is_no_worse(registry, tmp_path, speeds):
    registry.promote(add(registry, tmp_path, "old", wrong_at(0, count=60)), "")
    same = add(registry, tmp_path, "same", wrong_at(1, count=60))
    gate = next(gate for gate in judge(registry, same).gates if gate.name == "no worse overall")
    assert not gate.passed
    assert gate.reason.endswith("so these photos are too few to tell")


def test_the_first_version_needs_equality_with_keras_alone(registry, tmp_path):
    assert outcome(registry, add(registry, tmp_path, "a")) == {"equal to the trained model": True}
    failed = bundle_record().artefacts[0].model_copy(
        update={"proofs": {"onnxruntime": PROOF.model_copy(update={"passed": False, "reason": "too far"})}}
    )  # fmt: skip
    verdict = judge(registry, add(registry, tmp_path, "b", artefacts=(failed,)))
    assert verdict.reason == (
        "failed: equal to the trained model (no runtime was proved equal to Keras; onnxruntime: too far)"
    )


def test_a_version_with_a_new_class_is_judged_on_the_classes_that_both_know(registry, tmp_path, speeds):
    registry.promote(add(registry, tmp_path, "old", wrong_at(*range(30))), "")
    classes = [*CLASSES, "owl"]
    run = write_run(tmp_path / "run-new", wrong_at(*range(10)))
    # The same photos, and a column more.
    lines = (run / "predictions.csv").read_text().splitlines()
    table = [f"{lines[0]},p:owl", *(f"{line},0.0" for line in lines[1:])]
    (run / "predictions.csv").write_text("\n".join(table) + "\n")
    bundle = write_bundle(tmp_path / "bundle-new", model=b"new", classes=tuple(classes))
    verdict = judge(registry, registry.add(bundle, run=run))
    assert verdict.passed
    assert verdict.comparison.num_photos == COUNT


def test_commands_promote_only_what_passes(registry, tmp_path, monkeypatch):
    add(registry, tmp_path, "a")
    bad = bundle_record().artefacts[0].model_copy(
        update={"proofs": {"onnxruntime": PROOF.model_copy(update={"passed": False})}}
    )  # fmt: skip
    write_bundle(tmp_path / "bundle-b", model=b"b", classes=tuple(CLASSES), artefacts=(bad,))
    monkeypatch.setenv("TELLAPART_REGISTRY", str(tmp_path / "runs" / "models.db"))
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["models", *arguments])

    assert "pets 1 is champion." in command("promote", "pets", "1").output
    assert "pets 2 (" in command("add", "bundle-b").output
    assert "added without its run" in str(command("promote", "pets", "2").exception)
    assert "pets 2 is champion." in command("promote", "pets", "2", "--force").output
    assert "is champion again." in command("rollback", "pets", "--reason", "a test").output
    assert "a test" in command("show", "pets", "2").output
    listed = command("list")
    assert listed.exit_code == 0
    assert listed.output.count("champion") == 1, listed.output


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A real MLflow server on loopback, on PostgreSQL where that is installed, else on SQLite."""
    try:
        database = request.getfixturevalue("postgresql")("mlflow")
    except pytest.skip.Exception:
        database = f"sqlite:///{tmp_path / 'server.db'}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = open(tmp_path / "server.log", "w")  # noqa: SIM115  # closed below
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--host", "127.0.0.1", "--port",
         str(port), "--artifacts-destination", str(tmp_path / "server-files"), "--workers", "1"],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=log, stderr=log, start_new_session=True, cwd=tmp_path,
    )  # fmt: skip
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 90
    while True:
        try:
            assert httpx.get(f"{url}/health").status_code == 200
            break
        except httpx.HTTPError:
            is_starting = process.poll() is None and time.monotonic() < until
            assert is_starting, (tmp_path / "server.log").read_text()
            time.sleep(0.3)
    yield url
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    log.close()


@pytest.mark.slow
def test_behind_a_real_server_all_is_as_with_a_file(server, tmp_path, monkeypatch):
    """Files go through the server: none of its paths need to exist here."""
    registry = Registry(server)
    speed_of_nothing = [1.0, 1.0]
    monkeypatch.setattr("tellapart.promotion.median_latencies", lambda bundles, progress: speed_of_nothing)
    old = add(registry, tmp_path, "old", wrong_at(*range(30)), metrics={"test": {"accuracy": 0.95}})
    registry.promote(old, "the first")
    new = add(registry, tmp_path, "new", wrong_at(*range(10)))
    verdict = judge(registry, new)
    assert verdict.passed, verdict.reason
    registry.promote(new, verdict.reason)
    assert open_bundle(registry.fetch_bundle(new, tmp_path / "cache")).version == new.digest
    assert registry.rollback("pets", "a test").number == 1
    assert registry.champion("pets").metrics["test.accuracy"] == 0.95
    run = httpx.get(f"{server}/api/2.0/mlflow/runs/get", params={"run_id": old.run}).json()["run"]
    assert {"key": "train.epochs", "value": "45"} in run["data"]["params"], "as `mlflow ui` shows them"
    with pytest.raises(InputError, match="has no such model or version"):
        registry.versions("dogs")


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_said(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"http://127.0.0.1:9 cannot be opened"):
        Registry("http://127.0.0.1:9")


@pytest.mark.slow
def test_two_real_bundles_are_measured_in_turns_and_judged(registry, tmp_path, place):
    """Nothing is replaced here. A picture takes a quarter of a millisecond: on a busy machine that may vary by half."""
    again = changed(place / "bundle", tmp_path / "again", created="2026-01-01T00:00:00Z")
    old, new = (registry.add(bundle, run=place / "run", name="shapes") for bundle in (place / "bundle", again))
    registry.promote(old, "the first")
    gates = {gate.name: gate for gate in judge(registry, new, limits=GateLimits(accuracy_points=20, slowdown=10)).gates}
    assert {name for name, gate in gates.items() if not gate.passed} == set()
    before, after = (
        float(part.split(" ")[0]) for part in re.findall(r"[0-9.]+ (?:ms|before)", gates["latency"].reason)
    )
    assert 0.01 < before < 1000
    assert after > 0.01
