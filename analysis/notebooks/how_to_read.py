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
# # How to read a comparison
#
# How a seed becomes a pair, what a null looks like, what power is, and how a rank map is read. It begins with the runs
# of your store; set `own` and `other` to two methods that are in it.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

from analysis import load_runs, seeds_needed, sign_flip, t_interval
from analysis.sections.rank_maps import rank_map

stores = os.environ.get("ELALORA_STORES", "runs").split(os.pathsep)
runs = load_runs(*stores)
own, other = "elalora", "svd_lora"
print(f"{len(runs)} finished runs")

# %% [markdown]
# ## A seed becomes a pair
#
# Two runs with the same seed see the same items in the same order and start with the same head. So part of what makes
# one of them good makes the other good too, and the difference within a seed varies less than the scores do. The table
# has a row for each seed that both arms have.

# %%
place = ["task", "model", "budget", "protocol"]
first, second = (runs[runs["arm"] == runs.loc[runs["method"] == name, "arm"].iloc[0]] for name in (own, other))
pairs = pd.merge(first, second, on=[*place, "seed"], suffixes=("_own", "_other"))
pairs = pairs[pairs["task"] == pairs["task"].iloc[0]].sort_values("seed")
gap = (pairs["score_own"] - pairs["score_other"]).to_numpy()
display(pairs[["task", "seed", "score_own", "score_other"]].assign(difference=gap))
apart = np.sqrt(pairs["score_own"].var() + pairs["score_other"].var())
print(f"{len(gap)} pairs. Spread of the differences: {gap.std(ddof=1):.2f} points; without pairing {apart:.2f}.")
low, high = t_interval(gap)
print(f"Mean difference {gap.mean():+.2f}, 95 % interval {low:+.2f} to {high:+.2f}, sign-flip p {sign_flip(gap):.3f}")

# %% [markdown]
# ## What a null looks like
#
# Now suppose that the methods are equally good. Then the sign of every difference is a coin: the test flips all signs
# in every way and asks how often the mean is at least as far from zero as the one observed. Below are 2,000
# comparisons in which nothing is different, with the spread of your pairs. Two seeds often show a point or more
# between equal methods; with ten seeds the p-values are spread evenly, and one in twenty lies below 0.05.

# %%
rng = np.random.default_rng(0)
sd = float(gap.std(ddof=1)) or 1.0
two, ten = (rng.normal(0.0, sd, (2000, n)) for n in (2, 10))
p_null = np.array([sign_flip(row) for row in ten])
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
left.hist([two.mean(axis=1), ten.mean(axis=1)], bins=40, label=["2 seeds", "10 seeds"])
left.set(xlabel="mean difference of equal methods, points")
left.legend()
right.hist(p_null, bins=20)
right.set(xlabel="p with 10 seeds")
plt.show()
false_claims = float(np.mean(p_null < 0.05))
print(f"Of equal methods, {100 * false_claims:.1f} % have p < 0.05: these are the false claims that the level allows.")

# %% [markdown]
# ## What power is
#
# Power is the share of studies that find a difference which is there. It depends on the difference, on the spread and
# on the number of seeds, never on the result. A study of low power that finds nothing says nothing. The dashed line is
# the number of seeds that `seeds_needed` gives for 80 %.

# %%
effect = 0.8 * sd  # the difference worth finding: choose it in points, before the runs
seeds = [4, 6, 8, 10, 12, 16]
power = [np.mean([sign_flip(row) < 0.05 for row in rng.normal(effect, sd, (400, n))]) for n in seeds]
needed = seeds_needed(effect, sd)
plt.plot(seeds, power, marker="o")
plt.axhline(0.8, color="grey", lw=0.5)
if needed and needed <= max(seeds):
    plt.axvline(needed, ls="--", color="grey")
plt.xlabel("seeds")
plt.ylabel("power")
plt.show()
print(f"A difference of {effect:.2f} points at a spread of {sd:.2f}: {needed} seeds for 80 % power")
print(f"With 4 seeds {100 * power[0]:.0f} % of such studies find it: the smallest possible p is {2.0**-3:.3f}")

# %% [markdown]
# ## How a rank map is read
#
# A row is a layer, a column a type of matrix, a number the final rank, as the mean over seeds. The budget fixes the
# mean of all of them, so a high rank somewhere is a low rank elsewhere. First one seed, then the mean over all: what
# only one seed shows is no property of the method.

# %%
arm = first[first["task"] == pairs["task"].iloc[0]]
for title, some in (("one seed", arm.head(1)), (f"mean of {len(arm)} seeds", arm)):
    ranks = rank_map(some)
    centre = np.nanmean(ranks.to_numpy(dtype=float))
    reach = max(np.nanmax(np.abs(ranks.to_numpy(dtype=float) - centre)), 1e-9)
    plt.figure(figsize=(6, 0.35 * len(ranks) + 1))
    plt.imshow(ranks.to_numpy(dtype=float), cmap="PuOr_r", vmin=centre - reach, vmax=centre + reach, aspect="auto")
    plt.xticks(range(len(ranks.columns)), ranks.columns, rotation=45, ha="right")
    plt.yticks(range(len(ranks.index)), ranks.index)
    plt.colorbar()
    plt.title(f"{own}, {title}; white is the mean rank {centre:.1f}")
    plt.show()

# %% [markdown]
# Do the seeds agree? Below is the correlation of two seeds' ranks, over all pairs of seeds, and the same after the
# ranks of each run were shuffled: what is left there is what maps without any agreement show.

# %%
patterns = np.array([list(row.values()) for row in arm["ranks_final"]], dtype=float)


def agreement(rows: np.ndarray) -> float:
    """Mean correlation of two rows; rows without spread say nothing."""
    kept = rows[rows.std(axis=1) > 0]
    return float(np.corrcoef(kept)[np.triu_indices(len(kept), 1)].mean()) if len(kept) > 1 else float("nan")


observed = agreement(patterns)
shuffled = [agreement(rng.permuted(patterns, axis=1)) for _ in range(200)]
print(f"Agreement of seeds {observed:.2f}; shuffled {np.nanmean(shuffled):.2f}")
print(f"Of 200 shuffles, the largest: {np.nanmax(shuffled):.2f}")
