"""The run store: one folder per run, finding, listing and compacting runs."""
