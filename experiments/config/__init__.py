"""What a run may be told: the typed schema, and composing configurations from words on the command line."""
