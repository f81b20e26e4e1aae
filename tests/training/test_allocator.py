"""Freed memory that stays with a process, by page faults and resident bytes of a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mpma.training import allocator

pytestmark = pytest.mark.skipif(allocator._glibc() is None, reason="needs glibc")

# 200 MB are taken, written and freed again and again, as a step does with its activations.
PROGRAM = """
import ctypes, json, os, resource
from mpma.training.allocator import give_back_freed_memory, keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def take_and_free(count=4, size=50 * 2**20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

take_and_free()
stock = take_and_free()
arranged = keep_freed_memory()
take_and_free()
kept, held = take_and_free(), resident_bytes()
gave = give_back_freed_memory()
print(json.dumps([arranged, stock, kept, held, gave, resident_bytes(), take_and_free()]))
"""

FEWEST_FAULTS = 90
"""Of 200 MB where the system hands out huge pages of 2 MB by itself; else they are 51,200."""


def _run(**environment: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    values: list[int] = json.loads(done.stdout)
    return values


def test_kept_memory_costs_no_page_faults_and_comes_back_to_the_system_when_asked() -> None:
    arranged, stock, kept, held, gave, left, again = _run()
    assert arranged
    assert stock >= FEWEST_FAULTS, "blocks of 50 MB go back by themselves, or there is nothing to arrange"
    assert kept < FEWEST_FAULTS // 10
    assert gave
    assert held - left > 190 * 2**20
    assert again >= FEWEST_FAULTS // 2, "what was given back is taken anew"


def test_settings_that_the_user_made_for_the_allocator_are_left_alone() -> None:
    arranged, _, kept, *_ = _run(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert not arranged
    assert kept >= FEWEST_FAULTS
    assert not _run(GLIBC_TUNABLES="glibc.malloc.mmap_threshold=131072")[0]
