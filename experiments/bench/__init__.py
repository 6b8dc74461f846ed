"""What adaptive ranks cost, measured: `python -m experiments.bench --help`.

All arms run in one process, one block of each in turn, so that a noisy machine disturbs them alike. Quote ratios and
their intervals: absolute times belong to one machine at one moment, and no test asserts on seconds.
"""
