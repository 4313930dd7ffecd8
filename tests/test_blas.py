"""Matrix products on one thread: for as long as anybody wants it."""

from __future__ import annotations

import numpy  # noqa: F401  brings the library that is asked about
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from tellapart.blas import one_blas_thread


def threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.skipif(not threads(), reason="NumPy has no OpenBLAS or MKL here: NOTHING IS TESTED")
def test_the_last_caller_puts_back_what_the_first_one_found():
    with threadpool_limits(limits=2, user_api="blas"):
        first, second = one_blas_thread(), one_blas_thread()
        with first:
            assert threads() == {1}
            second.__enter__()
        assert threads() == {1}
        second.__exit__(None, None, None)
        assert threads() == {2}
