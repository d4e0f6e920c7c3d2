"""What the verb predict leaves in the run folder: the loss of every sequence, or the label of every example.

predictions.csv     sequence, loss                                  of text, in the order of the corpus
                    example, label, predicted, p(LABEL) ...         of a classification
confusion.png       the labels that were said for each that is right
"""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpt_lightning.data.examples.packed import PackedSplit
from gpt_lightning.files import replacing
from gpt_lightning.report.confusion import confusion_figure
from gpt_lightning.run.build import Run
from gpt_lightning.run.folder import RunDir
from gpt_lightning.terminal import say


def write_predictions(run: Run, batches: Sequence[Any], folder: RunDir) -> dict[str, Any]:
    """Write what the ranks predicted, batch by batch, and say where. Returns the paths and how many there are."""
    if run.data.labels:
        return _write_labels(run, batches, folder)
    ranks = _of_all_ranks(torch.cat(list(batches)), run)
    in_order = torch.stack(ranks, 1).flatten().tolist()  # rank r had every n-th sequence from r on (data/batches.py)
    rows = [[str(i), str(loss)] for i, loss in enumerate(in_order) if not math.isnan(loss)]
    if run.trainer.is_global_zero:
        folder.write_text("predictions.csv", _csv(["sequence", "loss"], rows))
        say(f"loss of {len(rows)} sequences, in nats per token: {folder / 'predictions.csv'}")
    return {"predictions": str(folder / "predictions.csv"), "n_sequences": len(rows)}


def _write_labels(run: Run, batches: Sequence[Any], folder: RunDir) -> dict[str, Any]:
    names, split = run.data.labels, run.data.fixed_split("val")
    assert isinstance(split, PackedSplit)
    rank, world_size = run.data.replica
    found = []
    for number, (rows, labels, shares) in enumerate(batches):
        first = number * run.data.micro_batch_size
        places = ((first + rows) * world_size + rank).tolist()
        found += list(zip(places, labels.tolist(), shares.tolist(), strict=True))
    in_order = sorted(_gathered(found, world_size), key=lambda one: one[0])  # stable: within a row they are in order
    lines, counts = [], torch.zeros(len(names), len(names), dtype=torch.int64)
    for where, (_, label, shares) in zip(split.names(), in_order, strict=True):
        said = max(range(len(names)), key=shares.__getitem__)
        counts[label, said] += 1
        lines.append([where, names[label], names[said], *(f"{share:.6f}" for share in shares)])
    if run.trainer.is_global_zero:
        header = ["example", "label", "predicted", *(f"p({name})" for name in names)]
        folder.write_text("predictions.csv", _csv(header, lines))
        with replacing(folder / "confusion.png") as file:
            confusion_figure(counts.numpy(), names).savefig(file, format="png", dpi=120)  # type: ignore[arg-type]
        right = int(counts.diagonal().sum())
        say(f"{right} of {len(lines)} labels are right: {folder / 'predictions.csv'}, {folder / 'confusion.png'}")
    return {"predictions": str(folder / "predictions.csv"), "n_examples": len(lines)}


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _gathered(found: list[Any], world_size: int) -> list[Any]:
    """What all ranks have found."""
    if world_size == 1:
        return found
    ranks: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(ranks, found)
    return [one for part in ranks for one in part]


def _of_all_ranks(values: Tensor, run: Run) -> list[Tensor]:
    """A tensor as each rank has it; of one shape on all of them."""
    values = values.to(run.trainer.strategy.root_device)
    ranks = [torch.empty_like(values) for _ in range(run.trainer.world_size)]
    if len(ranks) == 1:
        return [values]
    torch.distributed.all_gather(ranks, values)
    return ranks
