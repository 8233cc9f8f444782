"""Benchmarks: the library beside plain programs written from the papers' formulas.

`python -m tests.benchmarks --help`; `python -m tests.benchmarks.table FILE` makes the
table of a result, `python -m tests.benchmarks.curves FILE...` draws accuracy against minutes.
"""
