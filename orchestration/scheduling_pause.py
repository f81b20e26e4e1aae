"""A pause in Ray Data's scheduling loop, which runs in a thread of the process that trains.

Where read tasks have blocks ready that nobody takes yet, the loop's wait for tasks returns at once, and it
goes round without rest: 0.9 CPU seconds per 1000 pairs were counted for it on two cores, as much as for
decoding them, and the threads that decode waited for the interpreter's lock meanwhile (450 pairs/s, 650
with the pause). A read task takes far longer than the pause.
"""

from __future__ import annotations

import time
from typing import Final

from ray.data._internal.execution.execution_callback import ExecutionCallback

_SECONDS: Final = 0.02


class SchedulingPause(ExecutionCallback):
    """One of `DataContext.custom_execution_callback_classes`, Ray Data's hooks into an execution."""

    def on_execution_step(self, executor: object) -> None:
        """Rest after each round of the loop."""
        time.sleep(_SECONDS)
