"""What a model costs: multiply-accumulates, time, memory. Units are in every name or docstring."""
