"""Packs that are planned anew: every record stays in exactly one pack, numbers keep their sense."""

import json
import random

import numpy as np
import pytest

from packedesm.embedding.replan import PATIENCE, PackPlan, Replan
from packedesm.packing.packer import plan_apart, plan_packs

TOKENS = np.random.default_rng(5).integers(3, 60, 300)
BUDGET = 128


@pytest.fixture
def plan():
    return PackPlan(TOKENS, plan_packs(TOKENS, BUDGET))


def same_plan(plan):
    """Return the plan as the next attempt makes it, from what is kept in a file."""
    kept = json.loads(json.dumps([replan.as_json() for replan in plan.replans]))
    return PackPlan(TOKENS, plan_packs(TOKENS, BUDGET), map(Replan.from_json, kept))


def records(plan, numbers):
    return [place for number in numbers for place in plan[number].tolist()]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_planned_anew_each_record_is_in_one_pack_and_each_attempt_agrees(plan, seed):
    chance = random.Random(seed)
    done, content = set(), {}
    for budget in (64, 128, 50, 25, 50, 100):
        todo = plan.todo(done, float32=False)
        # Not the first ones alone: a commit may have been lost.
        done.update(chance.sample(todo, len(todo) // 3))
        content |= {number: plan[number].tolist() for number in done}
        left = plan.todo(done, float32=False)
        plan.replan(left, budget)
        todo = plan.todo(done, float32=False)
        assert min(todo) > max(left)
        assert sorted(records(plan, [*done, *todo])) == list(range(len(TOKENS)))
        assert all(TOKENS[plan[number]].sum() <= max(budget, TOKENS.max()) for number in todo)
        assert {plan.budget(number) for number in todo} == {budget}
        assert not any(number in plan for number in left)
        again = same_plan(plan)
        assert again.todo(done, float32=False) == todo
        assert all(again[number].tolist() == plan[number].tolist() for number in todo)
    assert all(plan[number].tolist() == places for number, places in content.items())


def kinds(plan, numbers, records):
    """Return the kinds of items of each pack: whether they are masked copies."""
    return [set((plan[number] >= records).tolist()) for number in numbers]


def test_packs_planned_anew_hold_records_or_copies_as_the_first_do():
    def made(replans=()):
        packs = plan_apart(TOKENS, BUDGET, 100)
        return PackPlan(TOKENS, packs, replans, records=100)

    plan = made()
    for budget in (50, 70):
        left = plan.todo(range(5), float32=False)
        plan.replan(left, budget)
        todo = plan.todo(range(5), float32=False)
        assert max(map(len, kinds(plan, todo, 100))) == 1
        assert sorted(records(plan, [*range(5), *todo])) == list(range(len(TOKENS)))
    plan.replan([], 128, float32=True, records=[3, 99, 100, 250])
    again = plan.todo([], float32=True)
    assert [len(plan[number]) for number in again] == [2, 2]
    assert kinds(plan, again, 100) == [{False}, {True}]
    same = made(map(Replan.from_json, json.loads(json.dumps([r.as_json() for r in plan.replans]))))
    numbers = [*plan.todo([], float32=False), *again]
    assert [same[n].tolist() for n in numbers] == [plan[n].tolist() for n in numbers]


def test_further_records_are_planned_beside_the_others(plan):
    before = plan.todo([], float32=False)
    plan.replan([], 40, float32=True, records=[7, 3, 100])
    assert plan.todo([], float32=False) == before
    again = plan.todo([], float32=True)
    assert sorted(records(plan, again)) == [3, 7, 100]
    plan.replan(again, 10, float32=True)
    smaller = plan.todo([], float32=True)
    assert sorted(records(plan, smaller)) == [3, 7, 100]
    assert len(smaller) == 3
    assert same_plan(plan).float32_records == {3, 7, 100}
    assert plan.token_budget == BUDGET


def test_a_budget_grows_back_to_the_first_and_each_failure_doubles_the_patience(plan):
    def replan(budget):
        plan.replan(plan.todo([], float32=False), budget)

    assert plan.patience is None
    replan(50)
    assert (plan.patience, plan.larger()) == (PATIENCE, 100)
    replan(100)
    assert (plan.patience, plan.larger()) == (PATIENCE, BUDGET)
    replan(40)
    assert (plan.patience, plan.larger()) == (2 * PATIENCE, 80)
    assert same_plan(plan).patience == 2 * PATIENCE
    replan(20)
    assert plan.patience == 4 * PATIENCE
    replan(BUDGET)
    assert plan.patience is None
