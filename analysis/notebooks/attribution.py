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
# # Ranks or side effects?
#
# The factorial {fixed rank, random prune-and-grow, scored} x D1 x D2 (docs/rank-study.md). D1: the optimizer's moments
# are dropped at every round. D2: the learning rate stays at its peak after the first round.

# %%
import os
from pathlib import Path
from tempfile import mkdtemp

from IPython.display import Image, Markdown, display

from analysis import load_runs, sign_flip, t_interval
from analysis.output.writers import to_markdown
from analysis.sections.attribution import effects_table, factorials, paragraph
from analysis.sections.attribution_figure import draw

stores = os.environ.get("ELALORA_STORES", "runs").split(os.pathsep)
runs = load_runs(*stores)
print(f"{len(runs)} finished runs")

# %%
found, gaps = factorials(runs)
pictures = Path(mkdtemp())
for number, factorial in enumerate(found):
    display(Markdown(paragraph(factorial)), Markdown(to_markdown(effects_table(factorial))))
    display(Image(draw(factorial, pictures / str(number))[0]))
print(*gaps or ["no gaps"], sep="\n")

# %% [markdown]
# ## One effect, by hand
#
# An effect is one number per seed. Here the side effect D1: the mean of that seed's six arms with it less the mean of
# the six arms without it.

# %%
if found:
    scores = found[0].scores  # (seeds, fixed/random/scored, D1 off/on, D2 off/on)
    d1 = scores[:, :, 1].mean(axis=(1, 2)) - scores[:, :, 0].mean(axis=(1, 2))
    display(d1.round(2), t_interval(d1), sign_flip(d1))
