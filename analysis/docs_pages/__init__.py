"""Pages of docs/ that are generated from measured numbers."""
