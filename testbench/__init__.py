"""The test bench: what tests, checks, benchmarks and maintainers' scripts share."""
