"""A search: its study with made-up trials, and whole searches on drawn pictures with real kills of real processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tellapart
from tellapart.errors import InputError, RunError
from tellapart.evaluation.multi_seed import Estimate
from tellapart.experiments.tuning import study as tune_study
from tellapart.experiments.tuning.importance import importance_of, scores_at_one_look
from tellapart.experiments.tuning.result import Confirmation, Trial, Tuning, front_of, winner_of
from tellapart.experiments.tuning.search_space import Choice, Range
from tellapart.experiments.tuning.study import Heartbeat, first_rung, opened_study, work_through
from tellapart.records import Interval
from tellapart.run_folder import RunFolder

QUICK = [
    "data.image_px=32", "train.source_px=32", "train.epochs=4", "train.warmup_epochs=0", "train.batch_size=16",
    "train.stages=[]", "train.recalibrate_photos=0", "model.batchnorm_momentum=0.9", "train.precision=float32",
    "train.deterministic=true",
]  # fmt: skip
SPACE = ["train.learning_rate=1e-3..1e-2 log", "model.width=0.25,0.5"]
BEAT = Heartbeat(every=1, patience=3)


def trial(number: int, accuracy: float, ms: float | None = None, **rest) -> Trial:
    values = {"state": "finished", "values": {}, "loss": 0.5, "seconds": 1.0, "curve": ()} | rest
    return Trial(number=number, accuracy=accuracy, ms_per_image=ms, **values)


def test_the_front_is_what_no_other_trial_beats_in_both():
    """By hand: 1 is beaten by 0 (as good, faster), 3 by 2 (faster and better); a stopped trial has no part in it."""
    trials = [trial(0, 0.8, 2.0), trial(1, 0.8, 3.0), trial(2, 0.9, 4.0), trial(3, 0.85, 5.0), trial(4, 0.7, 1.0),
              trial(5, 0.99, 0.1, state="stopped")]  # fmt: skip
    assert front_of(trials) == (4, 0, 2)


def test_the_winner_is_the_most_accurate_and_among_equals_the_surest():
    assert winner_of([trial(0, 0.8), trial(1, 0.9, loss=0.4), trial(2, 0.9, loss=0.3), trial(3, 1, state="lost")]) == (
        trial(2, 0.9, loss=0.3)
    )
    assert winner_of([trial(0, 0.8, state="stopped")]) is None


def test_the_answer_is_said_aloud():
    def said(value: float, low: float, high: float, p_value: float) -> str:
        gained = Estimate(value, Interval(low, high), p_value)
        return Confirmation("fast", (1, 2, 3), ((0.8, 0.9),) * 3, 100, gained).sentence

    assert said(0.012, 0.003, 0.021, 0.01) == (
        "The tuned recipe is better than fast: +1.2 points (0.3 to 2.1), p = 0.010, 3 seeds."
    )
    assert said(-0.012, -0.021, -0.003, 0.01) == (
        "The tuned recipe is worse than fast: −1.2 points (−2.1 to −0.3), p = 0.010, 3 seeds."
    )
    assert said(0.004, -0.01, 0.018, 0.4) == (
        "No detectable difference between the tuned recipe and fast (−1.0 to +1.8 points), p = 0.40, 3 seeds."
    )


def test_trials_are_stopped_first_at_a_ninth_after_the_warm_up_where_there_is_a_look():
    assert [first_rung(36, 3, 3), first_rung(45, 1, 0), first_rung(12, 1, 3), first_rung(9, 1, 0)] == [6, 5, 3, 3]


def test_what_matters_is_found_among_finished_and_stopped_trials_at_one_epoch():
    rng = np.random.default_rng(0)
    made = []
    for number in range(30):
        rate, dropout = float(rng.uniform(0, 1)), float(rng.uniform(0, 1))
        curve = ((3, rate), (9, 1 - rate)) if number % 3 == 0 else ((3, rate),)
        state = "finished" if number % 3 == 0 else "stopped"
        made.append(trial(number, curve[-1][1], state=state, values={"a": rate, "b": dropout, "c": 1}, curve=curve))
    assert [score for _, score in scores_at_one_look(made)] == [each.values["a"] for each in made]
    shares = importance_of(made, {"a": Range(0, 1), "b": Range(0, 1), "c": Choice((1,))})
    assert list(shares) == ["a", "b"]
    assert shares["a"] > 0.8
    assert importance_of(made[:5], {"a": Range(0, 1), "b": Range(0, 1)}) == {}


def search_made_up_trials(path: Path, rung: int | None, wanted: int = 40) -> tuple[int, float, list[str]]:
    """Search curves that rise towards 1 - (x - 0.7)²; return epochs trained, the best end, and the states."""
    trained = 0

    def objective(each) -> float:
        nonlocal trained
        x = each.suggest_float("x", 0, 1)
        end = 1 - (x - 0.7) ** 2
        for epoch in range(1, 28):
            trained += 1
            if rung is None:
                continue
            each.report(end * (1 - 0.9**epoch), epoch)
            if epoch < 27 and each.should_prune():
                raise tune_study.optuna_or_error().TrialPruned
        return end

    with opened_study(f"sqlite:///{path}", "made up", seed=3, rung=rung, pareto=False, heartbeat=BEAT) as study:
        lock = path.with_suffix(".lock")
        work_through(study, objective, wanted=wanted, deadline=None, lock=lock, waiting=lambda finished: None)
        return trained, study.best_value, [each.state.name for each in study.trials]


@pytest.mark.slow
def test_stopping_poor_trials_saves_half_of_the_epochs_at_the_same_best_score(tmp_path: Path):
    whole, best, states = search_made_up_trials(tmp_path / "whole.db", None)
    assert (whole, set(states)) == (40 * 27, {"COMPLETE"})
    stopped, best_stopped, states = search_made_up_trials(tmp_path / "stopped.db", 3)
    assert len(states) == 40
    assert stopped < whole / 2
    assert best_stopped == pytest.approx(best, abs=0.002)


DYING = """
import os, sys, time
from pathlib import Path

