"""Where the time of a CPU training step goes, and how far each part is from what the machine can do.

    python -m benchmarks.step_profile [--batch 8] [--threads 2] [--rows 10]

Profiles the fp32 step of `python -m benchmarks.step` and prints its largest costs as a Markdown table: a row
is a kind of operation at a place of the model, forward and backward together. What it would take at the
floor is the larger of its operations at the rate of matrix products and its bytes at the rate of a copy, both
measured beside it; bytes are those of the operations' inputs and of one output as large as the largest input,
which is right for elementwise work and leaves out what stays in the cache.

Backward operations are put down to the place whose forward operation made their node (autograd's sequence
numbers); those of functions written in Python (attention of short sequences) are not found so and stand in
rows of their own, "backward, unplaced". The profiler adds about 2 % to a step.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import figures
from benchmarks.step import Products, Step, build_step
from mpma.model import pretraining
from mpma.training.allocator import keep_freed_memory

FIGURES: Final = ()

_PLACE: Final = "place: "
_KINDS: Final = {
    "mm": "matrix products",
    "addmm": "matrix products",
    "bmm": "batched products",
    "gelu": "GELU",
    "gelu_backward": "GELU",
    "native_layer_norm": "LayerNorm",
    "native_layer_norm_backward": "LayerNorm",
    "topk": "top-k",
    "_softmax": "softmax",
    "_softmax_backward_data": "softmax",
    "_log_softmax": "log-softmax",
    "_log_softmax_backward_data": "log-softmax",
    "_fused_adamw_": "fused",
    "linalg_vector_norm": "norms",
    "embedding_dense_backward": "lookup",
}
_MOVING: Final = ("copy_", "fill_", "cat", "zero_", "scatter_", "scatter", "gather", "index_select")


@dataclass
class Cost:
    """What a kind of operation at a place took in one step."""

    seconds: float = 0.0
    operations: float = 0.0
    bytes: float = 0.0
    calls: float = 0.0


def labelled(owner: Any, attribute: str, place: str) -> None:
    """Let a method or function of `owner` run under the name of a place."""
    original: Callable[..., Any] = getattr(owner, attribute)

    @wraps(original)
    def named(*arguments: Any, **keywords: Any) -> Any:
        with record_function(_PLACE + place):
            return original(*arguments, **keywords)

    setattr(owner, attribute, named)


def name_places(step: Step) -> None:
    """Give the parts of the model their names."""
    model = step.model
    for owner, attribute, place in (
        (model.pixels, "forward", "pixels"),
        (model.pixels, "encoder_view", "bicubic view"),
        (model, "_hidden_target", "target patches"),
        (model.image_encoder, "forward", "image encoder"),
        (model.image_decoder, "forward", "image decoder"),
        (model.report_encoder, "embed", "embeddings"),
        (model.report_encoder, "encode", "text encoder"),
        (model.report_encoder, "negative_log_likelihood", "vocabulary loss"),
        (model.fusion, "forward", "fusion"),
        (model.fusion, "prepare", "fusion"),
        (pretraining, "averaged_words", "local alignment"),
        (pretraining, "words_to_patches_loss", "local alignment"),
        (pretraining, "global_alignment_loss", "global alignment"),
        (model.local_image, "forward", "local alignment"),
        (model.local_report, "forward", "local alignment"),
        (step.optimizer, "step", "AdamW"),
        (torch.nn.utils, "clip_grad_norm_", "clipping"),
    ):
        labelled(owner, attribute, place)
    if model.fusion.memory is not None:
        labelled(model.fusion.memory, "forward", "memory")


def costs_of(events: Iterable[Any], steps: int) -> dict[tuple[str, str], Cost]:
    """Per step and (place, kind), from the profiler's events; seconds are those of an event itself."""
    operators = [event for event in events if event.name.startswith("aten::")]
    place_of_node: dict[int, str] = {}
    for event in operators:
        if event.sequence_nr >= 0 and _backward_node(event) is None:
            place_of_node[event.sequence_nr] = _place(event)
    found: dict[tuple[str, str], Cost] = defaultdict(Cost)
    for event in operators:
        node = _backward_node(event)
        place = _place(event) if node is None else place_of_node.get(node, "backward, unplaced")
        name = event.name.removeprefix("aten::")
        kind = _KINDS.get(name, "copies and fills" if name in _MOVING else "elementwise and the rest")
        cost = found[place, kind]
        cost.seconds += event.self_cpu_time_total / 1e6 / steps
        if event.self_cpu_time_total > 0:
            cost.operations += _operations(name, event.input_shapes) / steps
            cost.bytes += _bytes(event.input_shapes) / steps
            cost.calls += 1 / steps
    return found


