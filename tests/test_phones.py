"""The two smallest apps, as far as a machine without their SDKs can look: they are whole, and the docs show them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
ANDROID, IOS = ROOT / "phones" / "android", ROOT / "phones" / "ios"
PAGE = (ROOT / "docs" / "phones.md").read_text()


def shown(language: str) -> str:
    (text,) = (each for each in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if "class Classifier" in each)
    return text


def test_the_classes_in_the_docs_are_those_of_the_apps():
    kotlin = next(ANDROID.rglob("Classifier.kt")).read_text()
    assert kotlin == f"package tellapart.example\n\n{shown('kotlin')}"
    assert (IOS / "Sources" / "Classifier.swift").read_text() == shown("swift")


def test_the_android_app_has_what_its_files_name():
    build, code = (ANDROID / "app" / "build.gradle.kts").read_text(), ANDROID / "app" / "src" / "main" / "kotlin"
    name = "{http://schemas.android.com/apk/res/android}name"
    (activity,) = ET.parse(ANDROID / "app" / "src" / "main" / "AndroidManifest.xml").iter("activity")
    namespace = re.search(r'namespace = "(.+)"', build)[1]
    folder = code.joinpath(*namespace.split("."))
    assert f"class {activity.get(name)[1:]} :" in (folder / f"{activity.get(name)[1:]}.kt").read_text()
    assert all(file.read_text().startswith(f"package {namespace}\n") for file in folder.glob("*.kt"))
    assert 'include(":app")' in (ANDROID / "settings.gradle.kts").read_text()
    plugins = (ANDROID / "build.gradle.kts").read_text()
    assert all(f'id("{plugin}") version' in plugins for plugin in re.findall(r'^    id\("(.+)"\)', build, re.MULTILINE))
    assert "app/src/main/assets/model.tflite" in PAGE
    assert 'noCompress += "tflite"' in build


def test_the_ios_app_has_what_its_files_name():
    (target,) = yaml.safe_load((IOS / "project.yml").read_text())["targets"].items()
    name, settings = target
    assert f"target '{name}' do" in (IOS / "Podfile").read_text()
    assert settings["deploymentTarget"] in (IOS / "Podfile").read_text()
    sources, model = settings["sources"]
    assert sum("@main" in file.read_text() for file in (IOS / sources).glob("*.swift")) == 1
    assert f"phones/ios/{model['path']}" in PAGE
    assert 'forResource: "model", ofType: "tflite"' in shown("swift")
