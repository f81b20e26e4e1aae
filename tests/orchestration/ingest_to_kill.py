"""An ingest in small parts, as a program that a test may kill: python ingest_to_kill.py ROOT OUT.

The same steps as the ingest program's; a line tells where it is.
"""

from __future__ import annotations

import sys

from mpma.data.hashing import PUBLIC_KEY
from mpma.data.ingest_plan import IngestOptions
from mpma.data.sources import build_source
from orchestration.cluster import connected
from orchestration.ingesting import Silent, carry_out, prepare

PAIRS_PER_SHARD = 64


class Told(Silent):
    """Prints each stage as it begins."""

    def planned(self, candidates: int) -> None:
        print("planned", flush=True)

    def finishing(self) -> None:
        print("finishing", flush=True)


def main(root: str, out: str) -> None:
    print("listing", flush=True)
    options = IngestOptions(pairs_per_shard=PAIRS_PER_SHARD, short_side_pixels=64, vocabulary_size=2_000)
    prepared = prepare(build_source("manifest", root), out, key=PUBLIC_KEY, options=options, watcher=Told())
    with connected(None, 2, dashboard=False):
        carry_out(prepared, Told())
    print("ended", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
