"""Sums over a split, on all ranks, and the scores that they make.

text, answers    loss, perplexity and, with a tokenizer, bits_per_byte
labels           loss, accuracy, and macro_f1, the mean of F1 over labels
    relations        micro_f1 too, as TACRED's own scorer has it (Zhang et al. 2017): of all but the label for none
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from gpt_lightning.model.cross_entropy import IGNORED
from gpt_lightning.model.gpt import GPT
from gpt_lightning.model.step_mean import sum_dtype


class TextBytes:
    """How many bytes of text targets are. token_bytes: (V,), of each id; None: not known, and counted as 0."""

    def __init__(self, token_bytes: Tensor | None):
        self._token_bytes = token_bytes

    def __call__(self, targets: Int[Tensor, "batch time"]) -> Tensor:
        """The sum over targets that are not -100."""
        if self._token_bytes is None:
            return torch.zeros((), device=targets.device)
        self._token_bytes = self._token_bytes.to(targets.device)
        return (self._token_bytes[targets.clamp(min=0)] * (targets != IGNORED)).sum()


def labelled(
    gpt: GPT, hidden: Float[Tensor, "batch time d_model"], targets: Int[Tensor, "batch time"]
) -> tuple[Int[Tensor, " examples"], Int[Tensor, " examples"], Float[Tensor, "examples labels"]]:
    """Of each example in a batch its row, its label, and the logits of all labels where the label is due."""
    rows, places = (targets != IGNORED).nonzero(as_tuple=True)
    return rows, targets[rows, places], gpt.logits(hidden[rows, places])


class Scores(nn.Module):
    """What has been scored of a split so far. n_labels: how many there are, where targets are labels; else 0."""

    def __init__(self, n_labels: int = 0):
        super().__init__()
        self.nats, self.targets, self.text_bytes = (SumMetric("disable") for _ in range(3))  # keep NaN
        self.negative: int | None = None  # the label of no relation
        self.confusion = MulticlassConfusionMatrix(n_labels) if n_labels else None

    def set_dtype(self, device: torch.device) -> None:
        """Sums of many batches."""
        for metric in (self.nats, self.targets, self.text_bytes):
            metric.set_dtype(sum_dtype(device))

    def update(self, nats: Float[Tensor, "batch time"], targets: Int[Tensor, "batch time"], text_bytes: Tensor) -> None:
        """Add a batch: nats of each target, 0 where it is -100, and how many bytes of text the targets are."""
        self.nats.update(nats.sum(dtype=sum_dtype(nats.device)))
        self.targets.update((targets != IGNORED).sum())
        self.text_bytes.update(text_bytes)

    def update_labels(self, predicted: Int[Tensor, " examples"], labels: Int[Tensor, " examples"]) -> None:
        """Add the labels that were predicted, and those that are right."""
        if self.confusion is not None and len(labels):
            self.confusion.update(predicted, labels)

    def compute(self) -> dict[str, Tensor]:
        """The scores by name; then begin anew."""
        nats, targets, text_bytes = (metric.compute() for metric in (self.nats, self.targets, self.text_bytes))
        loss = nats / targets
        found = {"loss": loss, "perplexity": loss.exp()}
        if text_bytes > 0:
            found["bits_per_byte"] = nats / text_bytes / torch.log(torch.tensor(2.0, dtype=nats.dtype))
        if self.confusion is not None:
            counts = self.confusion.compute().double().cpu()
            found = {"loss": loss, **from_confusion(counts)}
            if self.negative is not None:
                found["micro_f1"] = micro_f1(counts, self.negative)
            self.confusion.reset()
        for metric in (self.nats, self.targets, self.text_bytes):
            metric.reset()
        return {name: value.float() for name, value in found.items()}


def from_confusion(counts: Float[Tensor, "labels predicted"]) -> dict[str, Tensor]:
    """Accuracy over all, and the mean over the labels that occur, rightly or as a guess, of F1."""
    right, named, guessed = counts.diagonal(), counts.sum(1), counts.sum(0)
    occurs = named + guessed > 0
    f1 = 2 * right[occurs] / (named + guessed)[occurs]
    return {"accuracy": right.sum() / counts.sum(), "macro_f1": f1.mean()}


def micro_f1(counts: Float[Tensor, "labels predicted"], negative: int) -> Tensor:
    """F1 of all relations together. A false alarm is a wrong guess, a missed one a wrong gold label; where nothing is
    guessed, precision is 1, as there.
    """
    positive = torch.arange(len(counts)) != negative
    right, guessed, gold = counts.diagonal()[positive].sum(), counts[:, positive].sum(), counts[positive].sum()
    precision = right / guessed if guessed else torch.ones_like(right)
    recall = right / gold if gold else torch.zeros_like(right)
    both = precision + recall
    return 2 * precision * recall / both if both else torch.zeros_like(right)
