"""The process of a run: display, signals, distributed ranks, seeds, caches and the manifest."""
