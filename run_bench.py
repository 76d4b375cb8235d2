"""Run the benchmark: `python run_bench.py` runs the default suite and writes its report."""

from bench.cli import main

if __name__ == "__main__":  # measuring memory starts fresh processes, which import this file
    main()
