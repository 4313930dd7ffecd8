"""One seed becomes many named, independent random generators. Knows nothing about what they are for."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return the generator that belongs to `seed` and `names`.

    The same arguments give the same stream on every machine, in any order of calls and from any
    thread; different names give independent streams. Philox is counter based (Salmon et al. 2011,
    "Parallel random numbers: as easy as 1, 2, 3").

    Args:
        seed: the run's seed, any integer.
        *names: what the numbers are for, such as ``("augment", epoch, index)``.

    Example:
        >>> generator(0, "order", 3).integers(10) == generator(0, "order", 3).integers(10)
        np.True_
    """
    return np.random.Generator(np.random.Philox(key=derived_seed(seed, *names, bits=128)))


def derived_seed(seed: int, *names: str | int, bits: int = 31) -> int:
    """Return a non-negative integer of at most `bits` bits that belongs to `seed` and `names`."""
    text = "\x1f".join([str(seed), *map(str, names)])
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
    return int.from_bytes(digest, "big") >> (128 - bits)


def uniform_from_content(seed: int, content: str) -> float:
    """Return a number in [0, 1) that depends on `seed` and `content` alone."""
    return derived_seed(seed, "content", content, bits=53) / 2.0**53
