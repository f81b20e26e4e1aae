"""Which benchmarks there are, and what each says of itself, read from their text: nothing heavy is imported.

A module of this folder is a benchmark if it declares, as literals at its top level,

    FIGURES: Final = ("step/seconds/*", "step/share_of_floor/*")    what it tells; `*` for any variant

and, where it applies,

    LONG: Final = True        it runs only when asked for (`--all` or `--only`)
    ARGUMENTS: Final = (...)  what it cannot be run without; such a one is only listed
    DURATION: Final = "..."   roughly how long it takes, as measured on some machine that is named
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).resolve().parent
_DECLARED: Final = ("FIGURES", "LONG", "ARGUMENTS", "DURATION")


@dataclass(frozen=True)
class Benchmark:
    """A module that can be run as `python -m benchmarks.NAME`."""

    name: str
    says: str
    """First line of its docstring."""
    figures: tuple[str, ...]
    long: bool = False
    arguments: tuple[str, ...] = ()
    duration: str = ""
    quick: bool = True
    """Whether it takes --quick and --out, as those do that tell their figures in the common shape."""

    def gives(self, figure: str) -> bool:
        """Whether a figure, or a target's pattern of figures, is one that it tells."""
        return any(fnmatchcase(figure, pattern) for pattern in self.figures)


def benchmarks(folder: Path = FOLDER) -> dict[str, Benchmark]:
    """All of them by name, in the order of their names."""
    found = (_read(file) for file in sorted(folder.glob("*.py")))
    return {one.name: one for one in found if one is not None}


def _read(file: Path) -> Benchmark | None:
    tree = ast.parse(file.read_text(), str(file))
    declared: dict[str, Any] = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and target.id in _DECLARED:
                declared[target.id] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
    if "FIGURES" not in declared:
        return None
    figures = tuple(declared["FIGURES"])
    return Benchmark(
        name=file.stem,
        says=(ast.get_docstring(tree) or "").partition("\n")[0],
        figures=figures,
        long=declared.get("LONG", False),
        arguments=tuple(declared.get("ARGUMENTS", ())),
        duration=declared.get("DURATION", ""),
        quick=bool(figures),
    )
