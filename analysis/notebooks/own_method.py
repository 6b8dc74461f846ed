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
# # How to compare a method of your own
#
# 1. Write it in one file on the common interface (docs/add-a-method.md) and run it beside the others:
#    `python run.py -m method=my_method,lora,elalora budget=r4 'seed=range(10)'`.
# 2. Set `own` below to its name, and `other` to the method that it is compared with.
#
# The comparison pairs runs of the same seed, and says how many seeds would settle it.

# %%
import os

import pandas as pd
from IPython.display import display

from analysis import least_pairs, load_runs, seeds_needed, sign_flip, summary, win_tie_loss
from analysis.reading.settings import differing

stores = os.environ.get("ELALORA_STORES", "runs").split(os.pathsep)
runs = load_runs(*stores)
print(f"{len(runs)} finished runs")

# %%
own, other = "elalora", "lora"
same = ["task", "model", "budget", "protocol"]
arms = runs[runs["method"].isin([own, other])]
display(arms.groupby([*same, "method", "arm"]).size().rename("seeds").to_frame())

# %% [markdown]
# One arm is one exact configuration. Where a method has several (other knobs, other learning rates), choose: this
# cell takes the first arm of each method and shows every setting outside the method in which the two differ.

# %%
first = {name: arms[arms["arm"] == arms.loc[arms["method"] == name, "arm"].iloc[0]] for name in (own, other)}
settings = [arm["settings"].iloc[0] for arm in first.values()]
apart = differing({k: v for k, v in one.items() if k not in ("method", "numerics")} for one in settings)
display(apart or "the same task, model, data, protocol and training")

# %%
pairs = pd.merge(first[own], first[other], on=[*same, "seed"], suffixes=("_own", "_other"))
pairs["difference"] = pairs["score_own"] - pairs["score_other"]
display(pairs[["task", "seed", "score_own", "score_other", "difference"]])

# %%
difference = pairs.groupby("seed")["difference"].mean().to_numpy()  # over tasks
result = summary(difference)
interval = f"95 % interval {result.low:+.2f} to {result.high:+.2f}"
print(f"{result.n} paired seeds: mean difference {result.mean:+.2f} points, {interval}")
print(f"sign-flip p {sign_flip(difference):.3f}; wins, ties, losses {win_tie_loss(difference)}")
print(f"no p below 0.05 is possible under {least_pairs()} seeds")
print(f"seeds for 80 % power at a difference of 0.5 points: {seeds_needed(0.5, result.sd)}")
