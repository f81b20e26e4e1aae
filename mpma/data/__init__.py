"""Pairs: where they come from, how they are checked, kept and put in order."""
