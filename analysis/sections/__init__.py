"""The sections of a report, one subject each.

`sections(stored, folder)` of a subject takes what `read_stores` returns and the folder for figures; None draws none.
`runs` is everywhere a frame of `load_runs`, and `compared` the table of `comparison.comparison`.

The `draw` functions write .png and .svg and return both paths. They take `path` without suffix, `title` for above
all panels, `data` for the source of the data below, and some `looks` of the report (sections/charts.py, `looks_of`), so
that an arm looks the same in every figure and on the page.
"""
