"""The files of deploy/ are whole, and what they start exists."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from tellapart.cli.main import app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, arguments) of the Dockerfile."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def check_serve(words: list[str]) -> None:
    """Parse a command as `tellapart serve` would."""
    assert Path(words[0]).name == "tellapart"
    assert words[1] == "serve"
    command = typer.main.get_command(app).commands["serve"]
    context = command.make_context("serve", words[2:])
    assert context.params["port"] == 8000
    assert context.params["bundles"]


def test_the_dockerfile_copies_what_exists_and_starts_a_server():
    known = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"}
    assert {name for name, _ in instructions()} <= known
    for name, arguments in instructions():
        if name == "COPY":
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists(), source
        if name == "ENTRYPOINT":
            check_serve(json.loads(arguments))
    users = [arguments for name, arguments in instructions() if name == "USER"]
    assert users == ["tellapart"], "not as root"
    # What the package is built from must be there: pyproject names these files.
    copied = " ".join(arguments for name, arguments in instructions() if name == "COPY")
    for file in ("pyproject.toml", "README.md", "LICENSE", "src", "recipes"):
        assert file in copied


def test_compose_builds_that_file_and_needs_a_key():
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["tellapart"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert service["environment"]["TELLAPART_API_KEY"].startswith("${TELLAPART_API_KEY:?")
    assert service["volumes"][0].endswith(":/bundle:ro")
    assert service["ports"] == ["8000:8000"]
    assert int(service["stop_grace_period"].removesuffix("s")) > 10 + 1, "the deadline and the notice"


def test_the_unit_starts_a_server_and_lets_it_finish():
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "tellapart.service")
    check_serve(shlex.split(unit["Service"]["ExecStart"]))
    assert int(unit["Service"]["TimeoutStopSec"]) > 10 + 1
    assert unit["Service"]["DynamicUser"] == "yes"


@pytest.mark.parametrize("header", ["Host", "X-Forwarded-Host", "X-Forwarded-For"])
def test_the_proxy_passes_on_what_the_server_needs(header: str):
    text = (DEPLOY / "nginx.conf").read_text()
    assert text.count("{") == text.count("}")
    assert re.search(rf"proxy_set_header {header} \$\w+;", text)


def test_what_trains_again_by_itself_asks_for_commands_that_exist():
    unit = configparser.ConfigParser()
    unit.optionxform = str
    unit.read(DEPLOY / "tellapart-retrain.service")
    cron = yaml.safe_load((DEPLOY / "retrain-cronjob.yaml").read_text())["spec"]["jobTemplate"]["spec"]["template"]
    (container,) = cron["spec"]["containers"]
    for words in (shlex.split(unit["Service"]["ExecStart"]), container["command"]):
        assert Path(words[0]).name == "tellapart"
        command = typer.main.get_command(app).commands[words[1]].commands[words[2]]
        context = command.make_context("run", [*words[3:], "--store", "requests.db"])
        assert (context.params["name"], context.params["if_needed"]) == ("pets", True)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert context.params["out"].is_relative_to(mounts["runs"]), "on the volume, or photos are lost with the pod"
    timer = configparser.ConfigParser()
    timer.read(DEPLOY / "tellapart-retrain.timer")
    assert timer["Timer"]["Persistent"] == "true"
