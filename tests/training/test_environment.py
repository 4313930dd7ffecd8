"""What a run notes of its machine and of its photos, against other sources of the same facts."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
import sklearn

from tellapart.training import environment
from tellapart.training.environment import data_hash

FRAME = pd.DataFrame({
    "path": ["a/1.jpg", "a/2.jpg", "b/1.jpg"], "label": ["a", "a", "b"], "split": ["train", "test", "train"],
    "sha256": ["01" * 32, "23" * 32, "45" * 32],
}, dtype=object)  # fmt: skip


def changed(**cells: str) -> pd.DataFrame:
    """Return the table with some cells of its second row changed."""
    frame = FRAME.copy()
    for column, value in cells.items():
        frame.loc[1, column] = value
    return frame


@pytest.mark.parametrize(
    ("frame", "same"),
    [
        (FRAME[::-1], True),
        (FRAME.sample(frac=1, random_state=3), True),
        (changed(path="a/renamed.jpg"), True),
        (FRAME.assign(path="elsewhere/" + FRAME["path"], width=7), True),
        (changed(sha256="24" * 32), False),
        (changed(label="b"), False),
        (changed(split="validation"), False),
        (FRAME[:2], False),
        (pd.concat([FRAME, FRAME[:1]]), False),
        (FRAME.assign(label=["b", "b", "a"]), False),
    ],
    ids=["backwards", "shuffled", "renamed", "moved", "content", "label", "split", "fewer", "twice", "labels swapped"],
)
def test_the_hash_of_the_data_is_of_contents_labels_and_splits_alone(frame: pd.DataFrame, same: bool):
    assert (data_hash(frame) == data_hash(FRAME)) == same


def test_labels_that_are_no_text_have_a_hash_and_its_form_is_that_of_sha256():
    """On Linux the name of a folder is bytes: those that are no UTF-8 become surrogates."""
    found = {data_hash(changed(label=label)) for label in ("\udcff", "\udcfe", "ä", "NA", "")}
    assert len(found) == 5
    assert all(re.fullmatch(r"[0-9a-f]{64}", each) for each in found)


def test_processor_features_and_memory_are_those_of_this_machine():
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    flags = set(re.findall(r"^flags\s*: (.*)$", text, re.MULTILINE)[0].split()) if "\nflags" in text else set()
    known = {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"}
    assert set(environment.cpu_features()) == flags & known
    names = re.findall(r"^model name\s*: (.*)$", text, re.MULTILINE)
    assert environment.processor() == (names[0].strip() if names else platform.processor() or platform.machine())
    if Path("/proc/meminfo").exists():
        kilobytes = int(re.search(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)[1])
        assert environment.memory_mb() == pytest.approx(kilobytes * 1024 / 1e6, rel=0.02)


def test_the_peak_of_memory_holds_what_was_allocated():
    held = np.ones(60_000_000, np.uint8)  # 60 MB, each page written
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    assert environment.peak_memory_mb() >= max(60, 0.98 * pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
    assert environment.peak_memory_mb() < environment.memory_mb()
    assert held[-1] == 1


def test_packages_are_those_that_are_installed():
    """By the modules' own word, and nothing of a package that is not there."""
    found = environment.packages()
    assert found["keras"] == keras.__version__
    assert found["numpy"] == np.__version__
    assert found["scikit-learn"] == sklearn.__version__
    assert found["opencv-python-headless"].startswith(cv2.__version__)
    for name in set(environment.PACKAGES) - set(found):
        with pytest.raises(metadata.PackageNotFoundError):
            metadata.version(name)


def test_an_environment_is_plain_json_and_names_its_python_and_backend():
    found = environment.environment()
    assert json.loads(json.dumps(found)) == found
    assert found["python"] == platform.python_version()
    assert found["cpu_count"] == os.cpu_count()
    assert found["backend"] == "tensorflow"
    assert found["accelerators"] == [] or found["gpus"], "no accelerator is a processor"


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'NVIDIA H100, 550.54, 81559 MiB'; echo; echo ' NVIDIA T4, 550.54, 15360 MiB '", 2),
        ("echo 'NVIDIA-SMI has failed'; exit 9", 0),
        ("", 0),
        (None, 0),
    ],
    ids=["two", "no driver", "none", "not installed"],
)
def test_gpus_are_lines_of_nvidia_smi_and_none_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, found: int
):
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.gpus() == ["NVIDIA H100, 550.54, 81559 MiB", "NVIDIA T4, 550.54, 15360 MiB"][:found]


def test_the_commit_is_that_of_the_checkout_with_a_plus_when_its_files_were_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def git(*words: str) -> str:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", *settings, "-C", str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    module = tmp_path / "src" / "tellapart" / "training" / "environment.py"
    module.parent.mkdir(parents=True)
    module.write_text("first")
    monkeypatch.setattr(environment, "__file__", str(module))
    assert environment.commit() == "", "no checkout"
    git("init", "-q")
    assert environment.commit() == "", "a checkout without a commit"
    git("add", ".")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert environment.commit() == head
    (tmp_path / "notes.txt").write_text("a new file is no change of the code")
    assert environment.commit() == head
    module.write_text("second")
    assert environment.commit() == head + "+"
