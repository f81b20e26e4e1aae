"""Results of jobs in the run's own folder: outcomes, what could not be done, and examples if asked for.

Decisions: a result is one file, written whole; a job that the data do not allow is a result too (it would
end the same again), a job that broke is not, so the same command tries it again. Examples hold pixels and
text: they are made only where asked for and stand in files of their own, without pickle, mode 0600.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpma.data.storage import Storage
from mpma.downstream.contract import Example, Related
from mpma.metrics.outcomes import Outcomes

OUTCOMES = ".npz"
IMPOSSIBLE = ".impossible.json"
EXAMPLES = ".examples.npz"


@dataclass(frozen=True)
class ResultStore:
    """The folder of one evaluation's results."""

    folder: Storage

    def outcomes(self, name: str) -> Outcomes | None:
        """Stored outcomes; None where there are none or they are damaged."""
        try:
            return Outcomes.from_bytes(self.folder.read(name + OUTCOMES))
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None

    def impossible(self, name: str) -> str | None:
        """Why the data do not allow the job; None where that was not found."""
        try:
            reason = json.loads(self.folder.read(name + IMPOSSIBLE))["reason"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return reason if isinstance(reason, str) else None

    def examples(self, name: str) -> list[Example]:
        """Stored examples; none where none were asked for."""
        try:
            return unpacked_examples(self.folder.read(name + EXAMPLES))
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return []

    def keep(self, name: str, outcomes: Outcomes, examples: Sequence[Example] | None) -> None:
        """Write a result; the outcomes come last, so that what is there is whole."""
        self.folder.make_directory()
        if examples is not None:
            self.folder.write(name + EXAMPLES, packed_examples(examples))
        self.folder.write(name + OUTCOMES, outcomes.to_bytes())

    def keep_impossible(self, name: str, reason: str) -> None:
        """Write that the data do not allow the job."""
        self.folder.make_directory()
        self.folder.write(name + IMPOSSIBLE, json.dumps({"reason": reason}).encode())

    def forget_examples(self) -> None:
        """Remove all examples: they are kept only as long as they are asked for."""
        for name in self.folder.names():
            if name.endswith(EXAMPLES):
                self.folder.remove(name)


def packed_examples(examples: Sequence[Example]) -> bytes:
    """Examples as an npz file: pictures as arrays, all else as JSON."""
    arrays: dict[str, np.ndarray] = {}

    def kept(array: np.ndarray | None) -> str | None:
        if array is None:
            return None
        name = f"a{len(arrays)}"
        arrays[name] = np.asarray(array)
        return name

    listed = [
        {
            "title": example.title,
            "image": kept(example.image),
            "texts": dict(example.texts),
            "overlays": {name: kept(value) for name, value in example.overlays.items()},
            "related": [
                {"score": one.score, "hit": one.hit, "text": one.text, "image": kept(one.image)}
                for one in example.related
            ],
        }
        for example in examples
    ]
    content = io.BytesIO()
    header = np.frombuffer(json.dumps(listed).encode(), np.uint8)
    np.savez_compressed(content, header=header, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def unpacked_examples(content: bytes) -> list[Example]:
    """What `packed_examples` made."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:

        def array(name: str | None) -> Any:
            return None if name is None else file[name]

        return [
            Example(
                title=one["title"],
                image=array(one["image"]),
                texts=one["texts"],
                overlays={name: array(value) for name, value in one["overlays"].items()},
                related=[
                    Related(float(r["score"]), bool(r["hit"]), r["text"], array(r["image"]))
                    for r in one["related"]
                ],
            )
            for one in json.loads(file["header"].tobytes())
        ]
