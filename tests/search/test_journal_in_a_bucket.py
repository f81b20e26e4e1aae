"""A journal where nothing can be appended: whole after any kill, and not written anew for every line."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs as pafs
import pytest

from mpma.data.storage import Storage, WrittenFile, open_storage
from orchestration.search.journal import JOURNAL_FILE, TAIL_BYTES, Journal, read_events


def bucket(folder: Path) -> Storage:
    """An object store as the journal sees one: a filesystem that is not the local one."""
    folder.mkdir(exist_ok=True)
    return open_storage(folder.name, pafs.SubTreeFileSystem(str(folder.parent), pafs.LocalFileSystem()))


def suggest(journal: Journal, count: int, padding: int = 0) -> None:
    for _ in range(count):
        number = len(journal.state.trials)
        journal.append("suggest", trial=number, params={"a": number, "b": "x" * padding}, source="random")


def begun(storage: Storage) -> Journal:
    journal = Journal(storage)
    journal.append("begin", full_steps=9, first_target=1)
    return journal


def test_lines_stand_in_a_tail_until_the_journal_is_closed(tmp_path: Path) -> None:
    journal = begun(bucket(tmp_path / "s"))
    suggest(journal, 3)
    assert len(list((tmp_path / "s").iterdir())) == 2
    assert (tmp_path / "s" / JOURNAL_FILE).read_bytes().count(b"\n") == 1
    journal.close()
    assert [file.name for file in (tmp_path / "s").iterdir()] == [JOURNAL_FILE]
    local = open_storage(tmp_path / "s")
    assert [event["event"] for event in read_events(local)[1]] == ["begin", "suggest", "suggest", "suggest"]


@pytest.mark.parametrize("lines", [0, 1, 5, 40])
def test_a_journal_that_nobody_closed_is_continued_where_it_was(tmp_path: Path, lines: int) -> None:
    storage = bucket(tmp_path / "s")
    suggest(begun(storage), lines, padding=TAIL_BYTES // 8)
    again = Journal(storage)
    assert (len(again.state.trials), again.count) == (lines, lines + 1)
    suggest(again, 2)
    again.close()
    assert len(Journal(storage).state.trials) == lines + 2


def test_a_kill_between_joining_and_removing_the_tail_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = bucket(tmp_path / "s")
    journal = begun(storage)
    suggest(journal, 3)

    def killed(self: Storage, name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            journal.close()
    assert len(list((tmp_path / "s").iterdir())) == 2
    again = Journal(storage)
    assert again.count == 4
    suggest(again, 1)
    assert len(Journal(storage).state.trials) == 4


def test_a_torn_last_line_that_was_copied_into_the_bucket_is_cut_away(tmp_path: Path) -> None:
    storage = bucket(tmp_path / "s")
    journal = begun(storage)
    suggest(journal, 2)
    journal.close()
    with (tmp_path / "s" / JOURNAL_FILE).open("ab") as stream:
        stream.write(b'{"event":"rep')
    again = Journal(storage)
    suggest(again, 1)
    assert [event["event"] for event in read_events(storage)[1]] == ["begin"] + 3 * ["suggest"]


def test_a_line_does_not_cost_the_whole_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    really = Storage.write

    def counted(self: Storage, name: str, data: bytes) -> WrittenFile:
        nonlocal written
        written += len(data)
        return really(self, name, data)

    monkeypatch.setattr(Storage, "write", counted)
    lines = 4_000
    journal = begun(bucket(tmp_path / "s"))
    suggest(journal, lines)
    journal.close()
    length = (tmp_path / "s" / JOURNAL_FILE).stat().st_size
    assert length > 5 * TAIL_BYTES
    assert written < lines * (TAIL_BYTES / 2 + length / 100)
    assert written < 0.3 * lines * length / 2  # what the whole for every line would be
