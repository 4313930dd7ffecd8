"""A bundle as a static page that classifies photos on the device: no server, and no network after the first visit.

The page is the server's, with one module in place of another: what it would ask the server, it asks a LiteRT model that
runs in the browser. The runtime is LiteRT.js, from its npm package, which is fetched when a page is made.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.bundles.bundle import Artefact, Bundle, open_bundle
from tellapart.bundles.runtimes import RUNTIMES
from tellapart.data.cache import default_cache
from tellapart.errors import BundleError, InputError
from tellapart.files import write_json, write_text
from tellapart.records import plain
from tellapart.shipping.web_heat import LaidOpen, difference_of, int8_rows, lay_open

logger = logging.getLogger(__name__)

PACKAGES = {
    "@litertjs/core": ("2.5.3", "a97660833e9e7e1063c95e12016718881240b14f7438728a2f62785e912d30fd"),
    "@litertjs/wasm-utils": ("2.5.3", "ce2a1f8379c067be49e59752e5a7f40db6be09f6e497f0f11e59f17b515366a7"),
}
"""npm package → version and SHA-256 of its archive (Apache-2.0)."""

_BUILDS = ("litert_wasm_threaded_internal", "litert_wasm_internal", "litert_wasm_compat_internal")
"""Of the runtime: with threads, without, and for browsers without relaxed SIMD. A browser loads one."""
_OURS = Path(__file__).parent / "page"
# Files of another room: the page is one, and a copy would be a second one.
_SERVERS = Path(__file__).parents[1] / "serving" / "page"
_SHARED = (
    "answer.js", "build.js", "camera.js", "card.js", "feedback.js", "icon.svg", "index.html", "key.js", "page.css",
    "page.js", "picture.js", "theme.js", "words.js",
)  # fmt: skip
_IMPORTS = {"imports": {"@litertjs/core": "./litert/core.js", "@litertjs/wasm-utils": "./litert/wasm-utils.js"}}
_CHANGES = {
    "index.html": {
        '<script src="theme.js"></script>': (
            '<link rel="manifest" href="manifest.webmanifest">\n<meta name="theme-color" content="#0072b2">\n'
            "<style>#feedback { display: none }</style>\n"
            f'<script type="importmap">{json.dumps(_IMPORTS)}</script>\n<script src="theme.js"></script>'
        ),
        "They go to this server and nowhere else.": "They stay on this device: the network runs in this page.",
        'This page needs JavaScript; <a href="docs">the API</a> does not.': "This page needs JavaScript.",
        'aria-label="The server, live"': 'aria-label="What runs here"',
        '<a href="docs">API</a> <a id="metrics" href="metrics">Metrics</a>': '<a id="metrics" hidden></a>',
    },
    "answer.js": {"ms in the server": "ms on this device"},
}
"""What of the server's page is said otherwise where there is no server."""
_SAME_LOOK = 0.05
"""How far heat maps may be from the bundle's, as a share of the strongest heat: the mean over reference images."""
_NO_HEAT = "<style>.strength, #heat-text, #bars-hint { display: none }</style>\n"


def export_web(
    bundle: str | os.PathLike[str], to: str | os.PathLike[str], *, announce: Callable[[str], None] = logger.info
) -> Path:
    """Write a folder that any web server can serve, and that classifies photos in the browser.

    Where dense layers alone follow the network's global average, it draws heat maps as well (`web_heat`).

    Args:
        bundle: with a LiteRT model that was proved.
        to: the folder to make; one that was made by this function is replaced.
        announce: called with single lines.

    Returns:
        The folder.

    Raises:
        BundleError: the bundle is damaged, or has no LiteRT model that passed its proof.
        InputError: `to` holds something else, or the runtime's package cannot be had.
    """
    opened, target = open_bundle(bundle), Path(to)
    artefact = _litert(opened)
    packages = {name: _package(name, *known) for name, known in PACKAGES.items()}
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "litert").mkdir(parents=True)
    try:
        heat = _heat(opened, artefact, announce)
        _write_page(part, draws_heat=heat is not None)
        _write_runtime(part / "litert", packages)
        _write_packed(part / "model.bin", opened.path(artefact).read_bytes() if heat is None else heat.model)
        _write_model(part, opened, heat)
        _write_worker(part, opened.version)
        # An older page has these files and no others: whatever else lies there would be lost.
        if target.exists() and (foreign := sorted(_files(target) - _files(part))):
            raise InputError(
                f"{target} holds {foreign[0]}, which is not of a page made by tellapart. Name a new folder."
            )
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def _litert(bundle: Bundle) -> Artefact:
    for name, runtime in RUNTIMES.items():
        if runtime.format != "litert":
            continue
        for artefact in bundle.record.artefacts:
            proof = artefact.proofs.get(name)
            if runtime.runs(artefact) and proof is not None and proof.passed:
                return artefact
    raise BundleError(
        f"{bundle.folder} has no LiteRT model that was proved. Export the run with --format litert, "
        "and --precision int8 for a page that loads and answers faster."
    )


