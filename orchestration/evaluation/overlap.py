"""Fingerprints of two datasets' pictures, made over the cluster, and what the datasets share.

Decisions: one task for each shard, which reads images row group by row group and sends back 136 bytes for
each; a split's fingerprints are kept under the data's fingerprint, so they are made once per dataset;
what is kept names no patient. Patients' keyed hashes are read on this machine, that column alone. Where no
Ray runs the same work is done here.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mpma.data.dataset import Dataset
from mpma.data.dataset_info import ShardInfo
from mpma.data.picture_signs import FINGERPRINT_VERSION, WORDS, Fingerprints, fingerprints
from mpma.data.rows import encoded_images
from mpma.data.shards import read_row_groups
from mpma.data.storage import Storage
from mpma.downstream.overlap import Contents, Overlap, compare, relations
from mpma.errors import JobError, UserError
from orchestration.defects import told, without_values

Progress = Callable[[int, int], None]
"""Told (images fingerprinted, images of all)."""

_RETRIES: Final = 2


def find_overlap(
    pretraining: Dataset | None,
    evaluation: Dataset,
    cache: Storage,
    judged_split: str,
    progress: Progress | None = None,
) -> Overlap:
    """What the splits of an evaluation share with the data of a pre-training.

    Args:
        pretraining: None where it cannot be opened any more: nothing is checked, and the result says so.
        evaluation: the labelled data.
        cache: folder of fingerprints; files that are missing or damaged are made.
        judged_split: `test` or `val`.
        progress: told how far it is, at once and after every shard; not called where all are kept already.

    Raises `UserError` naming a shard that is damaged, `JobError` where a task broke off.
    """
    if pretraining is None:
        return Overlap(judged_split, checked=False)
    same_data = pretraining.fingerprint == evaluation.fingerprint
    pairs = relations(judged_split)
    sides = [
        (pretraining, list(dict.fromkeys(theirs for _, theirs in pairs))),
        (evaluation, list(dict.fromkeys(ours for ours, _ in pairs))),
    ]
    kept: dict[tuple[str, str], Fingerprints] = {}
    if not same_data:
        wanted = [(dataset, split) for dataset, splits in sides for split in splits]
        kept = _fingerprints(wanted, cache, progress)
    known, labelled = [
        Contents(
            patients={split: _patients(dataset, split) for split in splits},
            pictures=None if same_data else {split: kept[dataset.fingerprint, split] for split in splits},
        )
        for dataset, splits in sides
    ]
    return compare(
        known,
        labelled,
        judged_split,
        same_data=same_data,
        same_key=pretraining.info.key_name == evaluation.info.key_name,
        threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )


def _patients(dataset: Dataset, split: str) -> NDArray[np.str_]:
    """Keyed hashes [n] in row order."""
    names: list[str] = []
    for shard in dataset.shards(split):
        groups = range(len(shard.row_group_rows))
        names += read_row_groups(dataset.storage, shard, groups, ["patient_id"])["patient_id"].to_pylist()
    return np.array(names, dtype=np.str_)


def _fingerprints(
    wanted: Sequence[tuple[Dataset, str]], cache: Storage, progress: Progress | None
) -> dict[tuple[str, str], Fingerprints]:
    found: dict[tuple[str, str], Fingerprints] = {}
    missing = []
    for dataset, split in wanted:
        one = _read(cache, dataset, split)
        if one is None:
            missing.append((dataset, split))
        else:
            found[dataset.fingerprint, split] = one
    total, done = sum(dataset.rows(split) for dataset, split in missing), 0
    if missing and progress is not None:
        progress(0, total)
    calls = [(dataset.storage, shard) for dataset, split in missing for shard in dataset.shards(split)]
    parts = _run(calls)
    cache.make_directory()
    # Parts come in the order of the calls, so a split is kept as soon as its last shard is there.
    for dataset, split in missing:
        table = np.zeros((dataset.rows(split), WORDS), dtype=np.uint64)
        first = 0
        for _ in dataset.shards(split):
            part = next(parts)
            table[first : first + len(part)] = part
            first, done = first + len(part), done + len(part)
            if progress is not None:
                progress(done, total)
        content = io.BytesIO()
        np.save(content, table, allow_pickle=False)
        cache.write(_name(dataset, split), content.getvalue())
        found[dataset.fingerprint, split] = table
    return found


def _name(dataset: Dataset, split: str) -> str:
    return f"{dataset.fingerprint}-{split}-{FINGERPRINT_VERSION}.npy"


def _read(cache: Storage, dataset: Dataset, split: str) -> Fingerprints | None:
    """What is kept of a split; None where it is not there, torn or of another shape."""
    try:
        found: Fingerprints = np.load(io.BytesIO(cache.read(_name(dataset, split))), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    sound = found.dtype == np.uint64 and found.shape == (dataset.rows(split), WORDS)
    return found if sound else None


def _run(calls: Sequence[tuple[Storage, ShardInfo]]) -> Iterator[Fingerprints]:
    """Fingerprints of each shard, in order."""
    # Only a program that uses Ray has imported it; asking costs nothing then, and a second otherwise.
    ray = sys.modules.get("ray")
    on_ray = ray is not None and ray.is_initialized()
    for found in _on_ray(calls) if on_ray else (_shard_fingerprints(*call) for call in calls):
        if isinstance(found, UserError):
            raise found
        yield found


def _on_ray(calls: Sequence[tuple[Storage, ShardInfo]]) -> Iterator[Fingerprints | UserError]:
    import ray

    task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_shard_fingerprints)
    # Hardly more wait than can run, so that little is left behind by an evaluation that is stopped.
    room = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    queue = iter(calls)
    pending = [task.remote(*call) for call in _first(queue, room)]
    try:
        while pending:
            found = ray.get(pending[0])
            del pending[0]
            pending += [task.remote(*call) for call in _first(queue, 1)]
            yield found
    except ray.exceptions.RayError as error:
        raise JobError(
            f"a task that fingerprints images broke off ({told(error)})",
            "run the same command again; Ray's logs say more",
        ) from None
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _first(queue: Iterator[tuple[Storage, ShardInfo]], count: int) -> Iterator[tuple[Storage, ShardInfo]]:
    for _, call in zip(range(count), queue, strict=False):
        yield call


@without_values
def _shard_fingerprints(storage: Storage, shard: ShardInfo) -> Fingerprints | UserError:
    """[rows, WORDS]; a mistake of the user is returned, since Ray would wrap what is raised."""
    try:
        parts = [
            fingerprints(encoded_images(read_row_groups(storage, shard, [group], ["image"])))
            for group in range(len(shard.row_group_rows))
        ]
    except UserError as error:
        return error
    return np.concatenate(parts) if parts else np.zeros((0, WORDS), dtype=np.uint64)
