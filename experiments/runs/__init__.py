"""One run: its plan, its preparation, doing it, and its result."""
