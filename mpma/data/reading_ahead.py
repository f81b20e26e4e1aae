"""The files of the next images are read while this one is decoded.

Decisions: one thread reads for one that decodes, two files ahead, so that a disk or a bucket is waited for
only where it is slower than the decoder, and memory holds two files more; one and not several, because a
source reads its archive in the order of its items, and a table or a zip that is shared out would be walked
through by each. What reading raises is raised where the image is asked for, and for that image alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, cast

from mpma.data.sources.contract import Item, Source

FILES_AHEAD: Final = 2


@contextmanager
def reading_ahead(source: Source, items: Sequence[Item]) -> Iterator[Source]:
    """The source, made faster for those items where they are asked for in order; some may be left out."""
    if len(items) < 2:
        yield source
        return
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        ahead = _Ahead(source, items, reader)
        try:
            yield cast(Source, ahead)
        finally:
            ahead.stop()


class _Ahead:
    def __init__(self, source: Source, items: Sequence[Item], reader: ThreadPoolExecutor) -> None:
        self._source, self._items, self._reader = source, items, reader
        self._place = {id(item): place for place, item in enumerate(items)}
        self._read: dict[int, Future[bytes]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def load_image(self, item: Item) -> bytes:
        """As the source's own."""
        place = self._place.get(id(item))
        if place is None:
            return self._source.load_image(item)
        for passed in [earlier for earlier in self._read if earlier < place]:
            self._read.pop(passed).cancel()
        for wanted in range(place, min(place + 1 + FILES_AHEAD, len(self._items))):
            if wanted not in self._read:
                self._read[wanted] = self._reader.submit(self._source.load_image, self._items[wanted])
        return self._read.pop(place).result()

    def stop(self) -> None:
        """Read no more."""
        for waiting in self._read.values():
            waiting.cancel()
