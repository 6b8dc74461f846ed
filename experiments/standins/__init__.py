"""Small made-up data and models in the official layouts, so that every study runs end to end on any machine."""
