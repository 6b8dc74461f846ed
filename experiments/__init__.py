"""Tasks, training and the run store: everything that turns a method into a result."""
