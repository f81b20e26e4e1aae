"""Evaluation spread over a cluster: models, jobs, their store, and what is concluded."""
