"""Measurements, each a program that prints one JSON line per figure."""
