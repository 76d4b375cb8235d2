"""Suites that ship with the project: which models, tasks, methods and profiles a run covers."""
