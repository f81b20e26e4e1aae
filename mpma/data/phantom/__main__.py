"""Speed and sight of the phantom: `python -m mpma.data.phantom --pairs 2000` prints one JSON line.

Every pair is generated, rendered and encoded (image and both masks) in this one process. With
`--sheet FILE` the first pairs are also written as one picture.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from PIL import Image

from mpma.data.phantom.generate import generate_pair, phantom_rows


def main() -> None:
    """Parse the command line, time the pairs, print the figures."""
    parser = argparse.ArgumentParser(prog="python -m mpma.data.phantom", description=__doc__)
    parser.add_argument("--pairs", type=int, default=2000, help="pairs to generate")
    parser.add_argument("--size", type=int, default=128, help="height and width, pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the phantom")
    parser.add_argument("--sheet", metavar="FILE", help="also write the first 12 pairs as one picture")
    options = parser.parse_args()
    if options.pairs < 1 or options.size < 64:
        parser.error("--pairs must be at least 1 and --size at least 64")
    phantom_rows(0, 2, options.seed, options.size)
    start, image_bytes, row_bytes = time.perf_counter(), 0, 0
    for first in range(0, options.pairs, 100):
        table = phantom_rows(first, min(100, options.pairs - first), options.seed, options.size)
        image_bytes += sum(len(image.as_py()) for image in table.column("image"))
        row_bytes += table.nbytes
    seconds = time.perf_counter() - start
    figures = {
        "benchmark": "phantom",
        "pairs": options.pairs,
        "size": options.size,
        "seconds": round(seconds, 3),
        "pairs_per_minute": round(options.pairs / seconds * 60),
        "image_bytes_per_pair": round(image_bytes / options.pairs),
        "bytes_per_pair": round(row_bytes / options.pairs),
        "processes": 1,
    }
    print(json.dumps(figures))
    if options.sheet:
        films = [generate_pair(index, options.seed, options.size).grey for index in range(12)]
        rows = [np.concatenate(films[start : start + 6], axis=1) for start in (0, 6)]
        Image.fromarray(np.concatenate(rows)).save(options.sheet)


if __name__ == "__main__":
    main()
