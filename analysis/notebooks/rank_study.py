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
# # Which layers get which ranks
#
# Do seeds agree on the ranks, do the matrices that carry more get more, and does the final layout help by itself? How
# to read each picture and number: docs/rank-study.md. Contributions must have been measured:
# `python -m experiments.contribution runs --method elalora,svd_lora`.

# %%
import os
from pathlib import Path
from tempfile import mkdtemp

from IPython.display import Image, Markdown, display

from analysis.output.writers import to_markdown
from analysis.reading.stored import read_stores
from analysis.sections.rank_study import sections

stores = os.environ.get("ELALORA_STORES", "runs").split(os.pathsep)
stored = read_stores(stores)
print(f"{len(stored.runs)} finished runs")

# %%
pictures = Path(mkdtemp())
for section in sections(stored, pictures):
    display(Markdown(f"## {section.title}"))
    for table in section.tables.values():
        display(Markdown(to_markdown(table)))
    for figure, caption in section.figures.items():
        display(Markdown(f"**{caption}**"), Image(figure.with_suffix(".png")))
