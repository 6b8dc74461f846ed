"""From run folders to data frames."""
