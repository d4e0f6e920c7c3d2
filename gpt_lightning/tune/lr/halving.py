"""Trials of a search for the learning rate: successive halving, and longer trials where the answer stays vague.

    round 1    7 learning rates, factor 2 apart      a quarter of the tokens
    round 2    the 4 neighbours that did best        half
    round 3    the 4 neighbours that did best        all, several seeds
    round 4    3 about the best                      4 times as many, where the interval is wider than a factor of 8

Each trial has a whole schedule of its own: rounds that stop one long run early would favour small learning rates. The
same seeds meet every learning rate, so that what a seed does to all of them drops out of the fit (minimum.py), which
reads all rounds; round 4 brings the trials nearer to the length of the run, on which the answer is most unsure.

Successive halving: Jamieson and Talwalkar 2016, arXiv 1502.07943.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from gpt_lightning.tune.lr.horizon import BETWEEN_ROUNDS, Answer, answer
from gpt_lightning.tune.lr.minimum import Round, posterior

Objective = Callable[[float, int, int], float]  # lr, tokens, seed -> final loss, infinite when it diverged

GRID = 2.0  # factor between neighbours
ROUNDS = ((0.25, 7), (0.5, 4), (1.0, 4))  # share of the tokens, learning rates
WIDENED_BY = (3, 1, 1, 1)  # learning rates that a round adds when its best one is at the edge
WIDE = 8.0  # factor from end to end of the interval: too vague an answer
LONGER, N_LONGER = 4, 3  # the longest trials then: times the tokens, learning rates


@dataclass(frozen=True)
class Search:
    """All rounds, shortest first, and what they tell.

    widened: whether an edge was met; edge: whether one stayed, -1 or 1. lengthened: whether round 4 was run.
    """

    rounds: list[Round]
    answer: Answer
    widened: bool
    edge: int
    lengthened: bool

    @property
    def vague(self) -> bool:
        """Whether the interval for the run is wider than a factor of 8 after all."""
        return self.answer.run.factor > WIDE


def search(
    objective: Objective, upper: float, tokens: int, seeds: int, max_tokens: int, lengthen: bool = True
) -> Search:
    """The best learning rate of a run of `max_tokens`, by trials of up to `tokens`; from `upper` downwards.

    upper: a learning rate near which training diverges. With two seeds the trials cost 12 x `tokens`, 2 more where an
    edge is met in the last round, 12 to 16 more where they are made longer, as `lengthen` allows.
    """
    lrs = sorted(upper * GRID**-i for i in range(ROUNDS[0][1]))
    rounds: list[Round] = []
    widened = False
    for number, (share, n_lrs) in enumerate(ROUNDS):
        lrs = _best_neighbours(rounds[-1], n_lrs) if rounds else lrs
        n_seeds = seeds if number == len(ROUNDS) - 1 else 1
        rounds.append(_tried(objective, lrs, round(tokens * share), n_seeds, WIDENED_BY[number]))
        widened = widened or len(rounds[-1].losses) > n_lrs
    found = _answer(rounds, max_tokens)
    longer = min(LONGER * tokens, max_tokens)
    lengthened = lengthen and found.run.factor > WIDE and longer > tokens
    if lengthened:
        middle = _answer(rounds, longer).run.value
        nearest = upper * GRID ** round(math.log(middle / upper, GRID))
        lrs = [nearest * GRID**i for i in range(-(N_LONGER // 2), N_LONGER // 2 + 1)]
        rounds.append(_tried(objective, lrs, longer, 1, WIDENED_BY[-1]))
        widened = widened or len(rounds[-1].losses) > N_LONGER
        found = _answer(rounds, max_tokens)
    return Search(rounds, found, widened, rounds[-1].edge, lengthened)


def _answer(rounds: list[Round], max_tokens: int) -> Answer:
    return answer(posterior(rounds, BETWEEN_ROUNDS), math.log2(max_tokens / rounds[-1].tokens))


def _tried(objective: Objective, lrs: list[float], tokens: int, n_seeds: int, widened_by: int) -> Round:
    """A round of these learning rates, and of some beyond the edge when the best one lies there."""
    losses = {lr: [objective(lr, tokens, seed) for seed in range(n_seeds)] for lr in lrs}
    side = Round(tokens, losses).edge
    outermost = lrs[0] if side < 0 else lrs[-1]
    for i in range(widened_by if side else 0):
        lr = outermost * GRID ** (side * (i + 1))
        losses[lr] = [objective(lr, tokens, seed) for seed in range(n_seeds)]
    return Round(tokens, dict(sorted(losses.items())))


def _best_neighbours(done: Round, count: int) -> list[float]:
    """The `count` learning rates next to each other that hold the best one and have the lowest sum of losses."""
    lrs, means = list(done.losses), done.means
    best = lrs.index(done.best)
    starts = [i for i in range(max(best - count + 1, 0), best + 1) if i + count <= len(lrs)]
    windows = [lrs[i : i + count] for i in starts]
    return min(windows, key=lambda window: sum(min(means[lr], 1e6) for lr in window))
