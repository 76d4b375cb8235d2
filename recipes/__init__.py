"""Studies that use the benchmark: scripts, not part of the package."""
