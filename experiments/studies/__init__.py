"""Studies: many runs from one file, with tuning and declared comparisons."""
