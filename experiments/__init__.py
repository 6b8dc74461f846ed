"""Tasks, training and the run store: everything that turns a method into a result."""

import warnings

# what tqdm says in a notebook without ipywidgets, on its import by one of the libraries; no bar of theirs is shown
warnings.filterwarnings("ignore", message="IProgress not found")
