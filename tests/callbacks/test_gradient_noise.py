"""The gradient noise scale is that of exact per-example gradients, however the batch is cut, clipped or scaled."""

import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils.data import DataLoader

from gpt_lightning.callbacks.gradient_noise import (
    GradientNoiseScale,
    critical_batch,
    loss_scales,
    noise_estimates,
    norm_squares,
)
from gpt_lightning.model import norm
from gpt_lightning.model.gpt import GPTConfig
from gpt_lightning.module import GPTModule
from gpt_lightning.optim.config import OptimConfig
from tests.fixtures import TINY, arguments, error_lines, fit_in_process, write_text

N, T = 512, 8
FSDP2 = '{"class_path": "gpt_lightning.run.fsdp2.FSDP2Strategy"}'


def build(**structure) -> GPTModule:
    """A small model that hardly moves: a learning rate of 1e-12."""
    seed_everything(1, verbose=False)
    gpt = GPTConfig(vocab_size=19, context_length=T, n_layers=2, n_heads=2, d_model=16, **structure)
    return GPTModule(gpt=gpt, optim=OptimConfig(lr=1e-12, weight_decay=0.0))


def samples(n: int = N) -> torch.Tensor:
    """Sequences with something to learn: one token comes more often, so that the gradient has a direction."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(19, (4096, T + 1), generator=random)
    return torch.where(torch.rand(4096, T + 1, generator=random) < 0.3, torch.tensor(3), tokens)[:n]


def measure(module: GPTModule, callback: GradientNoiseScale, b: int, k: int, n: int = N, **options):
    """Train once over n samples, in steps of k micro-batches of b."""
    batches = [(batch[:, :-1], batch[:, 1:]) for batch in samples(n).split(b)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"accelerator": "cpu", "max_epochs": 1, "enable_model_summary": False, **quiet, **options}
    trainer = Trainer(accumulate_grad_batches=k, callbacks=[callback], **options)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return callback


def per_example_gradients(module: GPTModule, tokens: torch.Tensor, only: tuple[str, ...] = ("",)) -> torch.Tensor:
    """(N, P), by torch.func on plain cross entropy; `only` keeps parameters with one of these in their name."""
    gpt = module.gpt

    def loss(parameters: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(gpt, parameters, (sample[None, :-1],))[0], sample[1:])

    parameters = {name: p.detach() for name, p in gpt.named_parameters()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm, "training_on_cpu", lambda x: False)  # torch's own RMSNorm, which torch.func knows
        gradients = vmap(grad(loss), (None, 0))(parameters, tokens)
    return torch.cat([g.flatten(1) for name, g in gradients.items() if any(part in name for part in only)], 1)


def exact(gradients: torch.Tensor) -> tuple[float, float]:
    """(|G|^2, S) of all examples: the square of their mean without its noise, and the trace of their covariance."""
    noise = gradients.var(0).sum()
    return (gradients.mean(0).square().sum() - noise / len(gradients)).item(), noise.item()


def measured(callback: GradientNoiseScale) -> tuple[float, float]:
    return tuple(np.mean(callback.estimates, axis=0))


@pytest.mark.slow
@pytest.mark.parametrize(("b", "k", "n"), [(1, 16, 512), (4, 8, 2048), (16, 4, 4096)])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_both_estimates_are_those_of_exact_per_example_gradients(b, k, n, tied):
    module = build(tie_embedding=tied)
    callback = measure(module, GradientNoiseScale(1), b, k, n)
    square, noise = exact(per_example_gradients(module, samples(n)))
    assert len(callback.estimates) == n // (b * k)
    assert measured(callback) == pytest.approx((square, noise), rel=0.05)
    assert critical_batch(callback.estimates, T).tokens == pytest.approx(T * noise / square, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "rel"), [({"gradient_clip_val": 1e-3}, 1e-6), ({"precision": "bf16-mixed"}, 0.02)], ids=["clip", "bf16"]
)
def test_neither_clipping_nor_bf16_changes_it(options, rel):
    plain, other = (measure(build(), GradientNoiseScale(1), 4, 8, **more) for more in ({}, options))
    assert np.array(other.estimates) == pytest.approx(np.array(plain.estimates), rel=max(rel, 1e-6), abs=1e-3 * rel)
    assert measured(other) == pytest.approx(measured(plain), rel=rel)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
def test_a_scaled_loss_is_divided_out(fused, monkeypatch):
    """float16's GradScaler, whose gradients Lightning unscales before the hook for all but fused optimizers."""
    from lightning.pytorch.plugins import MixedPrecision

    plain = measure(build(), GradientNoiseScale(1), 4, 8)
    module, plugin = build(), MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)  # only the scale is tested here
    module.configure_optimizers = lambda: torch.optim.AdamW(module.parameters(), lr=1e-12, fused=fused)
    module.configure_gradient_clipping = lambda *_, **__: None
    scaled = measure(module, GradientNoiseScale(1), 4, 8, plugins=[plugin])
    assert measured(scaled) == pytest.approx(measured(plain), rel=1e-4)


