"""The folder of Ray's sessions is this user's alone, whatever stands in its place before."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpma.errors import UserError
from orchestration.session_folder import KEPT_DAYS, session_folder


@pytest.fixture
def place() -> Iterator[Path]:
    """A place for temporary files, of a name short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_folder_is_made_for_this_user_alone(place):
    before = os.umask(0)
    try:
        made = Path(session_folder(str(place)))
    finally:
        os.umask(before)
    assert made == place / f"mpma-{os.getuid()}" / "ray"
    assert mode(made.parent) == 0o700


def test_a_folder_of_ours_that_was_open_is_closed(place):
    folder = place / f"mpma-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    session_folder(str(place))
    assert mode(folder) == 0o700


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_or_a_file_in_its_place_is_refused_in_one_line(place, tmp_path, kind):
    folder = place / f"mpma-{os.getuid()}"
    tmp_path.chmod(0o755)
    if kind == "link":
        folder.symlink_to(tmp_path)
    else:
        folder.write_text("")
    with pytest.raises(UserError, match=rf"mpma-{os.getuid()}: no directory") as caught:
        session_folder(str(place))
    assert "TMPDIR" in str(caught.value.hint)
    assert "\n" not in caught.value.message
    assert mode(tmp_path) == 0o755


def test_a_folder_of_another_user_is_refused(place, monkeypatch):
    (place / f"mpma-{os.getuid() + 1}").mkdir()
    real = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: real + 1)
    with pytest.raises(UserError, match="belongs to another user"):
        session_folder(str(place))


def test_a_place_too_long_for_sockets_is_refused_before_ray_meets_it(place):
    with pytest.raises(UserError, match="too long a name") as caught:
        session_folder(str(place / ("deep" * 10)))
    assert "RAY_TMPDIR" in str(caught.value.hint)


def test_what_ended_programs_left_is_removed_after_a_week_and_nothing_else(place):
    sessions = Path(session_folder(str(place)))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {
        "old": f"session_2026-01-01_00-00-00_000000_{ended.pid}",
        "new": f"session_2026-01-02_00-00-00_000000_{ended.pid}",
        "running": f"session_2026-01-01_00-00-00_000000_{os.getpid()}",
        "foreign": "session_notes",
    }
    for kind, name in names.items():
        (sessions / name / "logs").mkdir(parents=True)
        if kind != "new":
            week = (sessions / name).stat().st_mtime - KEPT_DAYS * 86_400 - 60
            os.utime(sessions / name, (week, week))
    session_folder(str(place))
    assert {path.name for path in sessions.iterdir()} == {names[k] for k in ("new", "running", "foreign")}
