"""Benchmarks: each prints a table, and writes rows that any two runs and engines compare by."""
