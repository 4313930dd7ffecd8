"""The command about this machine, doctor, and where this user keeps decoded pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import typer


def cache_of_user() -> Path:
    """Return the folder for decoded pictures: TELLAPART_CACHE, or the user's cache folder."""
    from tellapart.data.cache import default_cache

    return default_cache()


def _layers(backend: str, is_accelerated: bool) -> str:
    """Say what trains."""
    if backend == "tensorflow":
        return "plain Keras layers" if is_accelerated else "fused TensorFlow kernels"
    if backend == "jax" and is_accelerated:
        return "fused blocks, compiled by XLA; photos lie on the device, and an epoch is one call"
    return "fused blocks, compiled by XLA: on a processor TensorFlow is about five times as fast"


def doctor() -> None:
    """Show what this machine would train with.

    Hardware, libraries, precision, cache.

    Example: tellapart doctor
    """
    from rich.table import Table

    from tellapart.cli.show import console, escaped, import_keras
    from tellapart.data.cache import picture_store

    import_keras()
    from tellapart.training.environment import environment

    facts, cache = environment(), cache_of_user()
    used = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) if cache.exists() else 0
    free = shutil.disk_usage(cache if cache.exists() else cache.absolute().anchor).free
    bfloat16 = {"avx512_bf16", "amx_bf16"} & set(facts["cpu_features"]) or facts["accelerators"]
    rows = {
        "processor": f"{facts['processor']}, {facts['cpu_count']} cores",
        "features": ", ".join(facts["cpu_features"]) or "none that matter",
        "memory": f"{facts['memory_mb']:,} MB",
        "GPU": "; ".join(facts["gpus"]) or "none that nvidia-smi knows",
        "accelerators": ", ".join(facts["accelerators"]) or "none",
        "backend": f"Keras on {facts['backend']}",
        "precision": "float32 or bfloat16, whichever a short measurement finds faster" if bfloat16 else "float32",
        "layers": _layers(facts["backend"], bool(facts["accelerators"])),
        "cache": f"{cache}: {used / 1e9:.2f} GB used, {free / 1e9:.0f} GB free "
        f"({picture_store(cache, 224).folder.name} holds 224-pixel pictures; delete it whenever you like)",
        "packages": ", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, escaped(value))
    console().print(table)
    if free < 1e9:
        typer.echo("Less than 1 GB is free for the cache: photos would be decoded at each use.", err=True)
