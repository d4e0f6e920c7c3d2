"""Prediction of several tokens ahead from the same hidden states, without further parameters, fading over the run.

As modded-nanogpt trains (github.com/KellerJordan/modded-nanogpt, TRAINING_STAGES in train_gpt.py), after Gloeckle et
al. 2024, arXiv 2404.19737, whose targets each have a head of their own: early on, what comes soon tells almost as much
as what comes next, and the run ends on the next token alone. Each target fades in its turn, the furthest first; with
weights 0.5 and 0.25 and a fade of 2/3:

    share of the run       0      1/3     2/3      1
    1 ahead                1       1       1       1
    2 ahead               0.5     0.5      0       0
    3 ahead               0.25     0       0       0

One softmax serves all targets of a token, so it costs little more than plain cross entropy, and nothing once faded.
"""

import math

from gpt_lightning.model.loss import CrossEntropy


class MultiToken(CrossEntropy):
    """Cross entropy of the next token and of those after it in its row, whose weights fade to 0 one by one.

    The mean is over weights: that of all targets of a step, each counting for its weight.

    Args:
        weights: What the targets 2, 3, ... tokens ahead count for at first; the next token counts for 1.
        fade: The share of the run after which only the next token counts; above 0, at most 1.
    """

    def __init__(self, weights: tuple[float, ...] = (0.5, 0.25), fade: float = 0.67, **kwargs):
        super().__init__(**kwargs)
        if not weights or not all(0 <= weight < math.inf for weight in weights):
            raise ValueError(
                f"weights {list(weights)}: expected finite numbers, at least 0, for the targets 2, 3, ... ahead"
            )
        if not 0 < fade <= 1:
            raise ValueError(f"fade {fade}: expected a share of the run, above 0 and at most 1")
        self.weights, self.fade = tuple(weights), fade

    def weights_ahead(self, progress: float) -> list[float]:
        turns = len(self.weights) * (1 - progress / self.fade)  # that are left until all have faded
        ahead = [1.0, *(weight * min(max(turns - k, 0.0), 1.0) for k, weight in enumerate(self.weights))]
        while not ahead[-1]:
            ahead.pop()
        return ahead
