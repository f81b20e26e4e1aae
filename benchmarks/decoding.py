"""Milliseconds that a picture takes from its file to its crop, by part and by library, in one thread.

    python -m benchmarks.decoding [--quick] [--out benchmarks/results/decoding.jsonl]

Ways of one part are measured in turns, picture by picture the same. The crops are those of the recipes:
256 -> 224, 512 -> 448 (vit_b16), 512 -> 224 and 1024 -> 224 pixels. simplejpeg comes with the extra
`peers`; it is measured as a candidate and not used.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks import figures
from mpma.data.decoding import Cropper, jpeg_size
from mpma.data.resizing import resized
from mpma.model.config import ImageConfig

FIGURES: Final = ("decoding/header/*", "decoding/decode/*", "decoding/resize/*", "decoding/crop/*")
DURATION: Final = "about 1 minute on 2 cores"

_CASES: Final = ((256, 224), (512, 448), (512, 224), (1024, 224))
_UNIT: Final = "ms"

Way = Callable[[Any], Any]


def pictures(side: int, count: int, quality: int = 90) -> list[bytes]:
    """Grey JPEG of smooth noise, about 0.4 bytes a pixel."""
    generator = np.random.default_rng(side)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (side // 8, side // 8)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
        noisy = smooth + generator.normal(0, 6, smooth.shape)
        out = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=quality)
        files.append(out.getvalue())
    return files


def decode_ways() -> dict[str, Way]:
    """Whole pictures to grey bytes."""
    operation = torch.ops.image.decode_jpeg

    def bytes_of(data: bytes) -> torch.Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    ways: dict[str, Way] = {
        "operation": lambda data: operation(bytes_of(data), ImageReadMode.GRAY.value, False),
        "torchvision": lambda data: decode_jpeg(bytes_of(data), ImageReadMode.GRAY),
        "pillow": lambda data: np.asarray(Image.open(io.BytesIO(data))),
    }
    try:
        import simplejpeg
    except ImportError:
        return ways
    return ways | {"simplejpeg": lambda data: simplejpeg.decode_jpeg(data, "GRAY")}


def _torch_resize(size: int) -> Way:
    def resize(part: np.ndarray) -> torch.Tensor:
        picture = torch.from_numpy(part)[None, None]
        return torch.nn.functional.interpolate(
            picture, (size, size), mode="bicubic", antialias=True, align_corners=False
        )

    return resize


def _pillow_resize(size: int) -> Way:
    return lambda part: Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC)


def milliseconds(ways: dict[str, Way], inputs: Sequence[Any], turns: int) -> dict[str, list[float]]:
    """Per way, the mean over the inputs, once a turn."""
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            for item in inputs:
                way(item)
            samples[name].append((time.perf_counter() - began) / len(inputs) * 1e3)
    return {name: values[1:] for name, values in samples.items()}


def main() -> None:
    options = figures.options(__doc__).parse_args()
    count, turns = (8, 2) if options.quick else (32, 7)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
    image = ImageConfig()
    with figures.report("decoding", options) as tell:
        for side, size in _CASES:
            files = pictures(side, count)
            case = {"side": side, "crop": size, "bytes": int(np.mean([len(data) for data in files]))}
            cropper = Cropper(
                size, image.crop_scale_min, image.crop_scale_max, image.crop_aspect_max, False, seed=0
            )
            whole_batch = partial(cropper, epoch=np.zeros(count, np.int64), position=np.arange(count))
            whole = [np.array(Image.open(io.BytesIO(data))) for data in files]
            parts = [picture[5 : 5 + int(side * 0.87), 3 : 3 + int(side * 0.9)] for picture in whole]
            asked = {
                "header": ({"ours": jpeg_size, "pillow": lambda d: Image.open(io.BytesIO(d)).size}, files),
                "decode": (decode_ways(), files),
                "resize": (
                    {
                        "ours": lambda part, size=size: resized(part, size),
                        "torch": _torch_resize(size),
                        "pillow": _pillow_resize(size),
                    },
                    parts,
                ),
            }
            for part, (ways, inputs) in asked.items():
                for name, samples in milliseconds(ways, inputs, turns).items():
                    tell(figures.of(f"decoding/{part}/{name}/{side}_to_{size}", samples, _UNIT, case))
            crops = milliseconds({"ours": partial(whole_batch, augment=True)}, [files], turns)["ours"]
            samples = [value / count for value in crops]
            tell(figures.of(f"decoding/crop/ours/{side}_to_{size}", samples, _UNIT, case))


if __name__ == "__main__":
    main()
