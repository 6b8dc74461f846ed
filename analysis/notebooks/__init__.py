"""Notebooks over the run store, kept as text: `python -m analysis.notebooks runs`."""
