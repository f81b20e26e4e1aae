"""Metrics shared by training, search and evaluation: functions of arrays, without a model or a dataset."""
