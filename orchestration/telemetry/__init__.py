"""Figures of runs and searches for Prometheus, Grafana and Ray's dashboard."""
