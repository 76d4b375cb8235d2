"""The conformance kit: what must hold for every method, tried on small models made on the spot.

    run_bench.py check METHOD          one method, property by tower
    run_bench.py check --all           every registered method

`bench.check.pytest_plugin.conformance` makes tests of the same properties.
"""
