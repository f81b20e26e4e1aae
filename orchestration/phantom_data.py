"""The synthetic phantom as a dataset directory, made where it is needed first and kept.

Decisions: the directory's name is a hash of the configuration and of the generator's own code, so a
changed generator never meets old pairs; it is made by the ingest that every archive goes through, in
the Ray that is running or else in this process; a directory that is torn is made again, one that
another process is making is waited for.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import mpma.data.phantom
import mpma.data.sources.phantom
from mpma.data.config import PhantomConfig
from mpma.data.dataset import Dataset
from mpma.data.dataset_directory import DatasetExistsError, DirectoryBusyError
from mpma.data.dataset_info import MARKER
from mpma.data.hashing import PUBLIC_KEY
from mpma.data.ingest_plan import IngestOptions
from mpma.data.storage import open_storage
from mpma.errors import UserError
from orchestration.ingesting import Watcher, carry_out, prepare

DEFAULT_ROOT = "datasets"
CLUSTER_PAIRS = ".datasets"
"""Below the runs (or searches) of a cluster, whose names never begin with a dot."""

_POLL_SECONDS = 0.5


def phantom_name(config: PhantomConfig) -> str:
    """`phantom-` and 12 hex letters that stand for the configuration and the generator."""
    digest = hashlib.sha256(config.model_dump_json().encode())
    folder = Path(mpma.data.phantom.__file__).parent
    for file in (*sorted(folder.glob("*.py")), Path(mpma.data.sources.phantom.__file__)):
        digest.update(file.read_bytes())
    return f"phantom-{digest.hexdigest()[:12]}"


def ensure_phantom(
    config: PhantomConfig, root: str | os.PathLike[str] = DEFAULT_ROOT, watcher: Watcher | None = None
) -> str:
    """Path of the phantom dataset of this configuration below `root`, made first where it is not there."""
    from mpma.data.sources.phantom import PhantomSource

    # Through the storage: an address may end in settings, behind which a folder would be one of them.
    path = open_storage(root).child(phantom_name(config)).location
    source = PhantomSource(**config.model_dump())
    while True:
        try:
            return Dataset.open(path).path
        except UserError:
            torn = open_storage(path).exists(MARKER)
        try:
            # The generator's images are stored as they come.
            options = IngestOptions(short_side_pixels=None)
            prepared = prepare(
                source,
                path,
                key=PUBLIC_KEY,
                options=options,
                synthetic=True,
                overwrite=torn,
                watcher=watcher,
            )
            return carry_out(prepared, watcher).dataset.path
        except DatasetExistsError:
            continue
        except DirectoryBusyError:
            time.sleep(_POLL_SECONDS)