def test_without_a_scaler_there_is_no_scale():
    assert loss_scales(object(), object()) == (1.0, 1.0)


@pytest.mark.parametrize("settings", [{"bias": True}, {"bias": False}, {"norm": "rms", "qk_norm": True}], ids=str)
def test_a_single_micro_batch_is_measured_by_its_norms(settings):
    module = build(**settings)
    callback = measure(module, GradientNoiseScale(1), 32, 1)
    gradients = per_example_gradients(module, samples(), only=("ln_", "_norm"))
    windows = gradients.split(32)
    expected = []
    for window in windows:  # the same estimator, from exact gradients
        expected.append(
            noise_estimates(window.square().sum(1).mean().item(), window.mean(0).square().sum().item(), 1, 32)
        )
    assert np.array(callback.estimates) == pytest.approx(np.array(expected), rel=1e-3, abs=1e-7)
    assert measured(callback) == pytest.approx(exact(gradients), rel=0.05)


@pytest.mark.parametrize("layer", [torch.nn.LayerNorm(6), norm.RMSNorm(6)], ids=repr)
def test_norm_squares_are_those_of_autograd_per_example(layer):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, 6, generator=random)
    gradient = torch.randn(5, 7, 6, generator=random)
    total = 0.0
    for i in range(5):
        parts = torch.autograd.grad(layer(x[i]), list(layer.parameters()), gradient[i])
        total += sum(part.square().sum().item() for part in parts)
    assert norm_squares(layer, x, gradient).item() == pytest.approx(total, rel=1e-5)


def test_steps_that_are_not_measured_have_no_hooks():
    seen = []

    class Watched(GradientNoiseScale):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            hooks = sum(len(p._backward_hooks or ()) for p in pl_module.parameters())
            seen.append(hooks)

    callback = measure(build(), Watched(interval_steps=4), 1, 8, limit_train_batches=64)
    assert [i for i, hooks in enumerate(seen) if hooks] == [0, 1, 2, 3, 4, 5, 6, 32, 33, 34, 35, 36, 37, 38]
    assert len(callback.estimates) == 2


def test_the_moving_averages_smooth_numerator_and_denominator_and_survive_a_checkpoint():
    callback = GradientNoiseScale(1, decay=0.9)
    callback._shape = torch.Size((2, 100))
    pairs = [(1.0, 4.0), (3.0, 2.0), (math.inf, math.nan), (2.0, 8.0)]
    callback._pending = [torch.tensor(pair) for pair in pairs[:2]]
    copy = GradientNoiseScale(1, decay=0.9)
    copy.load_state_dict(callback.state_dict())
    for each in (callback, copy):
        each._pending = [torch.tensor(pair) for pair in pairs[2:]]
        square = (0.81 * 1 + 0.9 * 3 + 2) / (0.81 + 0.9 + 1)  # a skipped update leaves no trace
        noise = (0.81 * 4 + 0.9 * 2 + 8) / (0.81 + 0.9 + 1)
        expected = {"gradient_noise_scale": noise / square, "critical_batch_tokens": 100 * noise / square}
        assert each.metrics() == pytest.approx(expected)
        assert each.estimates == [(1.0, 4.0), (3.0, 2.0), (2.0, 8.0)]


