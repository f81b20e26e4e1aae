"""MPMA: pre-training of a medical vision-language model, and its use from a notebook.

`mpma.load(PLACE)` gives a `LoadedModel` from an exported folder or a run. Names are looked up when they are
used, so that `import mpma` brings no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpma.loading import LoadedModel, load

__all__ = ["LoadedModel", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mpma' has no attribute {name!r}")
    from mpma import loading

    return getattr(loading, name)
