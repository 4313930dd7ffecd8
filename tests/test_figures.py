"""Figures in the documents are those of results/: each claim is written from its file and looked for in the text."""

from __future__ import annotations

import importlib.util
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "results").glob("*.json"))
PAGES = {page.relative_to(ROOT).as_posix(): page for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def text_of(page: str) -> str:
    return " ".join(PAGES[page].read_text().split())


def over_seeds(name: str) -> str:
    """Return the mean over seeds and both intervals, as the README writes them."""
    found = result(name)
    low, high = found["interval_over_seeds"]
    first, last = found["interval_over_test_photos"]
    return f"{found['mean_test_accuracy']:.3f} {low:.3f} {high:.3f} {first:.3f} {last:.3f}"


def numbers_near(page: str, name: str) -> set[str]:
    """Return all numbers in the paragraphs of a page that link to a results file."""
    parts = re.split(r"\n\n|(?=\n\| )", PAGES[page].read_text())
    return {number for part in parts if f"{name}.json" in part for number in re.findall(r"\d+(?:\.\d+)?", part)}


@pytest.mark.parametrize("name", ["accuracy-photos9-10m", "accuracy-photos9-5m", "accuracy-trash6-3m"])
def test_accuracies_of_recipes_are_those_of_their_files(name: str):
    missing = set(over_seeds(name).split()) - numbers_near("docs/run-folder.md", name)
    assert not missing, f"docs/run-folder.md lacks {sorted(missing)} beside {name}.json: it says {over_seeds(name)}"


@pytest.mark.parametrize("name", ["race-photos9-2m", "race-trash6-3m", "race-antsbees-1m"])
def test_the_races_accuracies_are_those_of_their_files(name: str):
    found = result(name)
    ends = [*found["race"]["interval_over_seeds"], *found["race"]["interval_over_test_photos"]]
    shown = {f"{value:.3f}" for value in (*(found[way]["test"] for way in ("race", "fast", "transfer")), *ends)}
    for page, less in (("README.md", set()), ("docs/race.md", {f"{end:.3f}" for end in ends[:2]})):
        missing = shown - less - numbers_near(page, name)
        assert not missing, f"{page} lacks {sorted(missing)} beside {name}.json"


def test_what_the_order_of_review_is_worth_is_that_of_its_file():
    text = text_of("docs/review.md")
    for name, values in result("review")["sets"].items():
        for labels, row in values["after_labels"].items():
            ours, other = row["the page's order"], row["any"]
            assert f"| {name.partition('-')[0]} | {int(labels):,} | {other:.3f} | {ours:.3f} |" in text
            low, high = (f"{end:+.1f}".replace("-", "−") for end in row["interval"])
            assert labels == "0" or f"({low} to {high})" in text


def test_what_a_request_pays_for_what_is_kept_is_that_of_its_file():
    text = text_of("docs/serve.md")
    for values in result("storing")["added_to_p50"].values():
        low, high = values["quartiles_ms"]
        assert f"| {values['median_ms']:+.2f} ({low:+.2f} to {high:+.2f}) |".replace("-", "−") in text


def test_how_near_an_estimate_without_labels_comes_is_that_of_its_file():
    text, seen = text_of("docs/drift.md"), "ours, group unseen"
    for values in result("label-free")["sets"].values():
        errors = values["mean_absolute_error_points"]
        row = [errors[name] for name in ("ours", seen, "threshold", "confidence", "confidence difference")]
        shown = " | ".join(f"{error:.1f}" for error in [*row, values["floor_points"]])
        inside = 100 * values["inside_the_interval"][seen]
        assert f"| {values['clean_accuracy']:.3f} | {shown} | {inside:.0f} % |" in text
    for severity, values in result("label-free")["sets"]["photos9-transfer"]["by_severity"].items():
        assert f"{values[seen]:.1f} at severity {severity}" in text


def test_the_story_is_that_of_its_file():
    found, near = result("story"), numbers_near("docs/loop.md", "story") | {"500"}
    free, accuracy = found["without_labels"], found["accuracy"]
    shown = {f"{value:.3f}" for value in (accuracy["usual"], accuracy["another camera"], accuracy["version 2"],
                                          free["estimated"], free["right"], *free["interval"])}  # fmt: skip
    shown |= {str(found[name]) for name in ("failed_requests", "photos_to_drift", "reviewed")}
    shown |= {f"{found['seconds']:.0f}", f"{found['roll_back_seconds']:.1f}"}
    assert not shown - near
    assert f"{found['requests']:,} requests" in text_of("docs/loop.md")
    assert found["roll_back"].split("after ")[1].split(" labels")[0] in near


@pytest.mark.parametrize("name", ["race-photos9-2m", "race-trash6-3m", "race-antsbees-1m"])
def test_peers_of_a_race_are_those_of_its_file(name: str):
    found, near = result(name), numbers_near("docs/race.md", name)
    peers = {name: values for name, values in found.items() if ", " in name}
    assert len(peers) == 5
    for peer, values in peers.items():
        shown = {f"{value:.3f}" for value in (values["test"], *values["interval_over_test_photos"])}
        assert not shown - near, peer


def test_the_reference_recipes_accuracy_is_that_of_its_file():
    found = result("accuracy-photos9-reference")
    low, high = found["interval_over_test_photos"]
    assert {f"{value:.3f}" for value in (found["mean_test_accuracy"], low, high)} <= numbers_near(
        "docs/run-folder.md", "accuracy-photos9-reference"
    )


def test_the_table_of_training_speed_is_that_of_its_file():
    found, page = result("throughput"), text_of("README.md")
    for name, ratio in found["ratio_of_tellapart"].items():
        if name in found["median_images_per_second"] and name != "keras reading":
            assert f"| {found['median_images_per_second'][name]:.1f} | {ratio:.2f}× |" in page, name


def test_the_table_of_serving_speed_is_that_of_its_file():
    found, page = result("serving"), text_of("README.md")
    for name, row in found["servers"].items():
        cells = f"| {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {row['requests_per_second']:.0f} |"
        assert cells in page, name
        if name != "tellapart":
            assert f"{cells} {found['throughput_ratio'][name]:.2f}× |" in page, name


@pytest.mark.parametrize("photos", ["photos9", "trash6", "antsbees"])
def test_the_table_of_transfer_is_that_of_its_files(photos: str):
    found = result(f"transfer-{photos}")
    row = next(line for line in PAGES["docs/transfer.md"].read_text().splitlines() if line.startswith(f"| {photos},"))
    for side in ("tellapart", "keras"):
        low, high = found[side].get("interval") or found[side]["interval_over_test_photos"]
        assert f"{found[side]['test']:.3f} ({low:.3f} to {high:.3f})" in row, side


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_every_result_is_of_a_clean_commit_and_a_page_names_it_or_is_made_from_it(file: Path):
    machine = json.loads(file.read_text())["machine"]
    assert re.fullmatch(r"[0-9a-f]{40}", machine["commit"]), "measured on a tree with changes"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", machine["date"])
    assert {"tellapart", "keras", "numpy"} <= set(machine["packages"])
    pages = [name for name, page in PAGES.items() if f"{file.name}" in page.read_text()]
    assert pages, f"no page names {file.name}"


def test_every_results_file_that_a_page_names_exists():
    for name, page in PAGES.items():
        for file in re.findall(r"results/([\w-]+\.json)", page.read_text()):
            assert (ROOT / "results" / file).exists() or file == "NAME.json", f"{name} names {file}"


def test_the_ab_tests_alarms_and_labels_are_those_of_their_file():
    found, text = result("ab-tests"), text_of("docs/ab-test.md")
    for alarm in found["a_a"].values():
        low, high = (f"{100 * end:.1f}" for end in alarm["interval"])
        assert f"| {100 * alarm['share']:.1f} % ({low} to {high}) |" in text
    for labels in found["labels_for_94_against_96"].values():
        low, high = (f"{end:,}" for end in labels["from_10_to_90_percent"])
        assert f"| {labels['median']:,} ({low} to {high}) |" in text
        assert labels["found"] == 1.0
    once = found["disagreements_for_one_look_by_power"]
    assert f"| {once['0.5']} for half of the tests, {once['0.9']} for nine of ten |" in text


def test_what_features_of_many_photos_cost_is_that_of_their_file():
    found, page = result("features"), text_of("docs/transfer.md")
    for who in ("tellapart", "keras"):
        cells = []
        for key in ("wall_seconds", "processor_seconds"):
            values = sorted(part[who][key] for part in found["rounds"])
            cells.append(f"{values[1]:.0f} ({values[0]:.0f} to {values[2]:.0f})")
        assert f"| {' | '.join(cells)} | {found['median'][who]['test']:.3f} |" in page
    ratio = found["median"]["keras"]["processor_seconds"] / found["median"]["tellapart"]["processor_seconds"]
    assert f"Keras takes {ratio:.2f} times as much" in page


def test_what_passes_before_the_first_step_is_that_of_its_file():
    median, page = result("first-step")["median_seconds"], text_of("docs/training.md")
    for way in ("race", "fast", "reference"):
        assert f"| {median[f'{way}, cold']:.1f} s | {median[f'{way}, warm']:.1f} s |" in page
    assert f"begins after {median['keras']:.1f} s" in page


def test_what_drift_is_found_is_that_of_its_file():
    found, page = result("drift"), text_of("docs/drift.md")
    for severity in range(1, 6):
        rows = [row for row in found["runs"] if row["severity"] == severity]
        photos = sorted(row["photos"] for row in rows)
        accuracy = sum(row["accuracy"] for row in rows) / len(rows)
        slowest = "over 2,000" if photos[-1] > 2000 else f"{photos[-1]:.0f}"
        within = sum(value <= 500 for value in photos)
        assert f"| {severity} | {accuracy:.3f} | {photos[7]:.0f} | {slowest} | {within} of 15 |" in page
    quiet = found["without_change"]
    assert f"there were {quiet['alarms']} alarms in {quiet['streams'] * quiet['photos_each']:,} photos" in page
    assert found["hurt_by_5_points"] == found["hurt_found_in_500"]
    assert f"All {found['hurt_by_5_points']} corruptions" in page


@pytest.mark.parametrize(
    ("name", "first_seed"),
    [("mobilenet_v2", 0), ("mobilenet_v2-avx2", 0), ("mobilenet_v2-avx2-seeds", 1), ("reference", 0)],
)
def test_what_a_compression_found_is_that_of_its_file(name: str, first_seed: int):
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "make_compression_picture.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    found, page = result(f"compression-{name}"), text_of("docs/compress.md")
    assert [line for line in made.table(found).splitlines() if line not in page] == []
    assert [line for line in made.seeds(found, first_seed).splitlines() if line not in page] == []
    # The README shows one processor.
    rows = made.summary(name, found).splitlines() if name in made.NETWORKS else []
    assert [line for line in rows if line not in text_of("README.md")] == []


def test_what_mediapipe_says_is_that_of_its_file():
    found, page = result("mediapipe-task"), text_of("docs/phones.md")
    for how in ("as they are", "shrunk before"):
        low, high = found[how]["interval"]
        assert (
            f"{found[how]['agreeing']} of {found['num_photos']} photos ({100 * low:.1f} to {100 * high:.0f} %)" in page
        )


def test_what_the_page_without_a_server_takes_is_that_of_its_file():
    found, page = result("web-page"), text_of("docs/compress.md")
    assert f"loads {max(found['bytes_sent_until_first_answer']) / 1e6:.2f} MB" in page
    assert f"the folder has {found['folder_bytes'] / 1e6:.1f} MB" in page
    for values, digits, unit in ((found["first_answer_seconds"], 1, "s"), (found["p50_ms"], 1, "ms")):
        assert f"{min(values):.{digits}f} to {max(values):.{digits}f} {unit}" in page
    assert found["agrees_with_the_server"] == 1
    peers = found["onnxruntime_web_network_ms"].values()
    for laps in (found["network_ms"], *peers):
        assert f"| {', '.join(f'{lap:.1f}' for lap in laps)} |" in page


@pytest.mark.parametrize("file", ["recipe-speed", "recipe-speed-bf16"])
def test_the_speed_of_fast_beside_an_earlier_version_is_that_of_its_file(file: str):
    found, page = result(file), text_of("docs/training.md")
    for px, ratio in found["ratio"].items():
        speeds = [
            f"{statistics.median(seen[kind]['images_per_second'][px] for seen in found['rounds']):.0f}"
            for kind in ("before", "now")
        ]
        rounds = ", ".join(f"{value:.2f}" for value in ratio["rounds"])
        assert f"| {px} px | {' | '.join(speeds)} | {ratio['median']:.2f} ({rounds}) |" in page
    assert f"busy for {found['busy']:.0%}".replace("%", " %") in page


def test_the_speed_of_a_table_of_photos_is_that_of_its_file():
    found, page = result("batch-prediction"), text_of("docs/export.md")
    rates, shares = found["images_per_second"], found["of_the_bare_loop"]
    percent = {kind: f"{100 * share:.0f} %" for kind, share in shares.items()}
    plain = f"{rates['without quality']:,.0f} images/s without the quality of the photos, {percent['without quality']}"
    assert plain in page
    assert f"{rates['with quality']:,.0f} ({percent['with quality']}) with it" in page


def test_what_a_time_budget_leaves_for_training_is_that_of_its_file():
    (found,), page = result("time-budget-crops-150")["runs"].values(), text_of("docs/training.md")
    assert (
        f"takes {found['wall_seconds']:.0f} s, of which {found['training_seconds']:.0f} train, in two epochs and a "
        f"part of a third, and test accuracy is {found['test_accuracy']:.3f}" in page
    )
    (found,) = result("time-budget-crops-150-bf16")["runs"].values()
    assert (
        f"takes {found['wall_seconds']:.0f} s, of which {found['training_seconds']:.0f} train, in {found['epochs']} "
        f"epochs, and test accuracy is {found['test_accuracy']:.3f}" in page
    )


def test_no_benchmark_hides_a_module_of_python():
    """A script's folder comes first where Python looks: JAX asks for 3.14's `compression`, and got a benchmark."""
    names = {path.stem for path in (ROOT / "benchmarks").rglob("*.py")}
    assert not names & (set(sys.stdlib_module_names) | {"compression"})
