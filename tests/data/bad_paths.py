"""Paths that a table may name and no reader may follow: folders, pipes, devices, loops, ways out."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from source_samples import encoded, grey_pixels

OUTSIDE: Final = ("outside_root",)


def bad_paths(root: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Write what is no plain file into an image folder; paths a table may name, and the reasons they get."""
    outside = root.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "secret.png").write_bytes(encoded(grey_pixels()))
    (root / "sound.png").write_bytes(encoded(grey_pixels()))
    (root / "folder.png").mkdir()
    (root / "folder.png" / "within.png").write_bytes(encoded(grey_pixels()))
    os.mkfifo(root / "pipe.png")
    with (root / "sparse.png").open("wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n")
        stream.truncate(1 << 40)
    for name, target in (
        ("out.png", "../outside/secret.png"),
        ("out-absolute.png", str(outside / "secret.png")),
        ("out-folder", str(outside)),
        ("zero.png", "/dev/zero"),
        ("memory.png", "/proc/self/mem"),
        ("up", ".."),
        ("loop-a.png", "loop-b.png"),
        ("loop-b.png", "loop-a.png"),
        ("itself.png", "itself.png"),
        ("broken.png", "nowhere.png"),
        ("to-pipe.png", "pipe.png"),
    ):
        (root / name).symlink_to(target)
    found: list[tuple[str, tuple[str, ...]]] = [
        ("folder.png", ("unreadable_image",)),
        ("pipe.png", ("unreadable_image",)),
        ("to-pipe.png", ("unreadable_image",)),
        ("sparse.png", ("too_large",)),
        ("loop-a.png", ("unreadable_image",)),
        ("itself.png", ("unreadable_image",)),
        ("itself.png/within.png", ("unreadable_image", "missing_image")),
        ("broken.png", ("missing_image",)),
        ("sound.png/within.png", ("missing_image",)),
        ("nowhere/at/all.png", ("missing_image",)),
        ("x" * 5_000 + ".png", ("unreadable_image", "missing_image")),
        ("/".join("x" * 3_000), ("unreadable_image", "missing_image")),
    ]
    try:
        os.mknod(root / "device.png", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        found.append(("device.png", ("unreadable_image",)))
    except PermissionError:
        pass  # Devices are made by the superuser alone.
    found += [
        (name, OUTSIDE) for name in ("out.png", "out-absolute.png", "out-folder/secret.png", "zero.png")
    ]
    found += [(name, OUTSIDE) for name in ("memory.png", "up/outside/secret.png")]
    found += [
        (path, OUTSIDE)
        for path in (
            "../outside/secret.png",
            "..\\outside\\secret.png",
            "folder.png/../../outside/secret.png",
            "./../outside/secret.png",
            "../../../../../../../../etc/passwd",
            "..",
            str(outside / "secret.png"),
            "/etc/passwd",
            "/dev/zero",
            "//server/share/secret.png",
            "\\\\server\\share\\secret.png",
            "C:\\secret.png",
            "c:/secret.png",
            "file:///etc/passwd",
            "https://example.org/secret.png",
            "s3://bucket/secret.png",
            "sound.png\0.txt",
            "so\tund.png",
            "so\x1bund.png",
        )
    ]
    return found
