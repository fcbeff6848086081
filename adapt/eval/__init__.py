"""Benchmarks of the paper, one module each, and the metrics they share."""
