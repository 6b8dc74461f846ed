"""What adaptivity costs, measured: `python -m experiments.bench --help`.

Everything that is compared runs in one process, block by block in turn, so that a noisy machine disturbs all arms
alike. Quote ratios and their intervals; absolute times are those of one machine at one moment. No test asserts on
seconds.
"""
