"""Training of the embedded models from registry data; `bench.training.train` is the entry."""
