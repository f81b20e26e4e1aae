"""Runs and searches in a bucket: a real server of the S3 protocol on loopback, whose requests are counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bucket_server import CREDENTIALS, bucket_server, settings_of
from overview_samples import SCORE, begin_run, begin_search

from mpma.data.storage import Storage, open_storage
from mpma.errors import UserError
from orchestration.overview.compare import compare
from orchestration.overview.difference import Difference
from orchestration.overview.entries import Entry, entries_of
from orchestration.overview.search_difference import SearchDifference

REQUEST = re.compile(r'"(?:GET|HEAD|PUT|POST|DELETE) /')


@dataclass(frozen=True)
class Bucket:
    """A bucket named `archive`, and what it was asked."""

    settings: str
    log: Path

    def at(self, place: str) -> Storage:
        return open_storage(f"s3://archive/{place}{self.settings}")

    def asked(self) -> int:
        """Requests so far; the server writes a line for each before it answers."""
        return len(REQUEST.findall(self.log.read_text()))

    def listed(self, place: str) -> tuple[dict[str, Entry], int]:
        """The entries of a place, and the requests that they took."""
        storage = self.at(place)
        before = self.asked()
        return {entry.name: entry for entry in entries_of(storage)}, self.asked() - before


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    log = tmp_path_factory.mktemp("server") / "requests.log"
    with pytest.MonkeyPatch.context() as patched, bucket_server(log) as place:
        for name, value in CREDENTIALS.items():
            patched.setenv(name, value)
        yield Bucket(settings_of(place), log)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def _upload(folder: Path, storage: Storage) -> None:
    for file in folder.rglob("*"):
        if file.is_file() and file.name != ".lock":
            storage.write(file.relative_to(folder).as_posix(), file.read_bytes())


def _runs(place: Path, count: int, lines: int = 0) -> Path:
    """Finished and stopped ones in turn, each with a checkpoint; more lines make a longer record."""
    for number in range(count):
        run = begin_run(place, f"run{number}")
        (run / "checkpoints" / "step_00000008").mkdir(parents=True)
        (run / "checkpoints" / "step_00000008" / "state.json").write_text("{}")
        with (run / "metrics.jsonl").open("a") as stream:
            stream.write('{"step": 9, "loss/total": 0.5}\n' * lines)
        if number % 2:
            (run / "finished.json").write_text("{}")
    return place


def test_a_bucket_lists_what_a_disk_lists(tmp_path: Path, bucket: Bucket) -> None:
    _runs(tmp_path / "all", 2)
    begin_search(tmp_path / "all" / "search")
    (tmp_path / "all" / "search" / "report.html").write_text("a page")
    _upload(tmp_path / "all", bucket.at("all"))
    found, _ = bucket.listed("all")
    assert list(found.values()) == list(entries_of(open_storage(tmp_path / "all")))
    assert [entry.state for entry in found.values()] == ["stopped", "finished", "finished"]
    assert found["search"].best == {SCORE: (0.5, 1)}
    assert found["search"].report == "search/report.html"
    own, _ = bucket.listed("all/run1")
    assert own == {"run1": found["run1"]}


def test_a_run_costs_few_requests_and_as_many_whatever_it_holds_and_whatever_is_beside_it(
    tmp_path: Path, bucket: Bucket
) -> None:
    asked = {}
    for count, lines in ((2, 0), (10, 0), (10, 5000)):
        place = f"{count}-{lines}"
        _upload(_runs(tmp_path / place, count, lines), bucket.at(place))
        found, asked[place] = bucket.listed(place)
        assert len(found) == count
    # One listing of all of them; of each a listing, and a head and a body of three files; of half of them the
    # names of their checkpoints.
    assert asked == {"2-0": 1 + 15, "10-0": 1 + 75, "10-5000": 1 + 75}


def test_files_beside_runs_and_a_place_where_nothing_is_cost_nothing_more(
    tmp_path: Path, bucket: Bucket
) -> None:
    _upload(_runs(tmp_path / "runs", 2), bucket.at("mixed"))
    for number in range(20):
        bucket.at("mixed").write(f"note{number}.txt", b"x")
    assert bucket.listed("mixed")[1] == 1 + 15
    found, asked = bucket.listed("nothing/there")
    assert found == {}
    assert asked <= 3


def test_runs_and_searches_in_a_bucket_are_compared_and_missing_ones_named(
    tmp_path: Path, bucket: Bucket
) -> None:
    begin_run(tmp_path / "runs", "first")
    begin_run(tmp_path / "runs", "second", learning_rate_per_256=0.001)
    begin_search(tmp_path / "runs" / "search")
    begin_search(tmp_path / "runs" / "wider", (0.6, 0.1))
    _upload(tmp_path / "runs", bucket.at("diff"))
    runs = compare(bucket.at("diff/first"), bucket.at("diff/second"))
    assert isinstance(runs, Difference)
    assert [row.what for row in runs.config] == ["training.learning_rate_per_256"]
    searches = compare(bucket.at("diff/search"), bucket.at("diff/wider"))
    assert isinstance(searches, SearchDifference)
    assert [(row.first, row.second) for row in searches.best] == [(0.5, 0.6)]
    with pytest.raises(UserError) as caught:
        compare(bucket.at("diff/first"), bucket.at("diff/secnd"))
    assert caught.value.message == "s3://archive/diff/secnd: no run or search there"
    assert caught.value.hint == "is s3://archive/diff/second meant?"
    with pytest.raises(UserError, match="only two of a kind are compared"):
        compare(bucket.at("diff/first"), bucket.at("diff/search"))
