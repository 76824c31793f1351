"""How fast and how good, in ratios measured in one run: `python -m benchmarks.run`."""
