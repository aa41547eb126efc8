# SPDX-License-Identifier: Apache-2.0
"""Products that one launch computes together in a step of one token.

A small wide product behind a large INT4 one, of the same normed token (the gates of a gated-delta layer behind its
projections), is a launch that takes longer to start than to compute. The kernels compute it within the large one's
launch, where shapes and GPU allow: that is the kernel library's word.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import replace

from orinkit.engines.kernels import KernelLibrary
from orinkit.engines.launches import Launch

LARGE, SMALL = "int4_gemm", "linear"


def joined(library: KernelLibrary, launches: Sequence[Launch]) -> Iterator[Launch]:
    """The launches of a step of one token, given one for each node in order: small products behind large ones that
    compute them too are left out.
    """
    rest = iter(launches)
    launch = next(rest, None)
    while launch is not None:
        behind = next(rest, None)
        if behind is not None and _takes(library, launch, behind):
            yield replace(launch, name=f"{launch.name} and {behind.name}", holds=(behind.arguments,))
            behind = next(rest, None)
        else:
            yield launch
        launch = behind


def _takes(library: KernelLibrary, large: Launch, small: Launch) -> bool:
    """Whether the launch `large` can compute `small` too; then its struct says so."""
    if (large.launcher, small.launcher) != (LARGE, SMALL):
        return False
    large.arguments.beside = ctypes.addressof(small.arguments)
    if library.query(f"{LARGE}_takes_beside", large.arguments):
        return True
    large.arguments.beside = None
    return False
