from __future__ import annotations

from pathlib import Path

import pytest

from mpma.errors import UserError
from mpma.training.compile_cache import VARIABLE, keep_compiled_code


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_compiled_code_is_kept_where_only_this_user_can_enter(caches: Path) -> None:
    folder = caches / "mpma" / "compile"
    folder.mkdir(parents=True, mode=0o755)
    assert keep_compiled_code() == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_link_in_the_place_of_compiled_code_is_refused(caches: Path, tmp_path: Path) -> None:
    (caches / "mpma").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (caches / "mpma" / "compile").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no directory of this user's"):
        keep_compiled_code()


def test_a_place_that_the_user_names_wins(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/named")
    assert keep_compiled_code() == "/named"
    assert not (caches / "mpma").exists()
