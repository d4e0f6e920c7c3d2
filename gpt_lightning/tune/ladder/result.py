"""What `tune ladder` has found: the law, and what it says of the target's budget, beside what others say."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from gpt_lightning.model.gpt3 import gpt3_loss
from gpt_lightning.run.stack import Stack
from gpt_lightning.terminal import short
from gpt_lightning.tune.ladder.figure import ladder_figure
from gpt_lightning.tune.ladder.law import Interval, Law
from gpt_lightning.tune.ladder.plan import Rung, candidates
from gpt_lightning.tune.sizes import Size
from gpt_lightning.tune.suggest.laws import chinchilla_loss, compute_optimal
from gpt_lightning.tune.trials import horizon

EPOCHS = 4  # repeated more often, text teaches less than new text (Muennighoff et al. 2023, arXiv 2305.16264)


@dataclass(frozen=True)
class LadderRun:
    """A rung, and what it reached."""

    rung: Rung
    loss: float
    bits_per_byte: float | None

    @property
    def n_params(self) -> int:
        """Without embeddings."""
        return self.rung.size.n_params

    @property
    def tokens(self) -> int:
        return self.rung.tokens


@dataclass(frozen=True)
class LadderResult:
    """The runs, the cheapest first, the law, and the budget that it is asked about.

    own: the size of the stack. sizes: those of its structure. drift: by which share the law of the lower levels says
    too much of the highest, if known. flops: of the target. epochs_per_token: of the corpus.
    """

    stack: Stack = field(repr=False)
    own: Size
    sizes: list[Size]
    runs: list[LadderRun]
    law: Law
    drift: float | None
    flops: float
    epochs_per_token: float

    @cached_property
    def _optimum(self) -> tuple[int, list[int]]:
        return self.law.best_of(candidates(self.sizes, self.flops))

    @property
    def best(self) -> Size:
        """The size of the lowest predicted loss."""
        return self.sizes[self._optimum[0]]

    @property
    def tokens(self) -> int:
        """That the budget gives it."""
        batch = self.stack["data.batch_tokens"]
        return max(round(self.flops / self.best.flops / batch), 1) * int(batch)

    @property
    def n_params_90(self) -> tuple[int, int]:
        """The 90% interval of the best size."""
        drawn = sorted(self.sizes[i].n_params for i in self._optimum[1])
        return drawn[len(drawn) // 20], drawn[-1 - len(drawn) // 20]

    @property
    def predicted(self) -> Interval:
        """Loss of the target at its best size, nats per token."""
        return self._predicted(self.best, self.tokens)

    @property
    def predicted_own(self) -> Interval:
        """Loss of the stack as it is, nats per token."""
        return self._predicted(self.own, self.stack["max_tokens"])

    @property
    def bits_per_nat(self) -> float | None:
        """Bits per byte over nats per token, on this validation text."""
        bits = self.runs[0].bits_per_byte
        return None if bits is None else bits / self.runs[0].loss

    @property
    def recommendation(self) -> str:
        best = self.best
        return (
            f"d_model {best.d_model}, {best.n_layers} layers ({short(best.n_params)} parameters without embeddings), "
            f"{short(self.tokens)} tokens for {short(self.flops)} FLOPs"
        )

    @property
    def explanation(self) -> str:
        low, high = self.n_params_90
        stack = f"{short(self.own.n_params)} parameters, {short(self.stack['max_tokens'])} tokens"
        said = f"predicted loss: {self._in_words(self.predicted)}; best size {short(low)} to {short(high)} parameters"
        if self.stack["max_tokens"] < min(run.tokens for run in self.runs):
            return said  # shorter runs have another law
        return f"{said}\nthe stack as it is ({stack}): {self._in_words(self.predicted_own)}"

    def notes(self) -> Sequence[str]:
        """The law, and what was published."""
        numbers = self.law.numbers()
        e, a, b = (numbers[name] for name in "Eab")
        n, d = compute_optimal(self.flops)
        size, length = f"{numbers['A'].value:.3g} / N^{a.value:.3f}", f"{numbers['B'].value:.3g} / D^{b.value:.3f}"
        both = f"(({size})^{1 / b.value:.2f} + ({length})^{1 / b.value:.2f})^{b.value:.3f}"
        lines = [
            f"L = {e.value:.3f} + {both if self.law.is_kaplan else f'{size} + {length}'}   90% intervals: "
            f"E {e.low:.2f} to {e.high:.2f}, a {a.low:.2f} to {a.high:.2f}, b {b.low:.2f} to {b.high:.2f}",
            f"Chinchilla, refitted, for this budget: {short(n)} parameters, {short(d)} tokens, "
            f"{chinchilla_loss(n, d):.2f} nats per token of its own web text and vocabulary",
            f"GPT-3's figure 3.1: {gpt3_loss(self.flops):.2f} nats per token of its own; every size read 300B",
        ]
        if self.drift is not None:
            direction = "much" if self.drift > 0 else "little"
            lines.append(
                f"the law of the lower levels, asked about the highest, says {abs(self.drift):.1%} too {direction}: "
                "the intervals allow for it"
            )
        if self.best is self.sizes[-1]:
            lines.append(
                "warning: the best size is the largest that was looked at; a smaller --tune.flops, or a wider stack"
            )
        epochs = self.tokens * self.epochs_per_token
        if epochs > EPOCHS:
            lines.append(
                f"warning: it reads the corpus {epochs:.0f} times; a law of fewer times promises too much there"
            )
        return lines

    def overlay(self) -> dict[str, Any]:
        """Size and length of the target, its schedule as long as that."""
        options = {**self.best.options(), **horizon(self.stack, self.tokens)}
        return self.stack.overlay_to(self.stack.with_(options))

    def figure(self) -> Figure:
        return ladder_figure(self)

    def table(self) -> Table:
        """One row per run."""
        table = Table(title="the ladder", title_justify="left", title_style="bold")
        for name in ("d_model", "layers", "params", "tokens", "FLOPs", "loss", "bits/byte", "the law"):
            table.add_column(name, justify="right", no_wrap=True)
        for run in self.runs:
            size, fitted = run.rung.size, self.law.loss(run.n_params, run.tokens)
            bits = "" if run.bits_per_byte is None else f"{run.bits_per_byte:.3f}"
            counts = (short(size.n_params), short(run.tokens), short(run.rung.flops))
            row = (str(size.d_model), str(size.n_layers), *counts, f"{run.loss:.3f}", bits)
            table.add_row(*row, f"{fitted / run.loss - 1:+.1%}")
        return table

    def to_dict(self) -> dict[str, Any]:
        """What result.json holds."""
        return {
            "flops": self.flops,
            "d_model": self.best.d_model,
            "n_layers": self.best.n_layers,
            "n_params_non_embedding": self.best.n_params,
            "n_params_non_embedding_90": self.n_params_90,
            "max_tokens": self.tokens,
            "drift": self.drift,
            "predicted_loss": asdict(self.predicted),
            "predicted_loss_of_the_stack": asdict(self.predicted_own),
            "bits_per_byte_per_nat": self.bits_per_nat,
            "law": {
                "p": "1/b" if self.law.is_kaplan else "1",
                **{name: asdict(value) for name, value in self.law.numbers().items()},
            },
            "runs": [
                {
                    **{"d_model": run.rung.size.d_model, "n_layers": run.rung.size.n_layers, "tokens": run.tokens},
                    **{"n_params_non_embedding": run.n_params, "flops": run.rung.flops, "loss": run.loss},
                    "bits_per_byte": run.bits_per_byte,
                }
                for run in self.runs
            ],
        }

    def _predicted(self, size: Size, tokens: int) -> Interval:
        """With an interval that allows for as much drift as there was between the highest levels."""
        found, drift = self.law.predicted(size.n_params, tokens), self.drift or 0.0
        return Interval(found.value, found.low / (1 + max(drift, 0.0)), found.high / (1 + min(drift, 0.0)))

    def _in_words(self, loss: Interval) -> str:
        factor, unit = (1.0, "nats per token") if self.bits_per_nat is None else (self.bits_per_nat, "bits per byte")
        return f"{factor * loss.value:.3f} {unit} (90% interval {factor * loss.low:.3f} to {factor * loss.high:.3f})"
