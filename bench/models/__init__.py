"""Models by name: what to type, how each is loaded, and what is needed to feed it."""

from bench.models.catalogue import load as load
