"""A server follows a model of a registry: champion, challenger and test change under way, and no request fails."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

from serving.process import ServerProcess, changed
from tellapart.bundles.bundle import open_bundle
from tellapart.errors import InputError
from tellapart.files import write_json
from tellapart.monitoring.ab_test import SHADOW, SPLIT, TEST_NOTE, ABTest
from tellapart.registry import Registry
from tellapart.request_store import RequestStore
from tellapart.serving.models import Models
from tellapart.serving.options import BatchOptions, RegistryOptions, ServerOptions
from tellapart.serving.registry_follower import Roles, read_roles, write_roles
from tellapart.serving.telemetry import Telemetry

pytestmark = pytest.mark.integration
TAKE_UP_SECONDS = 20.0
"""What a change of alias may take until a server answers by it, beside other tests; alone it takes some three."""


@pytest.fixture
def versions(bundle: Path, tmp_path: Path) -> list[str]:
    """Three versions by their digests, in folders of that name under `followed`; of runs with other names."""
    digests = []
    (tmp_path / "followed").mkdir()
    for number in range(3):
        made = changed(bundle, tmp_path / "made", created=f"2026-01-0{number + 1}T00:00:00Z", name=f"run{number}")
        digests.append(open_bundle(made).version)
        made.rename(tmp_path / "followed" / digests[-1])
    return digests


def test_roles_change_as_the_file_says_and_what_cannot_be_loaded_changes_nothing(versions, tmp_path):
    folder = tmp_path / "followed"

    def say(champion: str, test: ABTest | None = None) -> None:
        write_json(folder / "roles.json", {"champion": champion, "test": test and test.to_json()})

    first, second, third = versions
    say(first)
    options = ServerOptions(
        registry=RegistryOptions("", "shapes", folder), runtime="onnxruntime",
        batches=BatchOptions(threads=1, max_batch_size=1),
    )  # fmt: skip
    models = Models(options, Telemetry())
    assert [(served.name, served.version) for served in models.all()] == [("shapes", first)]
    assert models.challenger(models.find()) is None

    test = ABTest("t", first, second, SPLIT, 0.5, "salt", 0.0)
    say(first, test)
    models.poll()
    assert models.find().version == first, "the champion, though the challenger was loaded last"
    found = models.challenger(models.find())
    assert found is not None
    assert (found[0], found[1].version) == (test, second)
    assert models.find("shapes", second).version == second

    loaded = models.find("shapes", second)
    say(second)
    models.poll()
    assert models.find() is loaded, "not loaded again"
    assert [served.version for served in models.all()] == [second]

    (folder / third / "model.onnx").write_bytes(b"damaged")
    say(third)
    models.poll()
    models.poll()
    assert models.find().version == second
    assert models._telemetry.registry.get_sample_value("tellapart_refused_bundles_total") == 1, "tried once"
    say(first)
    models.poll()
    assert models.find().version == first


@pytest.fixture
def registry(empty_registry: Path, tmp_path: Path) -> Registry:
    (tmp_path / "models.db").write_bytes(empty_registry.read_bytes())
    return Registry(tmp_path / "models.db")


def test_a_look_copies_bundles_before_it_says_who_they_are(versions, registry, tmp_path):
    folder = tmp_path / "copies"
    added = [registry.add(tmp_path / "followed" / digest, name="shapes") for digest in versions]
    with pytest.raises(InputError, match="has no champion"):
        write_roles(registry, "shapes", folder)
    registry.promote(added[0], "")
    test = ABTest("t", versions[0], versions[1], SPLIT, 0.5, "salt", 0.0)
    registry.write_note("shapes", TEST_NOTE, test.to_json())
    assert write_roles(registry, "shapes", folder) == read_roles(folder) == Roles(versions[0], test)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*versions[:2], "roles.json"])
    registry.promote(added[2], "")
    assert write_roles(registry, "shapes", folder) == Roles(versions[2]), "the test was of another champion"
    (folder / "roles.json").write_text('{"champion": ')
    assert read_roles(folder) is None


@pytest.mark.slow
def test_a_server_follows_within_seconds_and_fails_nobody(
    versions: list[str],
    registry: Registry,
    photos: list[Path],
    tmp_path: Path,
    start: Callable[..., ServerProcess],
):
    """Promotion, split test, shadow test and rollback, while a client asks all the time."""
    first, second = (registry.add(tmp_path / "followed" / digest, name="shapes") for digest in versions[:2])
    registry.promote(first, "")
    server = start(
        "--registry", "shapes", "--registry-url", tmp_path / "models.db", "--store", tmp_path / "requests.db",
        "--max-queue-ms", "5000",
    )  # fmt: skip
    photo, answers, stop = photos[0].read_bytes(), [], threading.Event()

    def ask(user: str = "") -> str:
        status, values = server.json("/predict", photo, headers={"X-User-ID": user} if user else {})
        assert status == 200, values
        return values["version"]

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append((time.monotonic(), ask()))

    def wait_for(condition: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < TAKE_UP_SECONDS
            time.sleep(0.05)

    client = threading.Thread(target=keep_asking)
    client.start()
    try:
        registry.promote(second, "")
        wait_for(lambda: ask() == second.digest)

        # Half of the users to the challenger, each always to the same version, in all protocols.
        test = ABTest("split000", second.digest, first.digest, SPLIT, 0.5, "salt", 0.0)
        registry.write_note("shapes", TEST_NOTE, test.to_json())
        users = [f"user{number}" for number in range(20)]
        wait_for(lambda: any(ask(user) == first.digest for user in users))
        expected = [first.digest if test.takes(user) else second.digest for user in users]
        assert [ask(user) for user in users] == [ask(user) for user in users] == expected
        assert server.json(f"/predict?version={second.digest}", photo, headers={"X-User-ID": users[0]})[0] == 200

        # In shadow everybody is answered by the champion, and both are kept.
        shadow = ABTest("shadow00", second.digest, first.digest, SHADOW, 1.0, "salt", 0.0)
        registry.write_note("shapes", TEST_NOTE, shadow.to_json())
        wait_for(lambda: {ask(user) for user in users} == {second.digest})
        store = RequestStore(f"sqlite:///{tmp_path / 'requests.db'}")
        wait_for(lambda: sum(one is not None for _, one, _ in store.in_test("shadow00")) > 20)
        pairs = [(prediction.label, one.label) for prediction, one, _ in store.in_test("shadow00") if one is not None]
        assert all(champion == challenger for champion, challenger in pairs), "both have the same network"
        by_test = Counter(prediction.version for prediction, _, _ in store.in_test("split000"))
        assert set(by_test) == {first.digest, second.digest}
        store.close()

        registry.write_note("shapes", TEST_NOTE, None)
        assert registry.rollback("shapes", "a test").digest == first.digest
        wait_for(lambda: ask() == first.digest)
    finally:
        stop.set()
        client.join()
    assert len(answers) > 50
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert {line["status"] for line in lines if "status" in line} == {200}
