"""What `tune transfer` has found: the target's overlay, whether to trust it, and what it cost."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from gpt_lightning.run.stack import Stack
from gpt_lightning.terminal import short
from gpt_lightning.tune.lr.result import LearningRateResult
from gpt_lightning.tune.sizes import Size
from gpt_lightning.tune.transfer.figure import transfer_figure
from gpt_lightning.tune.transfer.prediction import PredictedLoss, predicted_loss

STABLE = 2.0  # factor by which the best learning rate may differ between widths


@dataclass(frozen=True)
class TunedProxy:
    """A proxy and the search for its learning rate."""

    size: Size
    found: LearningRateResult

    @property
    def lr(self) -> float:
        """The middle of what is believed of its best learning rate."""
        return self.found.found.answer.run.value

    @property
    def loss(self) -> float:
        """The lowest of its longest runs, nats per token."""
        last = self.found.found.rounds[-1]
        return last.means[last.best]

    @property
    def flops(self) -> float:
        """Spent on it."""
        return self.found.tokens * self.size.flops


@dataclass(frozen=True)
class TransferResult:
    """Three tuned proxies, the narrowest first, and the target that they stand for. tokens: of their longest runs."""

    stack: Stack = field(repr=False)
    target: Size
    proxies: list[TunedProxy]
    tokens: int

    @property
    def lr(self) -> float:
        """Of the widest proxy, which is nearest to the target."""
        return self.proxies[-1].found.lr

    @property
    def drift(self) -> float:
        """Factor between the smallest and the largest of the best learning rates."""
        lrs = [proxy.lr for proxy in self.proxies]
        return max(lrs) / min(lrs)

    @property
    def stable(self) -> bool:
        """Whether what is tuned at one width holds at another."""
        return self.drift <= STABLE and all(math.isfinite(proxy.loss) for proxy in self.proxies)

    @property
    def predicted(self) -> PredictedLoss:
        """Loss of the target after `tokens`, nats per token."""
        sizes = [proxy.size.n_params for proxy in self.proxies]
        return predicted_loss(sizes, [proxy.loss for proxy in self.proxies], self.target.n_params)

    @property
    def flops(self) -> float:
        """Spent in all."""
        return sum(proxy.flops for proxy in self.proxies)

    @property
    def flops_share(self) -> float:
        """Of what the widest proxy's search would have cost on the target itself."""
        return self.flops / (self.proxies[-1].found.tokens * self.target.flops)

    @property
    def recommendation(self) -> str:
        gpt = self.target.gpt
        if not self.stable:
            lrs = ", ".join(f"{proxy.lr:.1e} at {proxy.size.d_model}" for proxy in self.proxies)
            return (
                f"FAIL: the best lr moves with the width by a factor of {self.drift:.1f} ({lrs}); do not rely on "
                "tuned.yaml, but tune wider proxies (--tune.widths), or longer (--tune.tokens, --tune.seeds)"
            )
        return f"lr {self.lr:.1e} with {gpt.parametrization}, base_d_model {gpt.base_d_model}"

    @property
    def explanation(self) -> str:
        loss, best = self.predicted, self.proxies[-1]
        return (
            f"predicted loss after {self.tokens:,} tokens: {loss.value:.3f} nats per token (90% interval "
            f"{loss.low:.3f} to {loss.high:.3f}); d_model {best.size.d_model} reached {best.loss:.3f}"
        )

    def notes(self) -> list[str]:
        """What it cost, how stable it is, what the searches warn of."""
        lines = [
            f"{short(self.flops)} FLOPs, {self.flops_share:.0%} of the same search on the target itself, and "
            f"{self.flops / (self.target.flops * self.stack['max_tokens']):.0%} of its run",
            f"the best lr of three widths lies within a factor of {self.drift:.2f}; {STABLE:.0f} is allowed",
        ]
        warned = {(p.size.d_model, note) for p in self.proxies for note in p.found.notes() if "warning: " in note}
        return lines + [f"d_model {width}: {note}" for width, note in sorted(warned)]

    def overlay(self) -> dict[str, Any]:
        """Parametrization, base and learning rate of the target."""
        changed = self.stack.overlay_to(self.stack.with_({**self.target.options(), "model.optim.lr": self.lr}))
        model = changed.setdefault("model", {})
        model.setdefault("optim", {})["lr"] = self.lr
        return changed

    def figure(self) -> Figure:
        return transfer_figure(self)

    def table(self) -> Table:
        """One row per proxy, and the target."""
        table = Table(title="proxies and target", title_justify="left", title_style="bold")
        for name in ("d_model", "layers", "params", "FLOPs\nper token", "best lr", "90% interval", "loss"):
            table.add_column(name, justify="right", no_wrap=True)
        for proxy in self.proxies:
            run = proxy.found.found.answer.run
            interval = f"{run.low:.1e} to {run.high:.1e}"
            table.add_row(*_size(proxy.size), f"{proxy.lr:.1e}", interval, f"{proxy.loss:.3f}")
        table.add_row(*_size(self.target), f"{self.lr:.1e}", "predicted", f"{self.predicted.value:.3f}", style="bold")
        return table

    def to_dict(self) -> dict[str, Any]:
        """What result.json holds."""
        return {
            "lr": self.lr,
            "drift": self.drift,
            "stable": self.stable,
            "predicted_loss": asdict(self.predicted),
            "tokens": self.tokens,
            "flops": self.flops,
            "flops_share": self.flops_share,
            "proxies": [
                {
                    **{"d_model": proxy.size.d_model, "n_layers": proxy.size.n_layers, "loss": proxy.loss},
                    **{"n_params_non_embedding": proxy.size.n_params, "flops": proxy.flops, **proxy.found.to_dict()},
                }
                for proxy in self.proxies
            ],
        }


def _size(size: Size) -> tuple[str, str, str, str]:
    return str(size.d_model), str(size.n_layers), short(size.n_params), short(size.flops)
