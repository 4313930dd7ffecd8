"""Which candidate of a compression is chosen, and what the command line says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tellapart.bundles.runtimes import RUNTIMES
from tellapart.cli.shipping import _table_of_candidates, _verdicts
from tellapart.compress import compress as compress_module
from tellapart.compress.compress import Candidate, Compression, Confirmation, _best
from tellapart.errors import BundleError
from tellapart.records import Observer
from tellapart.run_folder import RunFolder

WHOLE = Candidate("whole-float32", 1.0, "float32", "onnxruntime", 9_000_000, 12.0, 50.0, 0.95, 0.0, -0.001, 0.001)


def candidate(name: str, megabytes: float, ms: float, loss_high: float, error: str = "") -> Candidate:
    return replace(
        WHOLE, name=name, share=0.5, precision="int8", runtime="openvino-int8", bytes=int(1e6 * megabytes), p50_ms=ms,
        loss=loss_high - 0.002, loss_high=loss_high, bundle=f"bundles/{name}", error=error,
    )  # fmt: skip


SMALL = candidate("small", 1.0, 4.0, 0.004)
FAST = candidate("fast", 2.0, 3.0, 0.0049)
LOSSY = candidate("lossy", 0.5, 1.0, 0.0051)
REFUSED = candidate("refused", 0.1, float("nan"), 0.001, "openvino-int8: it does not run")
ALL = (WHOLE, SMALL, FAST, LOSSY, REFUSED)


def chosen(candidates: tuple[Candidate, ...], budget: float) -> tuple[int | None, int | None]:
    smallest = _best(candidates, budget, lambda each: (each.bytes, each.p50_ms))
    return smallest, _best(candidates, budget, lambda each: (each.p50_ms, each.bytes))


def test_only_what_was_shown_to_keep_the_budget_is_chosen():
    assert chosen(ALL, 0.005) == (1, 2)
    assert chosen(ALL, 0.0052) == (3, 3)
    assert chosen(ALL, 0.0045) == (1, 1)
    assert chosen(ALL, 0.003) == (None, None), "the whole network is no compression, and what does not run is none"


def test_what_was_chosen_is_said_with_its_test_photos():
    confirmation = Confirmation(0.940, 0.950, 0.010, -0.002, 0.022)
    result = Compression(Path("out"), 0.005, ALL, 1, 2, {1: confirmation})
    lines = _verdicts(result)
    assert lines[0] == "refused: openvino-int8: it does not run"
    assert lines[1].endswith(
        "0.940, the whole network 0.950; it loses 1.0 points (-0.2 to 2.2): not shown to be within the budget."
    )
    assert lines[2:] == [
        f"A bundle like any other: {Path('out/bundles/fast')}",
        f"A bundle like any other: {Path('out/bundles/small')}",
    ]
    assert _table_of_candidates(result).row_count == 4


@pytest.mark.parametrize(
    ("share", "lost", "made"),
    [
        (0.6, {"float32": 0.01}, ["float32"]),
        (0.6, {"float32": 0.001, "int8": 0.001}, ["float32", "int8"]),
        (0.6, {"float32": 0.001, "int8": 0.02, "int8-trained": 0.001}, ["float32", "int8", "int8-trained"]),
        (1.0, {"float32": 0.001, "int8": 0.02, "int8-trained": 0.01, "int8-weights": 0.001},
         ["float32", "int8", "int8-trained", "int8-weights"]),
        (1.0, {"float32": 0.01, "int8": 0.02, "int8-trained": 0.02}, ["float32", "int8", "int8-trained"]),
    ],
)  # fmt: skip
def test_fewer_bits_are_tried_as_long_as_they_may_keep_the_budget(
    share: float, lost: dict[str, float], made: list[str], monkeypatch: pytest.MonkeyPatch
):
    """What is exported takes minutes; here each precision loses what is said, in every runtime of int8."""

    def told(settings: object, name: str, *, precision: str, **_: object) -> list[Candidate]:
        error = "it may be less accurate" if lost[precision] > 0.005 else ""
        return [
            replace(WHOLE, name=name, share=share, precision=precision, runtime=runtime, loss_high=lost[precision],
                    error="" if precision == "float32" else error)
            for runtime, known in RUNTIMES.items() if "int8" in known.precisions
        ]  # fmt: skip

    monkeypatch.setattr(compress_module, "_candidates", told)
    settings = SimpleNamespace(budget=0.005, observer=Observer())
    found = compress_module._of_network(settings, "n", share, None, None)
    assert list(dict.fromkeys(candidate.precision for candidate in found)) == made


@pytest.mark.parametrize(
    ("refused", "lost"),
    [
        ((), False),
        (("openvino-int8",), False),
        (("onnxruntime-int8",), False),
        (("openvino-int8", "onnxruntime-int8"), True),
        (("litert-int8",), True),
    ],
)
def test_rounding_alone_will_do_where_each_format_has_a_runtime_that_keeps_the_budget(
    refused: tuple[str, ...], lost: bool
):
    names = [name for name, runtime in RUNTIMES.items() if "int8" in runtime.precisions]
    if not all(RUNTIMES[name].installed for name in names):
        pytest.skip("a runtime is not installed")
    candidates = [
        replace(WHOLE, name="n-int8", runtime=name, error="it lost" if name in refused else "") for name in names
    ]
    assert compress_module._rounding_lost(candidates, "n-int8") is lost


@pytest.mark.parametrize(("candidates", "near"), [(ALL, " The nearest loses 0.10 points at most."), ((WHOLE,), "")])
def test_a_budget_that_nothing_meets_says_how_near_it_came(candidates: tuple[Candidate, ...], near: str):
    *_, last = _verdicts(Compression(Path("out"), 0.0005, candidates, None, None, {}))
    assert last == f"None was shown to lose less than 0.05 points on validation.{near}"


@pytest.mark.parametrize(("wrong", "trained"), [(0, False), (9, True)])
def test_a_narrow_network_is_trained_only_where_it_was_not_shown_to_keep_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int, trained: bool
):
    true, done = np.zeros(1000, np.int64), []
    said = np.where(np.arange(1000) < wrong, 1, 0)
    monkeypatch.setattr(compress_module, "narrow_start", lambda *_: RunFolder(tmp_path / "start"))
    monkeypatch.setattr(compress_module, "narrow_recipe", lambda start, teacher, epochs: epochs)
    monkeypatch.setattr(compress_module, "run_job", lambda job, **_: done.append((job.folder.name, job.recipe)))
    monkeypatch.setattr(compress_module, "_predictions", lambda run, split: (said, true))
    settings = compress_module._Settings(
        RunFolder(tmp_path / "run"), tmp_path, 0.005, 3, tmp_path / "cache", None, Observer()
    )
    found = compress_module._narrowed(settings, "n", settings.original, 0.5, true)
    expected = [("n-untrained", 0), ("n", 3)] if trained else [("n-untrained", 0)]
    assert done == expected
    assert found.path.name == expected[-1][0]


def test_a_search_that_goes_on_does_not_try_again_what_was_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tried = []

    def export(run: Path, target: Path, **_: object) -> None:
        tried.append(target.name)
        raise BundleError("litert-int8: it may be less accurate by 0.60%")

    monkeypatch.setattr(compress_module, "export", export)
    run = RunFolder(tmp_path / "run")
    (tmp_path / "bundles").mkdir()  # by then it holds the whole network's in float32
    settings = compress_module._Settings(run, tmp_path, 0.005, 3, tmp_path / "cache", None, Observer())
    for _ in range(2):
        (found,) = compress_module._candidates(
            settings, "n-int8-trained", share=0.9, network=run, precision="int8-trained", whole=np.zeros(0, np.int64)
        )
        assert (found.name, found.error) == ("n-int8-trained", "litert-int8: it may be less accurate by 0.60%")
    assert tried == ["n-int8-trained"]
    larger = replace(settings, budget=0.02)
    compress_module._candidates(
        larger, "n-int8-trained", share=0.9, network=run, precision="int8-trained", whole=np.zeros(0, np.int64)
    )
    assert tried == ["n-int8-trained"] * 2, "a larger budget may allow it"
