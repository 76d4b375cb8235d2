"""The report as a small paper."""
