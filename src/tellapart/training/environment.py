"""What this machine has, and where a run came from. Knows nothing about data or networks."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

PACKAGES = (
    "tellapart", "keras", "tensorflow", "tensorflow-cpu", "jax", "jaxlib", "numpy", "numba", "scipy",
    "opencv-python-headless", "pandas", "scikit-learn", "pillow", "onnxruntime", "openvino",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Return packages, processor, memory and commit as plain values for JSON."""
    import keras

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
        "backend": keras.backend.backend(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        "cpu_features": cpu_features(),
        "memory_mb": memory_mb(),
        "accelerators": accelerators(),
        "gpus": gpus(),
        "commit": commit(),
    }


def packages() -> dict[str, str]:
    """Return the versions of the packages that can change a result."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def processor() -> str:
    """Return the processor's name as the system gives it."""
    return _cpu_info().get("model name", "") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Return the processor's features that decide how fast a network runs."""
    flags = _cpu_info().get("flags", "").split()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if name in flags]


def accelerators() -> list[str]:
    """Return the names of the GPUs that the Keras backend sees."""
    import keras

    with contextlib.suppress(Exception):  # a backend without devices is a machine without accelerators
        return [device for device in keras.distribution.list_devices() if not device.startswith("cpu")]
    return []


def accelerator_peak_memory_mb() -> float | None:
    """Return the most memory of the first accelerator that JAX has used, in MB (10^6 bytes); None: it is not known."""
    import keras

    if keras.backend.backend() != "jax" or not accelerators():
        return None
    from tellapart.training.on_device import peak_memory_mb as on_device

    return on_device()


def gpus() -> list[str]:
    """Return name, driver and memory of each NVIDIA GPU, as nvidia-smi gives them; none where it is not installed."""
    # A hanging driver must not hold up a run: hence the timeout.
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listing.splitlines() if line.strip()]


def memory_mb() -> int:
    """Return the machine's memory in MB (10^6 bytes)."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6


def peak_memory_mb() -> float:
    """Return the most memory this process has had in RAM so far, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss is in bytes on macOS, and in kilobytes elsewhere.
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def commit() -> str:
    """Return the commit of a checkout that tellapart runs from, with "+" when changed; "" elsewhere."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return ""
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def data_hash(frame: pd.DataFrame) -> str:
    """Return one SHA-256 for the photos, labels and splits of a manifest, whatever its folder."""
    # Sorted: the order of files in a folder differs between machines.
    # Records, bundles and registries hold the result: with another line the same photos would seem to be others.
    lines = sorted(f"{row.sha256}\t{row.label}\t{row.split}" for row in frame.itertuples())
    # Labels come from folder names, which on Linux need not be valid UTF-8: surrogates stand for such bytes.
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return result.stdout.strip()


@functools.cache
def _cpu_info() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    # A block for each processor; the first stands for all.
    first = text.split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
