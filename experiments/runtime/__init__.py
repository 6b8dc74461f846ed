"""The process a run lives in: display, signals, distributed ranks, seeds, caches and the manifest."""
