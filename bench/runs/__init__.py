"""From a suite to records: options, suite, cells, plan, run, record."""
