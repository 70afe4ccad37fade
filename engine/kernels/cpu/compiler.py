"""How the CPU's kernels are compiled, where their machine code is kept, and on how many threads they run."""

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from threading import get_ident
from typing import Any, TypeVar

import numba
import torch

Function = TypeVar("Function", bound=Callable[..., Any])

PARALLEL_PRODUCTS = 1 << 19
"""Multiplications and additions that take one core about 10 microseconds."""
_REASSOCIATION = {"contract", "reassoc", "nsz"}


def jit(function: Function) -> Function:
    """Compile at first use, without the interpreter's lock; the machine code is kept on disk where that is possible."""
    return _compiled(function, parallel=False)


def parallel_jit(function: Function) -> Function:
    """`jit` with `prange` spread over threads."""
    return _compiled(function, parallel=True)


def threads(products: int) -> int:
    """Threads worth using for so many products: as many as torch's, whose OpenMP pool numba's runs on as well.

    One for fewer than two threads can share in less time than they need to meet; a kernel then does better without a
    parallel region, whose entry alone waits for the pool.
    """
    if products < PARALLEL_PRODUCTS:
        return 1
    count = torch.get_num_threads()
    return count if count == 1 else _use(count, get_ident())


def run(kernel: tuple[Any, Any], products: int, *arguments: Any) -> None:
    """`kernel` is one part's work, with part and parts its first arguments, and all parts' over threads."""
    parts = threads(products)
    if parts == 1:
        kernel[0](0, 1, *arguments)
    else:
        kernel[1](parts, *arguments)


@lru_cache(maxsize=1)
def _use(count: int, thread: int) -> int:
    """Let `thread`, which calls this, use so many threads from now on, or as many as there are."""
    usable = min(count, int(numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    numba.set_num_threads(usable)
    if torch.get_num_threads() != count:  # numba set the number of the pool that both use when it started
        torch.set_num_threads(count)
    return usable


def _compiled(function: Function, **options: bool) -> Function:
    settings: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _REASSOCIATION} | options
    folder = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    numba.config.CACHE_DIR = folder or _cache_folder()  # type: ignore[attr-defined]
    try:
        return numba.njit(cache=True, **settings)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # the folder cannot be written
        return numba.njit(**settings)(function)  # type: ignore[no-any-return]
    finally:
        numba.config.CACHE_DIR = folder  # type: ignore[attr-defined]


@lru_cache
def _cache_folder() -> str:
    """Where machine code is kept: apart for each state of the kernels' sources.

    numba compiles a function anew when the file of that very function changed, but not when one that it calls did.
    """
    here, digest = Path(__file__).parent, sha256()
    for source in sorted(here.glob("*.py")):
        digest.update(source.read_bytes())
    return str(here / "__pycache__" / f"kernels-{digest.hexdigest()[:16]}")