def _place(event: Any) -> str:
    while event is not None:
        if event.name.startswith(_PLACE):
            return str(event.name.removeprefix(_PLACE))
        event = event.cpu_parent
    return "the rest"


def _backward_node(event: Any) -> int | None:
    while event is not None:
        if event.name.startswith("autograd::engine::evaluate_function"):
            return int(event.sequence_nr)
        event = event.cpu_parent
    return None


def _operations(name: str, shapes: list[Any]) -> int:
    if name in ("mm", "bmm") and len(shapes) >= 2:
        return 2 * math.prod(shapes[0]) * shapes[1][-1]
    if name == "addmm":
        return 2 * math.prod(shapes[1]) * shapes[2][-1]
    return 0


def _bytes(shapes: list[Any]) -> int:
    elements = [math.prod(shape) for shape in shapes if shape and all(isinstance(n, int) for n in shape)]
    return 4 * (sum(elements) + max(elements, default=0))


def copied_bytes_per_second() -> float:
    """Bytes read and written per second by a copy that no cache holds."""
    source, target = torch.randn(2**26), torch.empty(2**26)
    target.copy_(source)
    begun = time.perf_counter()
    for _ in range(4):
        target.copy_(source)
    return 4 * 2 * source.nbytes / (time.perf_counter() - begun)


def table(costs: dict[tuple[str, str], Cost], flop_rate: float, byte_rate: float, rows: int) -> list[str]:
    """Lines of Markdown: the largest costs, all others in one row, and the whole."""
    lines = [
        "| place | operation | calls | seconds | share | GFLOP | at the floor, s | floor / measured |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    whole = sum(cost.seconds for cost in costs.values())
    ranked = sorted(costs.items(), key=lambda item: -item[1].seconds)

    def row(place: str, kind: str, parts: list[Cost]) -> str:
        seconds, operations = sum(p.seconds for p in parts), sum(p.operations for p in parts)
        calls = sum(p.calls for p in parts)
        floor = sum(
            p.operations / flop_rate if p.operations else min(p.seconds, p.bytes / byte_rate) for p in parts
        )
        return (
            f"| {place} | {kind} | {calls:.0f} | {seconds:.3f} | {seconds / whole:.1%} "
            f"| {operations / 1e9:.1f} | {floor:.3f} | {floor / max(seconds, 1e-9):.2f} |"
        )

    lines += [row(place, kind, [cost]) for (place, kind), cost in ranked[:rows]]
    rest = [cost for _, cost in ranked[rows:]]
    lines.append(row("all others", f"{len(rest)} kinds", rest))
    lines.append(row("whole step", "", [cost for _, cost in ranked]))
    return lines


def main() -> None:
    """Profile and print."""
    parser = figures.options(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--rows", type=int, default=10, help="rows of the table")
    arguments: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    step = build_step(arguments.batch, "fp32", torch.device("cpu"))
    name_places(step)
    steps = 1 if arguments.quick else 3
    products = Products.of(torch.float32, torch.device("cpu"), 2048)
    step()
    flop_rate = products.flop_per_second(10)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(steps):
            step()
    flop_rate = (flop_rate + products.flop_per_second(10)) / 2
    byte_rate = copied_bytes_per_second()
    costs = costs_of(profiler.events(), steps)
    # It takes lists of tensors, whose shapes are not recorded: four are read and three written.
    trained = sum(each.numel() for each in step.model.parameters() if each.requires_grad)
    costs["AdamW", "fused"].bytes = 7 * 4 * trained
    lines = table(costs, flop_rate, byte_rate, arguments.rows)
    rates = f"{flop_rate / 1e9:.0f} GFLOP/s, copies {byte_rate / 1e9:.0f} GB/s (read and written)"
    lines.append(f"\nbatch {arguments.batch}, {arguments.threads} threads, matrix products {rates}")
    print("\n".join(lines))
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