from tellapart.experiments.tuning.study import Heartbeat, opened_study, work_through


def die(trial):
    print(trial.suggest_float("x", 0, 1), flush=True)
    time.sleep(0.5)  # a thread writes the first sign of life
    os._exit(9)


url, lock = sys.argv[1:]
with opened_study(url, "s", seed=0, rung=2, pareto=False, heartbeat=Heartbeat(1, 1)) as study:
    work_through(study, die, wanted=99, deadline=None, lock=Path(lock), waiting=lambda finished: None)
"""


@pytest.mark.slow
def test_a_dead_workers_trial_is_put_back_with_its_values_and_given_up_when_it_kills_again(tmp_path: Path):
    url, lock, seen = f"sqlite:///{tmp_path}/study.db", tmp_path / "lock", []
    beat = Heartbeat(every=1, patience=1)

    def die() -> None:
        dead = subprocess.run([sys.executable, "-c", DYING, url, lock], capture_output=True, text=True, check=False)
        assert dead.returncode == 9, dead.stderr
        seen.append(float(dead.stdout))
        time.sleep(2.5)

    def objective(each) -> float:
        seen.append(each.suggest_float("x", 0, 1))
        assert each.user_attrs[tune_study.FOLDER_OF] == 0, "it goes on in its own folder"
        return 1.0

    die()
    with opened_study(url, "s", seed=0, rung=2, pareto=False, heartbeat=beat) as study:
        work_through(study, objective, wanted=1, deadline=None, lock=lock, waiting=lambda finished: None)
        assert len(set(seen)) == 1
        assert [each.state.name for each in study.trials] == ["FAIL", "COMPLETE"]

    for _ in range(3):
        die()
    with opened_study(url, "s", seed=0, rung=2, pareto=False, heartbeat=beat) as study:
        with tune_study._quiet():
            tune_study.optuna_or_error().storages.fail_stale_trials(study)
        assert len(set(seen[2:])) == 1, "the same trial died each time"
        assert [each.state.name for each in study.trials][2:] == ["FAIL"] * 3, "three times is enough"


def test_what_is_used_of_optuna_is_public():
    for module in Path(tune_study.__file__).parent.glob("*.py"):
        found = re.findall(r"\b(?:study|trial|each|storage|library|optuna)\._\w+", module.read_text("utf-8"))
        assert not found, f"{module.name}: no promise is given for {found}"


def test_a_setting_that_decides_about_another_one_is_searched_with_it(tmp_path: Path):
    """adamw with a decay near 0.01 is best; trials with adam have no decay, and none is learned from for them."""
    space = {"optimizer": Choice(("adam", "adamw")), "decay": Range(1e-4, 1.0, log=True)}
    seen: list[dict] = []

    def objective(each) -> float:
        acts = lambda name, values: name != "decay" or values["optimizer"] == "adamw"  # noqa: E731
        values = tune_study.suggest(each, space, acts)
        seen.append(values)
        return 0.5 if len(values) == 1 else 1 - 0.1 * abs(np.log10(values["decay"]) + 2)

    url = f"sqlite:///{tmp_path}/study.db"
    with opened_study(url, "s", seed=1, rung=None, pareto=False, heartbeat=BEAT, conditional=True) as study:
        lock = tmp_path / "lock"
        work_through(study, objective, wanted=40, deadline=None, lock=lock, waiting=lambda finished: None)
        assert study.best_params["decay"] == pytest.approx(0.01, rel=0.5)
    assert {len(values) for values in seen} == {1, 2}
    assert all(("decay" in values) == (values["optimizer"] == "adamw") for values in seen)
    assert sum(values["optimizer"] == "adamw" for values in seen[20:]) > 15


def test_what_matters_is_told_of_what_acts_in_all_trials():
    rng = np.random.default_rng(1)
    made = []
    for number in range(20):
        values = {"a": float(rng.uniform(0, 1))} | ({"b": 0.5 * number} if number % 2 else {})
        made.append(trial(number, values["a"], values=values))
    assert list(importance_of(made, {"a": Range(0, 1), "b": Range(0, 10)})) == ["a"]


def test_an_interrupted_trial_is_put_back(tmp_path: Path):
    tries: list[float] = []

    def objective(each) -> float:
        tries.append(each.suggest_float("x", 0, 1))
        each.report(0.5, len(tries))
        if len(tries) == 1:
            raise KeyboardInterrupt
        return 1.0

    arguments = {"wanted": 1, "deadline": None, "lock": tmp_path / "lock", "waiting": lambda finished: None}
    url = f"sqlite:///{tmp_path}/study.db"
    with opened_study(url, "s", seed=0, rung=2, pareto=False, heartbeat=BEAT) as study:
        with pytest.raises(KeyboardInterrupt):
            work_through(study, objective, **arguments)
        work_through(study, objective, **arguments)
        assert tries[0] == tries[1]
        assert study.trials[1].intermediate_values == {1: 0.5, 2: 0.5}


def test_a_storage_that_is_lost_on_the_way_is_named(tmp_path: Path):
    from sqlalchemy.exc import OperationalError

    url = f"sqlite:///{tmp_path}/study.db"
    with (
        pytest.raises(RunError, match=r"study\.db was lost: disk I/O error\. Finished trials are kept"),
        opened_study(url, "s", seed=0, rung=None, pareto=False, heartbeat=BEAT),
    ):
        raise OperationalError("INSERT", {}, Exception()) from OSError("disk I/O error")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:////no/such/folder/study.db", r"cannot be reached: .*unable to open database file"),
        (
            "postgresql://me:secret@127.0.0.1:1/db",
            r"Storage postgresql://me:\*\*\*@127\.0\.0\.1:1/db cannot be reached",
        ),
        ("nonsense", r"Storage nonsense cannot be reached: .*Expected the URL"),
        ("nosuch://host/db", r"Storage nosuch://host/db cannot be reached"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_named_without_its_password(url: str, said: str):
    with (
        pytest.raises(InputError, match=said) as caught,
        opened_study(url, "s", seed=0, rung=None, pareto=False, heartbeat=BEAT),
    ):
        pass
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_optuna_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'tellapart\[tune\]'"):
        tellapart.tune(tmp_path, trials=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tellapart.draw(tmp_path_factory.mktemp("drawn") / "photos", num_images=120)


def search(photos: Path, out: Path, **options) -> Tuning:
    given = {"trials": 4, "changes": QUICK, "space": SPACE, "seeds": 0, "cache": out.parent / f"{out.name}-cache"}
    return tellapart.tune(photos, out=out, heartbeat=BEAT, **(given | options))


@pytest.fixture(scope="module")
def tuned(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "search"
    lines: list[str] = []
    search(photos, out, announce=lines.append)
    assert [line.split()[0] for line in lines if "/4" in line] == ["1/4", "2/4", "3/4", "4/4"]
    return out


@pytest.mark.integration
@pytest.mark.slow
def test_trials_never_see_a_test_photo(tuned: Path, photos: Path, tmp_path: Path):
    """Not one is named in what trials leave, and with all of them gone from the disk the trials are the same."""
    table = RunFolder(tuned / "photos").manifest()
    tested = table[table["split"] == "test"]
    assert len(tested) > 5
    for file in (tuned / "trials").rglob("*.*"):
        if file.suffix in (".csv", ".json", ".jsonl", ".toml"):
            text = file.read_text()
            assert not any(path in text for path in [*tested["path"], *tested["sha256"]]), file
    for run in (tuned / "trials").iterdir():
        assert set(RunFolder(run).manifest()["split"]) == {"train", "validation"}
        if (run / "metrics.json").exists():
            assert "test" not in json.loads((run / "metrics.json").read_text())
            assert set(pd.read_csv(run / "predictions.csv")["split"]) == {"train", "validation"}

    again, moved = tmp_path / "again", tmp_path / "photos"
    shutil.copytree(photos, moved)
    again.mkdir()
    for path in tested["path"]:
        (moved / path).unlink()
    for name in ("photos", "visible"):
        shutil.copytree(tuned / name, again / name)
        record = json.loads((again / name / "environment.json").read_text())
        record |= {"root": str(moved), "request": record["request"] | {"photos": str(moved)}}
        (again / name / "environment.json").write_text(json.dumps(record))
    shutil.copy(tuned / "precision.json", again)
    kept = json.loads((tuned / "search.json").read_text()) | {"photos": str(moved)}
    (again / "search.json").write_text(json.dumps(kept))
    search(moved, again)
    first, second = (pd.read_csv(out / "trials.csv").drop(columns="seconds") for out in (tuned, again))
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.integration
@pytest.mark.slow
def test_a_finished_search_is_whole_small_and_goes_on_to_the_answer(
    tuned: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    from tellapart.cli.main import main

    kept = [run for run in (tuned / "trials").iterdir() if (run / "checkpoints" / "best.npz").exists()]
    assert 1 <= len(kept) <= 3
    assert not list(tuned.rglob("last.npz"))
    assert not list(tuned.rglob("tensorboard"))
    changes = [word for change in QUICK for word in ("--set", change)]
    spaces = [word for text in SPACE for word in ("--space", text)]
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TELLAPART_CACHE", str(tuned.parent / "search-cache"))
    words = ["tune", str(photos), "--trials", "4", "--out", str(tuned), "--confirm", "1", *changes, *spaces]
    monkeypatch.setattr(sys, "argv", ["tellapart", *words])
    with pytest.raises(SystemExit) as end:
        main()
    out, errors = capfd.readouterr()
    assert not end.value.code, errors
    found = json.loads((tuned / "tune.json").read_text())
    assert found["verdict"] in out
    assert all(len(line) <= 80 for line in out.splitlines() if "│" in line or "  " in line)
    assert len(found["trials"]) == 4
    best = next(each for each in found["trials"] if each["number"] == found["best"])
    assert best["accuracy"] == max(each["accuracy"] for each in found["trials"] if each["state"] == "finished")
    recipe = tellapart.load_recipe(tuned / "best.toml")
    assert recipe.train.learning_rate == pytest.approx(best["values"]["train.learning_rate"])
    if found["best"] != 0:
        assert re.search(r"(No detectable difference|The tuned recipe is).*p [=<] .*, 1 seed\.", found["verdict"])
        runs = sorted(run.name for run in (tuned / "confirm").iterdir())
        assert runs == ["recipe-1", "tuned-1"]
        measured = [json.loads((tuned / "confirm" / run / "metrics.json").read_text()) for run in runs]
        assert found["answer"]["accuracies"] == [[pytest.approx(each["test"]["accuracy"]) for each in measured]]
    page = (tuned / "tune.html").read_text()
    assert page.count("<svg") >= 4
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:|//|/)|<script""", page.replace("xmlns", ""))

    with pytest.raises(InputError, match=r"holds another search, with space"):
        search(photos, tuned, space=["model.dropout=0..0.5"])
    (tuned.parent / "full").mkdir()
    (tuned.parent / "full" / "letter.txt").write_text("kept")
    with pytest.raises(InputError, match="is not empty and holds no search"):
        search(photos, tuned.parent / "full")