def _package(name: str, version: str, sha256: str) -> Path:
    """Return the unpacked npm package, fetched with npm where the cache folder does not have it."""
    flat = name.removeprefix("@").replace("/", "-")
    folder = default_cache() / "npm" / f"{flat}-{version}"
    if folder.is_dir():
        return folder / "package"
    if shutil.which("npm") is None:
        raise InputError(
            f"A page needs the npm package {name} {version}, and npm is not installed here. Install Node.js, or bring "
            f"the folder {folder} from a machine that has made one."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        command = ["npm", "pack", f"{name}@{version}", "--pack-destination", temporary]
        completed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=temporary)
        archive = Path(temporary) / f"{flat}-{version}.tgz"
        if completed.returncode or not archive.is_file():
            reason = (completed.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError(f"npm could not fetch {name} {version}: {reason}")
        # What runs in every visitor's browser is what was looked at when this was written.
        if hashlib.sha256(archive.read_bytes()).hexdigest() != sha256:
            raise InputError(f"What npm fetched as {name} {version} is not what it was. Expected SHA-256 {sha256}.")
        # Python before 3.11.4 knows no filters; what is unpacked has been looked at in any case.
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        with tarfile.open(archive) as content:
            content.extractall(Path(temporary) / "content", **safely)
        (Path(temporary) / "content").rename(folder)
    return folder / "package"


def _heat(bundle: Bundle, artefact: Artefact, announce: Callable[[str], None]) -> LaidOpen | None:
    """Return the model with its feature maps laid open; None where no heat map can be made, or not the bundle's."""
    try:
        if bundle.explain_path is None or not bundle.record.reference_images:
            raise InputError("the bundle has none, or no reference images to hold them against")
        opened = lay_open(bundle.path(artefact).read_bytes())
        difference = difference_of(opened, bundle)
        if not difference <= _SAME_LOOK:
            raise InputError(f"they differ from the bundle's by {difference:.0%} of the strongest heat on average")
    # A machine without LiteRT can make a page, and cannot prove its maps; what a runtime raises has no common base.
    except (InputError, ImportError, ValueError, RuntimeError) as error:
        announce(f"This page draws no heat maps: {error}.")
        return None
    announce(f"Heat maps: {difference:.1%} of the strongest heat from the bundle's, on average.")
    return opened


def _write_page(part: Path, *, draws_heat: bool) -> None:
    for name in _SHARED:
        text = (_SERVERS / name).read_text("utf-8")
        for before, after in _CHANGES.get(name, {}).items():
            assert text.count(before) == 1, f"{name} does not say {before!r} once"
            text = text.replace(before, after)
        if name == "index.html" and not draws_heat:
            text = text.replace("</head>", f"{_NO_HEAT}</head>")
        write_text(part / name, text)
    for name in ("ask.js", "heat.js", "live.js", "square.js"):
        shutil.copyfile(_OURS / name, part / name)


def _write_runtime(folder: Path, packages: dict[str, Path]) -> None:
    for name, package in packages.items():
        shutil.copyfile(package / "dist" / "index.js", folder / f"{name.split('/')[1]}.js")
    wasm = packages["@litertjs/core"] / "wasm"
    for build in _BUILDS:
        shutil.copyfile(wasm / f"{build}.js", folder / f"{build}.js")
        _write_packed(folder / f"{build}.bin", (wasm / f"{build}.wasm").read_bytes())
    write_text(folder / "LICENSE.txt", "LiteRT.js: Copyright Google LLC, Apache License 2.0.\n")


def _write_packed(path: Path, data: bytes) -> None:
    """Write what the page unpacks: few servers pack such files on the way, and they are most of what is loaded."""
    path.write_bytes(gzip.compress(data, 9, mtime=0))


def _write_model(part: Path, bundle: Bundle, heat: LaidOpen | None) -> None:
    """Write what the page says of the model, what tells photos of no known class, and what heat maps take."""
    record, detector = bundle.record, bundle.detector
    about: dict[str, Any] = {
        "name": record.name, "version": bundle.version, "classes": record.classes, "image_px": record.image_px,
        "runtime": "LiteRT.js", "coverage": record.coverage, "threshold": record.threshold, "metrics": record.metrics,
        "quality_range": record.quality_range, "card": (bundle.folder / "card.md").read_text("utf-8"), "unknown": None,
        "heat": None,
    }  # fmt: skip
    if detector is not None:
        about["unknown"] = {"threshold": detector.threshold, "refused": detector.refused}
        # Their length does not matter for cosines, so that a byte for each value is enough.
        rows, _ = int8_rows(np.asarray(detector.references, np.float32))
        _write_packed(part / "unknown.bin", rows.tobytes())
    if heat is not None:
        layers = [
            {
                "outputs": len(layer.rows), "inputs": layer.rows.shape[1], "scales": layer.scales.tolist(),
                "bias": layer.bias.tolist(), "lowest": plain(layer.lowest), "highest": plain(layer.highest),
            }
            for layer in heat.layers
        ]  # fmt: skip
        height, width = heat.size
        offsets = heat.offsets.tolist() if heat.offsets.any() else None
        about["heat"] = {"height": height, "width": width, "offsets": offsets, "layers": layers}
        _write_packed(part / "heat.bin", b"".join(layer.rows.tobytes() for layer in heat.layers))
    write_json(part / "model.json", about)
    icon = {"src": "icon.svg", "sizes": "any", "type": "image/svg+xml", "purpose": "any"}
    manifest = {
        "name": f"{record.name} · Tellapart", "short_name": record.name[:12], "start_url": ".", "display": "standalone",
        "background_color": "#ffffff", "theme_color": "#0072b2", "icons": [icon],
    }  # fmt: skip
    write_json(part / "manifest.webmanifest", manifest)


def _write_worker(part: Path, version: str) -> None:
    """Write the service worker, which keeps all files but the runtime's builds, of which a browser takes one."""
    files = sorted(path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file())
    kept = [".", *(name for name in files if not any(build in name for build in _BUILDS))]
    text = (_OURS / "sw.js").read_text("utf-8")
    # Other contents, another name: the browser then fetches all of them anew.
    digest = hashlib.sha256()
    for name in files:
        digest.update((part / name).read_bytes())
    text = text.replace("VERSION", f"{version}-{digest.hexdigest()[:8]}").replace('["FILES"]', json.dumps(kept))
    write_text(part / "sw.js", text)
