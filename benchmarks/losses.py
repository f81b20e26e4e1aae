"""The losses of a short fixed run, to show that a change leaves the numbers alone.

    python -m benchmarks.losses > before.jsonl     (and after the change > after.jsonl; then diff)

One worker, one thread, fp32, synthetic pairs, 20 steps; every line is equal bit for bit on the same
machine and the same versions of the libraries.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from mpma.config import load_config
from mpma.training.metrics_log import METRICS_FILE

OVERRIDES = (
    "data.phantom={train_pairs: 256, val_pairs: 64, test_pairs: 0, size: 64, seed: 0}",
    "image={size: 64, width: 48, layers: 2, heads: 2}",
    "image={decoder_width: 32, decoder_layers: 1, decoder_heads: 2}",
    "report={max_tokens: 64, layers: 1, width: 48, heads: 2}",
    "memory={slots: 32, top_k: 8, heads: 2}",
    "fusion={layers: 1, heads: 2}",
    "training={steps: 20, batch_size: 32, log_every_steps: 1, threads_per_worker: 1, device: cpu}",
    "validation={every_steps: 20, gallery_size: 64, probe_train_pairs: 64, loss_pairs: 16}",
    "pictures.enabled=false",
)
LEFT_OUT = ("pairs_per_second", "data_wait_fraction")


def main() -> None:
    """Train and print the lines without what depends on the clock."""
    from orchestration.pretraining import Request, pretrain

    config = load_config(None, OVERRIDES).config
    with tempfile.TemporaryDirectory() as place:
        import contextlib
        import io

        with contextlib.redirect_stdout(io.StringIO()):
            pretrain(Request(config, "losses", place, None, None, False, time.time()))
        for line in (Path(place) / "losses" / METRICS_FILE).read_text().splitlines():
            print(json.dumps({key: value for key, value in json.loads(line).items() if key not in LEFT_OUT}))


if __name__ == "__main__":
    main()
