"""Benchmarks, preparation of datasets, rows, labels and transforms."""
