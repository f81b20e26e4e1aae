"""Who may write into a run: the worker, or group of workers, that was started last, and no other.

Decisions: a node that is cut off from the cluster goes on training for as long as nobody can tell it to
end, and may still reach the run's storage while its place has been taken. So the first worker of a group
lays down a claim in the run directory when it starts, and looks before every line and every checkpoint
whether the claim is still its own. A worker whose claim was taken over ends without another word. Between a
look and the write that follows it a moment remains in which both may write a checkpoint; they would write
the same numbers, and the marker comes last. On an object store, which has no locks, a worker outside a group
claims its run as well: nothing else keeps a second program, or one that was thought dead, from writing.
"""

from __future__ import annotations

import json
import secrets

from mpma.data.storage import Storage
from mpma.errors import JobError

CLAIM_FILE = "writer.json"


class SupersededError(JobError):
    """Another program or group of workers has taken over the run."""


class Claim:
    """The right of this process to write into a run."""

    def __init__(self, run: Storage) -> None:
        """Take over the run: whoever held it before is superseded from here on."""
        self._run = run
        self._token = secrets.token_hex(16)
        run.write(CLAIM_FILE, json.dumps({"claim": self._token}).encode())

    def require(self) -> None:
        """Raises `SupersededError` where the run was taken over since, or where that cannot be told."""
        try:
            held = json.loads(self._run.read(CLAIM_FILE)).get("claim")
        except (OSError, ValueError, AttributeError):
            held = None
        if held != self._token:
            raise SupersededError(
                f"{self._run.name}: another program or group of workers has taken over this run",
                "nothing is to be done: the other goes on from the last checkpoint",
            )
