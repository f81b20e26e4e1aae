"""Runs and searches at a glance: what there is, how two of them differ, how one is made again."""