@pytest.mark.slow
def test_the_interval_holds_the_truth_nine_times_in_ten():
    random, held = np.random.default_rng(1), 0
    for _ in range(60):
        pairs = list(zip(random.normal(2, 1, 100), random.normal(6, 3, 100), strict=True))
        found = critical_batch(pairs, 10)
        assert found == critical_batch(pairs, 10)
        held += found.low <= 30 <= found.high
    assert 48 <= held <= 60
    assert critical_batch([(-1.0, 1.0), (0.5, 1.0)], 10).tokens == math.inf
    with pytest.raises(ValueError, match="at least 2"):
        critical_batch([(1.0, 1.0)], 10)


@pytest.mark.slow
def test_a_run_reports_it_and_goes_on_exactly_after_a_stop(tmp_path, monkeypatch):
    import gpt_lightning as gl

    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    options = {**TINY, "data.corpus": "text.txt", "gradient_noise.interval_steps": 2, "model.schedule.name": "constant"}
    whole = gl.run([], {**options, "run_dir": "whole"})
    gl.run([], {**options, "run_dir": "parts", "max_tokens": 512})
    again = gl.run([tmp_path / "parts" / "config.yaml"], {"if_exists": "resume", "max_tokens": 1024})
    for key in ("gradient_noise_scale", "critical_batch_tokens", "val/loss"):
        assert again[key] == whole[key]
    assert whole["critical_batch_tokens"] == pytest.approx(16 * whole["gradient_noise_scale"])
    without = gl.run([], {**options, "run_dir": "without", "gradient_noise.interval_steps": 0})
    assert without["val/loss"] == whole["val/loss"] and "gradient_noise_scale" not in without


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    """Micro-batches of one sequence, so that both cut the step into the same pieces."""
    write_text(tmp_path / "text.txt")
    options = {"data.corpus": "text.txt", "model.gpt.dropout": 0.0, "data.micro_batch_size": 1, "max_tokens": 512}
    options |= {"data.batch_tokens": 128, "gradient_noise.interval_steps": 1, "gradient_noise.decay": 0.5}
    columns = {}
    for name, more in {"one": {}, "ddp": {"trainer.strategy": "ddp", "trainer.devices": 2}}.items():
        result = fit_in_process(tmp_path, {**options, **more, "run_dir": name})
        assert result.returncode == 0, result.stderr
        with (tmp_path / name / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
        columns[name] = [float(row["gradient_noise_scale"]) for row in rows]
    assert len(columns["one"]) == 4
    assert columns["ddp"] == pytest.approx(columns["one"], rel=1e-3)


@pytest.mark.parametrize("strategy", [ModelParallelStrategy, FSDPStrategy])
def test_the_callback_itself_refuses_gradients_in_pieces(strategy):
    with pytest.raises(ValueError, match=f"does not work with {strategy.__name__}"):
        GradientNoiseScale(1).setup(SimpleNamespace(strategy=strategy()), None, "fit")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trainer.strategy": FSDP2, "trainer.devices": 1}, ["gradient_noise", "FSDP2Strategy", "ddp"]),
        ({"data.micro_batch_size": 1, "data.batch_tokens": 16}, ["gradient_noise", "one sequence", "batch_tokens"]),
        ({"data.micro_batch_size": 4, "model.compile": True}, ["gradient_noise", "model.compile"]),
        ({"gradient_noise.interval_steps": -1}, ["gradient_noise.interval_steps", "-1"]),
        ({"gradient_noise.decay": 1}, ["gradient_noise.decay", "1"]),
    ],
    ids=["sharded", "one sequence", "compiled", "negative", "decay"],
)
def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path, monkeypatch, capsys, options, words):
    from gpt_lightning import cli

    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    options = {"data.corpus": "text.txt", "gradient_noise.interval_steps": 1, "run_dir": "runs/bad", **options}
    assert cli.main(["fit", *arguments(options)]) == 2
    errors = error_lines(capsys.readouterr().err)
    assert len(errors) == 1 and all(word in errors[0] for word in words), errors
    assert not (tmp_path / "runs").exists()
