"""Data files of the project: `published.json`, the figures that `bench.runs.verify` recomputes."""
