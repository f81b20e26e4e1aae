"""Reading ahead changes when files are read, never what an item gets."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import pytest

from mpma.data.reading_ahead import FILES_AHEAD, reading_ahead
from mpma.data.sources.contract import Item, Source, UnreadableImage


class Files:
    """A source of numbers, which notes what it was asked for and by whom."""

    name = "files"

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.broken, self.asked, self.threads = broken, list[str](), set[int]()

    def load_image(self, item: Item) -> bytes:
        self.asked.append(item.pair_id)
        self.threads.add(threading.get_ident())
        if item.pair_id in self.broken:
            raise UnreadableImage("too_large", item.pair_id)
        return item.pair_id.encode()


def items(count: int) -> list[Item]:
    return [Item(str(number), "p", "s", "") for number in range(count)]


def source(files: Files) -> Source:
    return cast(Source, cast(Any, files))


def test_every_item_gets_its_own_file_in_order_and_each_is_read_once() -> None:
    files, listed = Files(), items(20)
    with reading_ahead(source(files), listed) as ahead:
        assert ahead.name == "files"
        assert [ahead.load_image(item) for item in listed] == [item.pair_id.encode() for item in listed]
    assert files.asked == [item.pair_id for item in listed]
    assert len(files.threads) == 1
    assert threading.get_ident() not in files.threads


def test_what_reading_raises_is_raised_for_its_item_alone() -> None:
    listed = items(6)
    with reading_ahead(source(Files(("2", "3"))), listed) as ahead:
        for item in listed:
            if item.pair_id in ("2", "3"):
                with pytest.raises(UnreadableImage, match=item.pair_id):
                    ahead.load_image(item)
            else:
                assert ahead.load_image(item) == item.pair_id.encode()


def test_items_may_be_left_out_and_others_asked_for() -> None:
    files, listed = Files(), items(30)
    with reading_ahead(source(files), listed) as ahead:
        assert [ahead.load_image(item) for item in listed[::7]] == [b"0", b"7", b"14", b"21", b"28"]
        assert ahead.load_image(Item("elsewhere", "p", "s", "")) == b"elsewhere"
    assert len(files.asked) <= 5 * (1 + FILES_AHEAD) + 1


def test_no_more_files_are_held_than_stated() -> None:
    files, listed = Files(), items(50)
    with reading_ahead(source(files), listed) as ahead:
        ahead.load_image(listed[0])
        end = time.monotonic() + 30
        while len(files.asked) < 1 + FILES_AHEAD:
            assert time.monotonic() < end
            time.sleep(0.001)
        time.sleep(0.05)
        assert len(files.asked) == 1 + FILES_AHEAD
