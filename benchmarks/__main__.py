"""Run the benchmarks one after the other and hold their figures against the targets.

    python -m benchmarks [--quick] [--only step,streams] [--all] [--out DIR] [--strict]
    python -m benchmarks --list | --from-results

Decisions: each benchmark is a process of its own and never two at once, since they measure the same cores.
Nothing is written unless `--out` names a folder: each then replaces its own lines of DIR/NAME.jsonl when it
is done. A benchmark that fails is named with its last line and the others still run. The exit code is 0,
1 if one failed or, with `--strict`, a target was missed, 2 of a mistaken command, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console

from benchmarks import catalogue, figures, verdicts
from benchmarks.catalogue import Benchmark
from benchmarks.figures import Figure

RESULTS: Final = catalogue.FOLDER / "results"
_GRACE_SECONDS: Final = 10
"""What a benchmark gets to end its own processes after an interrupt."""

Command = Callable[[Benchmark], list[str]]


@dataclass
class Outcome:
    """What one benchmark gave."""

    told: list[Figure] = field(default_factory=list)
    other_lines: int = 0
    """Printed in a shape of its own."""
    failure: str = ""


def run(command: Sequence[str]) -> Outcome:
    """Run one benchmark to its end. Its figures are kept as they come, even if it fails after them."""
    outcome = Outcome()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace"
        )
        assert process.stdout is not None
        last = ""
        try:
            for line in process.stdout:
                last = line.strip() or last
                figure = figures.parse(line)
                if figure is not None:
                    outcome.told.append(figure)
                elif line.startswith("{"):
                    outcome.other_lines += 1
            code = process.wait()
        except BaseException:
            _end(process)
            raise
        if code:
            errors.seek(0)
            said = [line.strip() for line in errors if line.strip()]
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            outcome.failure = f"{how}: {said[-1] if said else last or 'it said nothing'}"
    return outcome


def _end(process: subprocess.Popen[str]) -> None:
    for stop in (process.send_signal, None):
        if process.poll() is not None:
            return
        if stop is not None:
            stop(signal.SIGINT)
        else:
            process.kill()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def run_all(chosen: Sequence[Benchmark], command: Command, say: Callable[[str], None]) -> dict[str, Outcome]:
    """Run them in turn; what each gave, by name."""
    outcomes: dict[str, Outcome] = {}
    for place, benchmark in enumerate(chosen, start=1):
        say(f"{place} of {len(chosen)}: {benchmark.name}: {benchmark.says}")
        begun = time.monotonic()
        outcomes[benchmark.name] = outcome = run(command(benchmark))
        took = f"{time.monotonic() - begun:.0f} s"
        say(f"  failed after {took}, {outcome.failure}" if outcome.failure else f"  {took}")
    return outcomes


def choose(known: dict[str, Benchmark], only: str | None, everything: bool) -> list[Benchmark]:
    """Those named, or those that run by themselves; ValueError of a name that there is not."""
    if only is None:
        return [one for one in known.values() if not one.arguments and (everything or not one.long)]
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ValueError(f"--only {name}: there is no such benchmark; there are {', '.join(known)}")
        if known[name].arguments:
            given = " ".join(known[name].arguments)
            raise ValueError(f"--only {name}: it has to be told what: python -m benchmarks.{name} {given}")
    return [known[name] for name in dict.fromkeys(names)]


def listed(known: dict[str, Benchmark]) -> str:
    """What there is, how long each takes and when it runs."""
    lines = []
    for one in known.values():
        when = "by itself: " + " ".join(one.arguments) if one.arguments else "--all" if one.long else ""
        notes = "; ".join(note for note in (when, one.duration or "duration not recorded") if note)
        lines.append(f"{one.name}: {one.says} ({notes})")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small and few: to see that they work")
    parser.add_argument("--only", help="names with commas between them")
    parser.add_argument("--all", action="store_true", help="the long ones too")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and run none")
    parser.add_argument("--from-results", action="store_true", help="run none, show what is recorded")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder that --from-results reads")
    parser.add_argument("--out", type=Path, help="folder of the lines, replaced as each benchmark is done")
    parser.add_argument("--strict", action="store_true", help="exit code 1 where a target was missed")
    given = parser.parse_args(arguments)
    known = catalogue.benchmarks()
    try:
        chosen = choose(known, given.only, given.all or given.from_results)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.list:
        print(listed(known))
        return 0

    def command(benchmark: Benchmark) -> list[str]:
        line = [sys.executable, "-m", f"benchmarks.{benchmark.name}"]
        if benchmark.quick:
            line += ["--quick"] if given.quick else []
            line += ["--out", str(given.out / f"{benchmark.name}.jsonl")] if given.out else []
        return line

    names = {one.name: one for one in chosen}
    failed: dict[str, str] = {}
    if given.from_results:
        if not given.results.is_dir():
            print(f"error: --results {given.results}: there is no such folder", file=sys.stderr)
            return 2
        told, notes = verdicts.recorded(given.results)
        if given.only is not None:
            told = [figure for figure in told if any(one.gives(figure.figure) for one in chosen)]
    else:
        outcomes = run_all(chosen, command, lambda text: print(text, file=sys.stderr, flush=True))
        told = [figure for outcome in outcomes.values() for figure in outcome.told]
        notes = [
            note
            for name, outcome in outcomes.items()
            for note in verdicts.left_out(known[name], outcome.told, outcome.other_lines)
        ]
        failed = {name: outcome.failure for name, outcome in outcomes.items() if outcome.failure}
    found = verdicts.rows(told, names)
    # A file or a pipe has no width: rows are not folded there.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(verdicts.table(found))
    for note in notes:
        console.print(f"not in the table, {note}", markup=False, highlight=False)
    for name, failure in failed.items():
        console.print(f"failed, {name}: {failure}", markup=False, highlight=False)
    console.print(verdicts.summary(found), highlight=False)
    missed = any(row.verdict == "missed" for row in found)
    return 1 if failed or (given.strict and missed) else 0


def program(arguments: Sequence[str] | None = None) -> int:
    """`main`, ended by Ctrl-C or SIGTERM in one line, the benchmark in progress with it."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return main(arguments)
    except KeyboardInterrupt:
        print("\nstopped; the benchmark in progress has written nothing", file=sys.stderr)
        return 130


def _terminated(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(program())
