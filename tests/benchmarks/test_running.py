"""`python -m benchmarks`: what it runs, what it shows of it, and what a failure costs."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import __main__ as program
from benchmarks import catalogue, figures, verdicts
from benchmarks.catalogue import Benchmark
from benchmarks.targets import TARGETS, target_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"


def _benchmark(name: str, *told: str, long: bool = False) -> Benchmark:
    return Benchmark(name, f"What {name} measures.", told or (f"{name}/*",), long=long)


def _shown(rows: list[verdicts.Row]) -> str:
    out = io.StringIO()
    Console(width=160, file=out).print(verdicts.table(rows))
    return out.getvalue()


def test_every_target_is_of_a_figure_that_its_benchmark_declares() -> None:
    known = catalogue.benchmarks()
    assert [name for name in TARGETS if not any(one.gives(name) for one in known.values())] == []


def test_every_recorded_figure_is_one_that_its_benchmark_declares() -> None:
    known = catalogue.benchmarks()
    told, _ = verdicts.recorded(RESULTS)
    assert told
    owners = {pattern.partition("/")[0] for one in known.values() for pattern in one.figures}
    owned = [figure.figure for figure in told if figure.benchmark in owners]
    assert [name for name in owned if not any(one.gives(name) for one in known.values())] == []


def test_a_pattern_of_a_target_holds_for_every_variant_and_no_other_figure() -> None:
    help_target = target_of("start/help/pretrain")
    assert help_target is TARGETS["start/help/*"]
    assert help_target.met_by(0.5)
    assert not help_target.met_by(0.51)
    assert target_of("start/first_step/three_workers") is None


def test_the_table_says_met_missed_and_blank_with_the_reason() -> None:
    told = [
        figures.of("step/share_of_floor/fp32", [0.8, 0.74, 0.82], "ratio"),
        figures.of("step/share_of_floor/bf16", [0.3], "ratio"),
        figures.of("step/seconds/fp32", [2.0], "s"),
        figures.blank("gpu/share_of_floor/compiled", "ratio", "no GPU at hand"),
    ]
    benchmarks = {"step": _benchmark("step", "step/*", "gpu/share_of_floor/*")}
    rows = {row.figure: row for row in verdicts.rows(told, benchmarks)}
    assert rows["step/share_of_floor/fp32"].verdict == "met"
    assert rows["step/share_of_floor/fp32"].value == "0.8 (0.74 to 0.82)"
    assert rows["step/share_of_floor/bf16"].verdict == "missed"
    assert rows["step/seconds/fp32"].verdict == ""
    blank = rows["gpu/share_of_floor/compiled"]
    assert (blank.verdict, blank.reason, blank.target) == ("blank", "no GPU at hand", ">= 0.45")
    # Of a target that nothing answered there is a row too, of benchmarks that were not asked there is none.
    assert rows["step/over_public_mrm/fp32"].reason == "not measured"
    assert not any(name.startswith("streams/") for name in rows)
    shown = _shown(list(rows.values()))
    assert "blank: no GPU at hand" in shown
    assert verdicts.summary(list(rows.values())) == "1 met, 1 missed, 3 blank"


def test_a_quick_run_is_shown_and_not_judged() -> None:
    (row,) = verdicts.rows([figures.of("ray_loop/over_plain", [0.5], "ratio", {"quick": True})], {})
    assert (row.value, row.verdict, row.reason) == ("0.5", "", "quick run, not judged")


def test_the_interval_of_a_ratio_is_shown_and_not_read_as_a_style() -> None:
    row = verdicts.rows([figures.ratio("ray_loop/over_plain", [1.0, 1.0, 1.1], [1.0] * 3)], {})[0]
    assert "1 [1, 1.1]" in _shown([row])


def _scripts(texts: dict[str, str]) -> Callable[[Benchmark], list[str]]:
    return lambda benchmark: [sys.executable, "-c", texts[benchmark.name]]


LINE = 'print(\'{"figure": "%s/seconds", "value": 1.0, "unit": "s"}\', flush=True)\n'


def test_a_benchmark_that_crashes_is_named_with_its_last_line_and_the_others_keep_theirs() -> None:
    texts = {
        "first": LINE % "first",
        "second": LINE % "second" + "raise RuntimeError('the shards are gone')",
        "third": "print('a word on the way')\n" + LINE % "third",
        "fourth": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    }
    said: list[str] = []
    outcomes = program.run_all([_benchmark(name) for name in texts], _scripts(texts), said.append)
    told = {name: [figure.figure for figure in outcome.told] for name, outcome in outcomes.items()}
    assert told == {
        "first": ["first/seconds"],
        "second": ["second/seconds"],
        "third": ["third/seconds"],
        "fourth": [],
    }
    assert outcomes["second"].failure == "exit code 1: RuntimeError: the shards are gone"
    assert outcomes["fourth"].failure == "signal 9: it said nothing"
    assert not outcomes["first"].failure
    assert not outcomes["third"].failure
    assert "failed" in said[3]
    assert "the shards are gone" in said[3]


@pytest.mark.parametrize(
    ("value", "arguments", "code"),
    [("0.5", [], 0), ("0.5", ["--strict"], 1), ("0.99", ["--strict"], 0), ("crash", [], 1)],
)
def test_the_exit_code_tells_a_crash_and_with_strict_a_missed_target(
    value: str,
    arguments: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = f'{{"figure": "ray_loop/over_plain", "value": {value}, "unit": "ratio"}}'
    text = "raise SystemExit('no shards')" if value == "crash" else f"print({line!r})"
    benchmark = _benchmark("ray_loop", "ray_loop/over_plain")
    monkeypatch.setattr(catalogue, "benchmarks", lambda: {"ray_loop": benchmark})
    run = program.run
    monkeypatch.setattr(program, "run", lambda _: run([sys.executable, "-c", text]))
    assert program.main(arguments) == code
    shown = capsys.readouterr().out
    assert ("failed, ray_loop: exit code 1: no shards" in shown) is (value == "crash")
    assert "ray_loop/over_plain" in shown


def test_long_benchmarks_run_only_when_asked_for_and_those_that_need_words_never() -> None:
    known = catalogue.benchmarks()
    chosen = {one.name for one in program.choose(known, None, False)}
    assert chosen.isdisjoint({"search_quality", "planted", "ablation", "record"})
    everything = {one.name for one in program.choose(known, None, True)}
    assert {"search_quality", "planted", "ablation"} <= everything
    assert "record" not in everything
    assert [one.name for one in program.choose(known, "planted, ingest", False)] == ["planted", "ingest"]


def test_a_name_that_there_is_not_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--only", "steps"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "steps" in said
    assert "ingest" in said


def test_the_recorded_results_are_shown_without_a_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "run", lambda _: pytest.fail("a benchmark was run"))
    assert program.main(["--from-results"]) == 0
    shown = capsys.readouterr().out
    assert "ingest/over_bare_loop/jpeg/read" in shown
    assert "not in the table, labeller.jsonl" in shown


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_in_one_line_and_ends_the_benchmark_in_progress(
    how: signal.Signals, tmp_path: Path
) -> None:
    mark = tmp_path / "begun"
    sleeper = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys\nfrom benchmarks import __main__ as program\nrun = program.run\n"
        f"program.run = lambda command: run([sys.executable, '-c', {sleeper!r}])\n"
        "sys.exit(program.program(['--only', 'ingest']))"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    end = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(how)
    shown, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert shown == ""
    assert [line for line in said.splitlines() if line][1:] == [
        "stopped; the benchmark in progress has written nothing"
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