@pytest.mark.slow
@pytest.mark.by_hand
def test_the_command_weighs_speed_and_begins_no_trial_after_its_time(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    from tellapart.cli.main import main

    monkeypatch.setenv("TELLAPART_CACHE", str(tmp_path / "cache"))
    changes = [word for change in QUICK for word in ("--set", change)]
    spaces = [word for text in SPACE for word in ("--space", text)]

    def tune(out: Path, *options: str) -> dict:
        words = ["tune", str(photos), "--out", str(out), "--confirm", "0", *options, *changes, *spaces]
        monkeypatch.setattr(sys, "argv", ["tellapart", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, capfd.readouterr().err
        return json.loads((out / "tune.json").read_text())

    both = tune(tmp_path / "both", "--trials", "4", "--pareto")
    finished = [each for each in both["trials"] if each["state"] == "finished"]
    assert len(finished) == 4, "with two aims no trial is stopped early"
    by_width = {each["values"]["model.width"]: each["ms_per_image"] for each in finished}
    assert all(milliseconds > 0 for milliseconds in by_width.values())
    beaten = {
        a["number"] for a in finished for b in finished
        if b["accuracy"] >= a["accuracy"] and b["ms_per_image"] <= a["ms_per_image"]
        and (b["accuracy"], -b["ms_per_image"]) != (a["accuracy"], -a["ms_per_image"])
    }  # fmt: skip
    assert set(both["front"]) == {each["number"] for each in finished} - beaten
    short = tune(tmp_path / "short", "--trials", "500", "--time", "5s")
    assert 1 <= len(short["trials"]) < 100


@pytest.mark.by_hand
def test_killed_workers_cost_no_trial(photos: Path, tmp_path: Path):
    """A search is killed in a trial; run again with two workers, one of them is killed as well."""
    out = tmp_path / "search"
    process = start(photos, out, workers=1)
    wait_until(process, (out / "trials" / "0000" / "history.csv").exists)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    process = start(photos, out, workers=2)
    wait_until(process, lambda: len(list(out.glob("trials/*/history.csv"))) > 1)
    (victim, *_) = children(process.pid)
    os.kill(victim, signal.SIGKILL)
    said, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    assert "was killed. Another takes its place" in said
    found = json.loads((out / "tune.json").read_text())
    assert [each["state"] for each in found["trials"]] == ["finished"] * 3
    assert found["trials"][0]["number"] == 0, "the one that was killed first has kept its number and folder"
    assert len(pd.read_csv(out / "trials" / "0000" / "history.csv")) == 6
    assert not children(process.pid)


def start(photos: Path, out: Path, *, workers: int) -> subprocess.Popen:
    script = out.parent / "search.py"
    script.write_text(
        textwrap.dedent(f"""
            import tellapart
            from tellapart.experiments.tuning.study import Heartbeat

            if __name__ == "__main__":
                tellapart.tune({str(photos)!r}, trials=3, changes={[*QUICK, "train.epochs=6"]!r}, space={SPACE!r},
                    seeds=0, out={str(out)!r}, cache={str(out.parent / "cache")!r}, workers={workers}, prunes=False,
                    heartbeat=Heartbeat(1, 3), announce=print)
        """)
    )
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(process: subprocess.Popen, ready: Callable[[], bool]) -> None:
    while not ready():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Return the workers that a search has started, and not the helper that Python starts beside them."""
    try:
        found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
