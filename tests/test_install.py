"""The wheel, installed into empty environments: what serves needs no training, and is small."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

import tellapart

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
QUICK = ["data.image_px=32", "train.epochs=4", "train.precision=float32", "train.learning_rate=2e-3"]
LARGEST_MB = 400


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run(command, check=True, timeout=300)
    (found,) = folder.glob("*.whl")
    return found


def environment(folder: Path, wanted: str, *options: str) -> Path:
    """Make an empty environment, install into it, and return its folder of commands."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    subprocess.run([python, *install, *options, wanted], check=True, timeout=600)
    return folder / "bin"


def clean_environment(**extra: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"), "LANG": "C.UTF-8", **extra}


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


def test_serving_alone_is_small_and_serves_and_predicts(wheel: Path, tmp_path: Path):
    photos = tellapart.draw(tmp_path / "photos", num_images=200)
    tellapart.train(photos, changes=QUICK, out=tmp_path / "run", cache=tmp_path / "cache")
    tellapart.export(tmp_path / "run", tmp_path / "bundle", cache=tmp_path / "cache")
    photo = next(photos.rglob("*.jpg"))
    commands = environment(tmp_path / "serving", str(wheel))
    packages = subprocess.run([commands / "pip", "list", "--format=json"], capture_output=True, check=True).stdout
    names = {package["name"].lower().replace("_", "-") for package in json.loads(packages)}
    assert not names & {"tensorflow", "tensorflow-cpu", "keras", "numba", "cleanlab", "jax", "scipy", "pandas"}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "empty"], check=True)  # pip and setuptools
    size = megabytes(tmp_path / "serving") - megabytes(tmp_path / "empty")
    assert size < LARGEST_MB, f"{size:.0f} MB beside what an empty environment has"

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [commands / "tellapart", *map(str, words)], capture_output=True, text=True, timeout=120, check=False,
            env=clean_environment(),
        )  # fmt: skip

    said = run("predict", tmp_path / "bundle", photo, "--format", "jsonl")
    assert said.returncode == 0, said.stderr
    label = json.loads(said.stdout)["label"]
    refused = run("train", photos, "--out", tmp_path / "no")
    assert refused.returncode == 2
    assert "pip install 'tellapart[train]'" in refused.stderr
    assert not (tmp_path / "no").exists()
    with subprocess.Popen(
        [commands / "tellapart", "serve", tmp_path / "bundle", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean_environment(),
    ) as server:  # fmt: skip
        try:
            address = next(found[0] for line in server.stdout if (found := re.search(r"http://[\w.:\[\]]+\d", line)))
            request = urllib.request.Request(
                f"{address}/predict", photo.read_bytes(), {"Content-Type": "image/jpeg"}, method="POST"
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert label in answer.read().decode()
        finally:
            server.terminate()


def test_the_wheel_has_every_file_of_the_package(wheel: Path):
    package = ROOT / "src" / "tellapart"
    wanted = {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {f"tellapart/recipes/{path.name}" for path in (ROOT / "recipes").iterdir()}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.startswith("tellapart/")} == wanted


@pytest.mark.by_hand
def test_the_wheel_trains_in_an_environment_of_its_own(wheel: Path, tmp_path: Path):
    commands = environment(tmp_path / "training", f"{wheel}[train]", "--no-compile")
    packages = subprocess.run([commands / "pip", "list", "--format=json"], capture_output=True, check=True).stdout
    names = {package["name"].lower().replace("_", "-") for package in json.loads(packages)}
    assert len(names & {"tensorflow", "tensorflow-cpu"}) == 1, "two packages that bring the same files"
    quick = [word for setting in QUICK for word in ("--set", setting)]
    for words in (["draw", "photos", "--images", "120"], ["train", "photos", *quick, "--out", "run"]):
        done = subprocess.run(
            [commands / "tellapart", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
            env=clean_environment(TELLAPART_CACHE=str(tmp_path / "cache"), TF_CPP_MIN_LOG_LEVEL="3"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["num_images"] > 0
