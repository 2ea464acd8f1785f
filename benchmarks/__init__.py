"""Benchmarks: each prints a table and, with ``--json FILE``, writes what it measured. None of them is a test."""
