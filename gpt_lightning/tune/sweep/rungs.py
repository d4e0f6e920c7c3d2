"""Rungs: every trial is trained for few tokens, the best third of them for more, and again the best third of those.

    tokens of the run    1/9      1/3      1
    trials of 27         27       9        3        a third of the tokens that 27 whole runs take

Each rung is a run of its own with a whole schedule: to stop in the middle of a long decay favours small learning rates.
No worker waits for the others of a rung: where it finds nothing else to do, it takes the best so far, if that is among
the best third so far (successive halving, Jamieson and Talwalkar 2016, arXiv 1502.07943; without waiting, Li et al.
2018, arXiv 1810.05934).
"""

import math
from collections.abc import Collection, Mapping, Sequence


def rung_tokens(max_tokens: int, rungs: int, factor: int, least: int) -> list[int]:
    """Tokens of each rung, the last one max_tokens. Raises ValueError where the first has fewer than `least`."""
    tokens = [max_tokens // factor ** (rungs - 1 - i) for i in range(rungs)]
    if tokens[0] < least:
        raise ValueError(
            f"tune.rungs {rungs}: the first would have {tokens[0]:,} tokens, fewer than {least:,}; "
            "ask for fewer rungs, or for more tokens"
        )
    return tokens


def promoted(scores: Mapping[int, Sequence[float]], busy: Collection[int], factor: int, n_rungs: int) -> int | None:
    """The trial that is to go on to its next rung, None where none is; the lowest rung first.

    scores: of every trial that ended a rung, by rung; infinite where it diverged, and such do not go on. busy: trials
    that wait or run.
    """
    for rung in range(n_rungs - 1):
        there = {trial: known[rung] for trial, known in scores.items() if len(known) > rung}
        n_up = max(len(there) // factor, 0 if busy else 1)
        best = sorted((score, trial) for trial, score in there.items() if math.isfinite(score))
        for _, trial in best[:n_up]:
            if len(scores[trial]) == rung + 1 and trial not in busy:
                return trial
    return None
