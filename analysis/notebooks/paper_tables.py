# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The papers' tables
#
# The comparison of all stored runs, and the tables in the papers' layout where there are runs of their tasks. Every
# number is computed from the run store; a cell without runs stays empty. Notes below a table say how to read it.

# %%
import os

from IPython.display import Markdown, display

from analysis import comparison, load_runs
from analysis.output.writers import to_markdown
from analysis.sections.beside_published import against_published
from analysis.sections.papers import paper_tables

stores = os.environ.get("ELALORA_STORES", "runs").split(os.pathsep)
runs = load_runs(*stores)
print(f"{len(runs)} finished runs")

# %% [markdown]
# ## Comparison

# %%
Markdown(to_markdown(comparison(runs, spread="interval")))

# %% [markdown]
# ## In the papers' layout, beside published numbers

# %%
for table in paper_tables(runs).values():
    display(Markdown(to_markdown(table)))
beside = against_published(runs)
if beside is not None:
    display(Markdown(to_markdown(beside)))
