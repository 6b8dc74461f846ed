"""Learning rate, phases and the cubic budget, against values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elalora import RowwiseAdamW, Schedule, UserError
from elalora.schedules import Phases, plan_phases


def rates(total, warmup, shape, stages=()):
    optimizer = RowwiseAdamW([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = Schedule(optimizer, total, warmup, shape, stages)
    out = []
    for step in range(total):
        schedule.at(step)
        out.append(optimizer.param_groups[0]["lr"])
    return out


def test_linear_warmup_and_decay():
    assert rates(6, 2, "linear") == [0.0, 1.0, 2.0, 1.5, 1.0, 0.5]


def test_the_linear_schedule_is_that_of_transformers():
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    theirs = get_linear_schedule_with_warmup(optimizer, 5, 23)
    expected = []
    for _ in range(23):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(23, 5, "linear") == pytest.approx(expected)


def test_each_stage_has_a_schedule_of_its_own():
    assert rates(8, 2, "linear", stages=(4, 4)) == [0, 1, 2, 1] * 2


def test_held_at_the_peak_neither_warms_up_nor_decays():
    optimizer = RowwiseAdamW([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = Schedule(optimizer, 10, 4)
    schedule.hold_peak()
    for step in (1, 5, 9):
        schedule.at(step)
        assert optimizer.param_groups[0]["lr"] == 2.0


# T, t_i, t_f, interval, b0 -> rounds that move, first, last, moves in all (methods of the official scripts)
OFFICIAL = {
    "MNLI": ((6136, 500, 1000, 500, 4), 8, 1000, 4500, 25),
    "SST-2": ((21060, 3000, 10000, 500, 4), 15, 3500, 10500, 47),
    "CoLA": ((2680, 500, 500, 100, 4), 16, 600, 2100, 50),
    "RTE": ((1950, 300, 500, 50, 4), 21, 350, 1350, 67),
    "MRPC": ((1160, 300, 400, 50, 4), 8, 350, 700, 25),
    "QNLI": ((8185, 2000, 2000, 200, 4), 20, 2200, 6000, 62),
    "XSum": ((51016, 8000, 10000, 200, 6), 160, 8200, 40000, 744),
    "VTAB": ((5000, 500, 1000, 200, 4), 16, 700, 3700, 50),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_rounds_of_the_official_scripts_are_those_counted_by_hand(name):
    (total, t_i, t_f, interval, b), count, first, last, moves = OFFICIAL[name]
    phases = Phases(total, t_i, t_f, interval, b)
    rounds = phases.rounds()
    assert (len(rounds), rounds[0], rounds[-1]) == (count, first, last)
    assert sum(phases.moves_at(t) for t in rounds) == moves
    assert rounds == [t for t in range(total) if phases.due(t)]


def test_default_phases_follow_the_length_of_the_run():
    phases = plan_phases(100, 144, None, None, None, None, "cubic")
    assert (phases.start, phases.final, phases.interval, phases.moves) == (10, 25, 20, 8)
    assert phases.rounds() == [30, 50, 70]
    assert [phases.moves_at(t) for t in phases.rounds()] == [8, 6, 2]  # round(8 (1 - p^3)), p = 20/65, 40/65, 60/65
    long = plan_phases(1000, 144, None, None, None, None, "cubic")
    assert (long.start, long.final, long.interval) == (100, 250, 81)


def test_phases_are_named():
    phases = Phases(100, 10, 25, 20, 8)
    assert [phases.name(t) for t in (0, 10, 11, 74, 75, 99)] == ["warm-up"] * 2 + ["adjust"] * 2 + ["stabilise"] * 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((100, 8, 60, 60, None, None), "leave no step for rounds"),
        ((100, 8, 0.5, 0.6, None, None), "leave no step for rounds"),
        ((100, 8, 10, 25, 70, None), "longer than the adjustment phase"),
        ((100, 8, 10, 25, 0, None), "must be at least 1"),
        ((100, 8, 10, 25, 20, -1), "at least 0"),
        ((100, 8, 10.5, 25, 20, 2), "neither a fraction"),
        ((100, 8, -3, 25, 20, 2), "neither a fraction"),
        ((20, 8, None, None, None, None), "no round would ever happen"),
    ],
)
def test_phases_that_do_not_fit_are_refused_with_the_setting_to_change(given, says):
    total, rank_sum, *rest = given
    with pytest.raises(UserError, match=says) as error:
        plan_phases(total, rank_sum, *rest, "cubic")
    assert "method." in str(error.value)


@pytest.mark.parametrize(("warmup", "shape"), [(6, "linear"), (-1, "linear"), (0, "stairs")])
def test_schedules_that_do_not_fit_are_refused(warmup, shape):
    with pytest.raises(UserError):
        rates(6, warmup, shape)
