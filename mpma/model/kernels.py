"""Whether a GPU's own kernels (the `*_kernels.py` of this folder) can be used for a tensor."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

_TRITON = find_spec("triton") is not None


def kernels_at_hand(states: Tensor) -> bool:
    """True for a tensor on a GPU where Triton, in which the kernels are written, is installed.

    What sizes a kernel fits is for its caller to know. Importing nothing, it can be asked inside a graph.
    """
    return _TRITON and states.is_cuda
