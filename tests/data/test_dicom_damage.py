"""Damaged and hostile DICOM files: pixels or a reason, bounded time and memory, and nothing said of them."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from samples_dicom import (
    compressed_by_gdcm,
    compressed_dicom,
    dicom_dataset,
    dicom_file,
    encoded_dicom,
    encoded_picture,
    lookup_table,
)
from source_samples import grey_pixels

from mpma.data import dicom_gdcm
from mpma.data.dicom import load_pydicom, with_prefix
from mpma.data.dicom_elements import PIXEL_DATA, looks_like_bare_dicom, walk_file
from mpma.data.dicom_gdcm import GdcmProcess
from mpma.data.dicom_gdcm_child import LENGTHS
from mpma.data.dicom_silence import quiet
from mpma.data.images import read_grey
from mpma.data.quality import REASONS
from mpma.data.sources.contract import UnreadableImage

GREY = grey_pixels()
DEEP = GREY.astype(np.uint16) * 16
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
LOSSLESS = (
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
)
MUTATIONS = 1200


def outcome(data: bytes) -> str:
    """`pixels`, or the reason of the refusal."""
    try:
        pixels = read_grey(data, max_pixels=1 << 22)
    except UnreadableImage as error:
        return error.reason if error.reason in REASONS else "a reason that nobody knows"
    return "pixels" if pixels.dtype == np.uint8 and pixels.ndim == 2 else "pixels of another kind"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """One small file of every kind, headers with lookup tables and nested sequences among them."""
    folder = tmp_path_factory.mktemp("dicom")
    data = dicom_dataset(DEEP, BitsStored=12, WindowCenter=2000, WindowWidth=3000, PatientName="CANARY^NAME")
    data.VOILUTSequence = lookup_table(np.arange(4096, dtype=np.uint16), 0, 12)
    data.VOILUTSequence[0].is_undefined_length_sequence_item = True
    data["VOILUTSequence"].is_undefined_length = True
    plain = dicom_file(DEEP, BitsStored=12)
    files = [
        encoded_dicom(data),
        *(dicom_file(DEEP, syntax, BitsStored=12) for syntax in NATIVE),
        *(compressed_by_gdcm(plain, syntax, folder) for syntax in LOSSLESS),
        compressed_dicom([encoded_picture(GREY, "JPEG")], GREY, "1.2.840.10008.1.2.4.50"),
    ]
    assert [outcome(file) for file in files] == ["pixels"] * len(files)
    return files


def borders(data: bytes) -> list[int]:
    """Where elements begin and end, and their values begin."""
    found = walk_file(data, range(0, PIXEL_DATA + 1), PIXEL_DATA, 1 << 24)
    if found.data is not data:
        return [132, len(data) // 2]
    places = (place for element in found.elements.values() for place in element[:3])
    return sorted({place for place in places if place < len(data)})


def test_a_file_cut_at_any_border_has_a_reason(sound: list[bytes]) -> None:
    for data in sound:
        whole = read_grey(data)
        for place in borders(data):
            for cut in (place - 1, place, place + 1, place + 3):
                if outcome(data[:cut]) == "pixels":
                    # What stands behind the pixels, or pads them, is not missed.
                    np.testing.assert_array_equal(read_grey(data[:cut]), whole)
                    assert cut >= len(data) - 8


def test_damage_of_every_kind_ends_in_pixels_or_a_reason(sound: list[bytes]) -> None:
    draw = np.random.default_rng(20)
    found: Counter[str] = Counter()
    lengths = (
        b"\xff\xff\xff\xff",
        b"\xff\xff\xff\x7f",
        b"\0\0\0\0",
        b"\xfe\xff\x00\xe0",
        b"\xfe\xff\xdd\xe0",
    )
    started = time.monotonic()
    for number in range(MUTATIONS):
        data = bytearray(sound[number % len(sound)])
        kind = number // len(sound) % 4
        if kind == 0:
            del data[int(draw.integers(len(data))) :]
        elif kind == 1:
            for _ in range(int(draw.integers(1, 6))):
                data[int(draw.integers(132, len(data)))] = int(draw.integers(256))
        elif kind == 2:
            place = int(draw.integers(132, min(len(data) - 4, 900)))
            data[place : place + 4] = lengths[int(draw.integers(len(lengths)))]
        else:
            first = int(draw.integers(132, len(data)))
            data[first:first] = bytes(data[132:first][-200:])
        found[outcome(bytes(data))] += 1
    assert sum(found.values()) == MUTATIONS
    assert set(found) <= {"pixels", *REASONS}
    assert set(found) >= {"pixels", "truncated_image", "unreadable_image", "unsupported_pixels", "no_pixels"}
    assert time.monotonic() - started < 60


def test_bytes_of_no_kind_are_not_taken_for_dicom() -> None:
    draw = np.random.default_rng(4)
    for length in (0, 3, 8, 200, 5000):
        data = draw.integers(0, 256, length).astype(np.uint8).tobytes()
        assert not looks_like_bare_dicom(b"%PDF" + data)
        assert outcome(with_prefix(data)) != "pixels"


def test_absurd_sizes_cost_no_memory() -> None:
    plain = dicom_file(GREY)
    for tags in (
        {"Rows": 2000, "Columns": 2000},
        {"Rows": 65535, "Columns": 65535, "BitsAllocated": 32, "BitsStored": 32, "HighBit": 31},
        {"NumberOfFrames": 2_000_000_000},
    ):
        data = dicom_file(GREY, **tags)
        tracemalloc.start()
        assert outcome(data) != "pixels"
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2_000_000
    length = plain.rindex(len(GREY.tobytes()).to_bytes(4, "little"))
    absurd = plain[:length] + b"\xf0\xff\xff\xff" + plain[length + 4 :]
    assert outcome(absurd) == "truncated_image"


# A decoder that dies.


@pytest.fixture
def lossless(tmp_path: Path) -> bytes:
    return compressed_by_gdcm(dicom_file(GREY), "1.2.840.10008.1.2.4.70", tmp_path)


def test_a_decoder_that_dies_costs_its_file_and_not_the_next(
    lossless: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "marks = Path(__file__).with_name('deaths')\n"
        "marks.write_text(marks.read_text() + 'x' if marks.exists() else 'x')\n"
        "sys.stdin.buffer.read(20)\n"
        "os.abort()\n"
    )
    process = GdcmProcess()
    monkeypatch.setattr(dicom_gdcm, "_CHILD", child)
    with pytest.raises(UnreadableImage) as caught:
        process.decode("1.2.840.10008.1.2.4.70", {}, b"x" * 1000)
    assert caught.value.detail == f"the decoder died of signal {signal.SIGABRT.value}"
    assert (tmp_path / "deaths").read_text() == "xx"
    monkeypatch.undo()
    np.testing.assert_array_equal(read_grey(lossless), GREY)


def test_a_decoder_that_was_killed_is_started_again(lossless: bytes) -> None:
    np.testing.assert_array_equal(read_grey(lossless), GREY)
    process = dicom_gdcm._GDCM._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    np.testing.assert_array_equal(read_grey(lossless), GREY)


def test_a_decoder_that_says_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(dicom_gdcm, "_CHILD", child)
    monkeypatch.setattr(dicom_gdcm, "ANSWER_SECONDS", 0.2)
    with pytest.raises(UnreadableImage) as caught:
        GdcmProcess().decode("1.2.840.10008.1.2.4.70", {}, b"")
    assert caught.value.detail == "the decoder gave no answer in time"


def test_a_decoder_that_nobody_waits_for_ends_by_itself(tmp_path: Path) -> None:
    (tmp_path / "pydicom").mkdir()
    (tmp_path / "pydicom" / "__init__.py").touch()
    (tmp_path / "pydicom" / "pixels.py").write_text("import time\ndef get_decoder(uid): time.sleep(60)\n")
    request = b'{"transfer_syntax": "1.2", "options": {}, "seconds": 1}'
    ended = subprocess.run(
        [sys.executable, "-P", str(dicom_gdcm._CHILD)],
        input=LENGTHS.pack(len(request), 0) + request,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=30,
        check=False,
    )
    assert ended.returncode == -signal.SIGALRM


def test_threads_share_the_decoder_without_mixing_answers(tmp_path: Path) -> None:
    pictures = [grey_pixels(seed) for seed in range(8)]
    files = [
        compressed_by_gdcm(dicom_file(picture), "1.2.840.10008.1.2.4.80", tmp_path) for picture in pictures
    ]
    wrong: list[int] = []

    def read(place: int) -> None:
        for _ in range(5):
            if not np.array_equal(read_grey(files[place]), pictures[place]):
                wrong.append(place)

    threads = [threading.Thread(target=read, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# What is said about files.


def test_nothing_is_said_while_a_file_is_read(
    sound: list[bytes], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    strange = dicom_file(GREY, SpecificCharacterSet="ISO_IR 100").replace(b"ISO_IR 100", b"canary 100")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # What pydicom says of such a file by itself.
        dcmread(io.BytesIO(strange))
        assert "canary" in str(caught[0].message)
        assert "canary" in caplog.text
        caught.clear()
        caplog.clear()
        with quiet():
            dcmread(io.BytesIO(strange))
        torn = [data[: len(data) - 40] for data in sound]
        for data in (*sound, *torn, strange, strange[:-100]):
            outcome(data)
    assert caught == []
    assert caplog.records == []
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""


def test_another_thread_still_hears_pydicom(caplog: pytest.LogCaptureFixture) -> None:
    load_pydicom()
    reading, heard = threading.Event(), threading.Event()

    def read() -> None:
        with quiet():
            reading.set()
            logging.getLogger("pydicom").warning("of a file that is read")
            warnings.warn("of a file that is read", stacklevel=1)
            heard.wait(10)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=read)
        thread.start()
        reading.wait(10)
        logging.getLogger("pydicom").warning("of somebody else's file")
        warnings.warn("of somebody else's file", stacklevel=1)
        heard.set()
        thread.join()
    assert [str(warning.message) for warning in caught] == ["of somebody else's file"]
    assert [record.getMessage() for record in caplog.records] == ["of somebody else's file"]
