"""`ingest --plan`: how many pairs, bytes and hours an ingest would take, before any of it is done.

Decisions: counts come from the tables alone, as with `--check`; what an image costs is measured on the
archive itself, on a few dozen of its images that are read, decoded, shrunk and encoded here and thrown
away, because a constant from elsewhere would be an invention. The sample is one image from each of as
many equal stretches of the listing, drawn by a hash of the plan, so the same plan samples the same images.
Every figure comes with what it rests on; where no image can be read, bytes and hours are unknown and said
to be. Hours assume that CPUs are as fast as this one and that reading keeps up with them; sending to a
store, the tokeniser and the figures of the marker come on top.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from mpma.data.dataset_writing import LoadedPair, Row
from mpma.data.ingest_plan import IngestOptions, IngestPlan
from mpma.data.pair_marks import pair_mark
from mpma.data.pair_rows import PartMaker
from mpma.data.quality import check_item
from mpma.data.shards import encoded_length, shard_schema
from mpma.data.sources.contract import Item, Rejection
from mpma.data.statistics import PairStatistics, grey_histogram
from mpma.data.storage import open_storage

SAMPLE_IMAGES: Final = 32
SAMPLE_SECONDS: Final = 20.0
"""No further image is begun after this long."""

_RESAMPLES: Final = 2000
_Z: Final = 1.959963985

Range = tuple[float, float, float]
"""Estimate, and the two ends of its 95 % interval."""


@dataclass
class Measurement:
    """What the sampled images came to."""

    seconds: list[float] = field(default_factory=list)
    """Of each image, refused ones too; its share of writing the shard included."""
    pair_bytes: list[float] = field(default_factory=list)
    """Of each pair that is kept, as it lies in a shard."""
    shard_bytes: float = 0.0
    """Of a shard without any pair."""
    refused: Counter[str] = field(default_factory=Counter)
    """Refused when they were read, by reason."""

    @property
    def images(self) -> int:
        """Images that were tried."""
        return len(self.seconds)


Sampled = tuple[Item, Item]
"""An item, and the one that an ingest loads before it (itself where there is none)."""


def sample_items(plan: IngestPlan, options: IngestOptions, images: int = SAMPLE_IMAGES) -> list[Sampled]:
    """Items that pass the checks of the table, one from each of `images` equal stretches of the plan.

    Which one of a stretch is decided by a hash of the plan's identity and the item's position.
    """
    total = sum(part.candidates for part in plan.parts)
    best: dict[int, tuple[bytes, Sampled]] = {}
    position = 0
    for part in plan.parts:
        before: Item | None = None
        for item in part.items():
            stretch = position * images // total
            rank = hashlib.blake2b(f"{plan.identity} {position}".encode(), digest_size=8).digest()
            if (stretch not in best or rank < best[stretch][0]) and check_item(item, options.quality) is None:
                best[stretch] = (rank, (item, before or item))
            before = item
            position += 1
    return [sampled for _, (_, sampled) in sorted(best.items())]


def measure(
    maker: PartMaker, items: Iterable[Sampled], clock: Callable[[], float] = time.perf_counter
) -> Measurement:
    """Make rows of the items as an ingest would, in this process, and throw them away."""
    found, rows, statistics, begun = Measurement(), list[Mapping[str, Any]](), PairStatistics(), clock()
    for item, before in items:
        if found.seconds and clock() - begun > SAMPLE_SECONDS:
            break
        # Not timed: what is loaded at the first use, and the way to a row in the middle of a table, which an
        # ingest goes once for all rows before it.
        next(iter(maker.rows([before])))
        start = clock()
        entry: Row | Rejection = next(iter(maker.rows([item])))
        if isinstance(entry, Rejection):
            found.refused[entry.reason] += 1
        else:
            row, pixels, original_size = LoadedPair(*entry)
            statistics.add(row, grey_histogram(pixels), original_size)
            pair_mark(row, pixels)
            rows.append(row)
        found.seconds.append(clock() - start)
    if rows:
        start = clock()
        length = encoded_length(rows, shard_schema(maker.extra_schema()))
        written = (clock() - start) / found.images
        found.seconds = [seconds + written for seconds in found.seconds]
        binary = [sum(len(value) for value in row.values() if isinstance(value, bytes)) for row in rows]
        found.shard_bytes = encoded_length([], shard_schema(maker.extra_schema()))
        rest = (length - found.shard_bytes - sum(binary)) / len(rows)
        found.pair_bytes = [size + rest for size in binary]
    return found


def forecast(
    kept: int, shards: int, measured: Measurement, listing_seconds: float, cpus: Sequence[int], out: str
) -> dict[str, Any]:
    """What the ingest would come to, as plain values; None where it is not known.

    Args:
        kept: candidates that the tables keep.
        shards: files that they are planned for.
        measured: what a sample of them came to.
        listing_seconds: what reading the tables took.
        cpus: numbers of CPUs to give hours for.
        out: where the dataset would stand; empty where it is not known.
    """
    every = measured.images >= kept
    share = share_range(measured.refused.total(), measured.images, every) if measured.images else None
    readable = bool(measured.pair_bytes)
    seconds = mean_range(measured.seconds, every) if readable else None
    stored = mean_range(measured.pair_bytes, every) if readable else None
    pairs = None if share is None else (kept * (1 - share[0]), kept * (1 - share[2]), kept * (1 - share[1]))
    total = None
    if pairs is not None and stored is not None:
        bare = shards * measured.shard_bytes
        total = tuple(bare + count * size for count, size in zip(pairs, stored, strict=True))
    hours = None
    if seconds is not None:
        hours = {
            str(number): [(listing_seconds + kept * value / number) / 3600 for value in seconds]
            for number in cpus
        }
    free = free_bytes(out) if out else None
    needed = None if total is None else math.ceil(total[2])
    return {
        "measured": {
            "images": measured.images,
            "seconds": sum(measured.seconds),
            "refused": dict(sorted(measured.refused.items())),
            "refused_share": _list(share),
            "seconds_per_image": _list(seconds),
            "bytes_per_pair": _list(stored),
            "listing_seconds": listing_seconds,
        },
        "forecast": {
            "pairs": None if pairs is None else [round(value) for value in pairs],
            "bytes": None if total is None else [round(value) for value in total],
            "hours": hours,
        },
        "disk": {
            "needed_bytes": needed,
            "free_bytes": free,
            "enough": None if needed is None or free is None else needed <= free,
        },
    }


def lines(values: Mapping[str, Any]) -> list[str]:
    """The forecast in words; intervals are of 95 %."""
    measured, found, disk = values["measured"], values["forecast"], values["disk"]
    refused = sum(measured["refused"].values())
    said = [
        f"measured here: the tables in {measured['listing_seconds']:.1f} s; {measured['images']} of the "
        f"{values['kept']} images that they keep, spread over the listing, in {measured['seconds']:.2f} s of "
        "one CPU; nothing was written"
    ]
    if refused:
        reasons = ", ".join(f"{count} {reason}" for reason, count in measured["refused"].items())
        said.append(f"of these {measured['images']} were refused when they were read: {reasons}")
    if measured["refused_share"] is not None:
        share = [100 * value for value in measured["refused_share"]]
        said.append(f"refused by their pixels: {share[0]:.1f} % ({share[1]:.1f} to {share[2]:.1f})")
        low, high = found["pairs"][1:]
        said.append(f"pairs: about {found['pairs'][0]} ({low} to {high})")
    if found["bytes"] is None:
        why = "no image of the sample could be read" if measured["images"] else "there is no image to read"
        said.append(f"bytes and hours: unknown, since {why}")
        return said
    each = [1000 * value for value in measured["seconds_per_image"]]
    pair = measured["bytes_per_pair"]
    said.append(f"an image: {each[0]:.1f} ms of one CPU ({each[1]:.1f} to {each[2]:.1f})")
    said.append(f"a stored pair: {_size(pair[0])} ({_size(pair[1])} to {_size(pair[2])})")
    total = found["bytes"]
    said.append(f"shards: about {_size(total[0])} ({_size(total[1])} to {_size(total[2])})")
    for number, hours in found["hours"].items():
        said.append(
            f"on {number} CPU{'s' * (number != '1')} like this one: about {_time(hours[0])} "
            f"({_time(hours[1])} to {_time(hours[2])}), the tokeniser not counted"
        )
    if disk["free_bytes"] is None:
        said.append("free disk: not known for this --out")
    elif disk["enough"]:
        said.append(f"free disk at --out: {_size(disk['free_bytes'])}, enough")
    else:
        said.append(
            f"free disk at --out: {_size(disk['free_bytes'])}, NOT ENOUGH for up to "
            f"{_size(disk['needed_bytes'])}"
        )
    return said


def mean_range(values: Sequence[float], every: bool = False) -> Range:
    """Mean of a sample and its percentile bootstrap interval, exact where `every` one was seen."""
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if every:
        return mean, mean, mean
    drawn = np.random.default_rng(0).integers(0, len(sample), (_RESAMPLES, len(sample)))
    low, high = np.quantile(sample[drawn].mean(axis=1), (0.025, 0.975))
    return mean, float(low), float(high)


def share_range(count: int, total: int, every: bool = False) -> Range:
    """A share and its score interval (E. B. Wilson, JASA 22, 1927), exact where `every` one was seen."""
    share = count / total
    if every:
        return share, share, share
    middle = (share + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    half = _Z / (1 + _Z**2 / total) * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    return share, max(0.0, middle - half), min(1.0, middle + half)


def free_bytes(out: str) -> int | None:
    """Free bytes where a local dataset would stand; None for a store."""
    storage = open_storage(out)
    if not storage.is_local:
        return None
    place = Path(storage.root)
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def cpus_to_show(wanted: int | None) -> list[int]:
    """The CPUs of this machine, and those that were asked for."""
    here = os.cpu_count() or 1
    return [here] if wanted in (None, here) else [here, wanted]


def _list(found: Range | None) -> list[float] | None:
    return None if found is None else list(found)


def _size(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"
