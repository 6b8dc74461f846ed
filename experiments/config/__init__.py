"""The typed schema of a run's settings, and composing configurations from words on the command line."""
