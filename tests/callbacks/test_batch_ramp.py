"""The batch grows as the ramp says, every step has the gradient of its own samples alone, and nothing else notices."""

import csv
import os
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn import functional as F

import gpt_lightning as gl
from gpt_lightning import cli
from gpt_lightning.callbacks.batch_ramp import BatchRamp, check_ramp, ramp_accumulation
from tests.fixtures import TINY, arguments, assert_equal, build, error_lines, fit_in_process, read, run_in
from tests.run.test_resume import assert_same_run

pytestmark = pytest.mark.usefixtures("folder")

# Micro-steps of 32 tokens, 8 of them in a full step; by hand, with a ramp of 1 + 7 tokens / 1024 micro-steps:
STEPS = [1] * 6 + [2] * 5 + [4] * 4 + [8] * 2
RAMP = {
    "data.corpus": "text.txt",
    "run_dir": "run",
    "max_tokens": 1536,
    "val_interval_tokens": 256,
    "data.batch_tokens": 256,
    "batch_ramp.start_batch_tokens": 32,
    "batch_ramp.ramp_tokens": 1024,
}
SCALED = {"batch_ramp.lr_rule": "sqrt", "batch_ramp.scale_beta2": True}


class StopAt(Callback):
    """Ask the run to stop, as a scheduler would, at the end of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            os.kill(os.getpid(), signal.SIGTERM)


class Recorder(Callback):
    """Of every step: its micro-batches, and how far its gradient is from that of their mean loss, by plain autograd."""

    def __init__(self):
        self.batches, self.steps, self.errors, self.settings = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        tokens, targets = (torch.cat(part) for part in zip(*self.batches, strict=True))
        parameters = list(pl_module.gpt.parameters())
        loss = F.cross_entropy(pl_module.gpt(tokens).flatten(0, 1), targets.flatten())
        expected = torch.autograd.grad(loss, parameters)
        pairs = zip(parameters, expected, strict=True)
        self.errors.append(max(((p.grad - g).norm() / g.norm()).item() for p, g in pairs))
        self.settings.append([(group["betas"], group["weight_decay"]) for group in optimizer.param_groups])
        self.steps.append(len(self.batches))
        self.batches = []


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "run" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_ramp_by_hand():
    options = {"ramp_tokens": 1000, "start": 2, "full": 12}
    by_hand = [(0, 0, 2), (99, 0, 2), (100, 3, 3), (100, 4, 2), (200, 8, 4), (400, 12, 6), (999, 12, 6), (1000, 12, 12)]
    for tokens, batch_idx, expected in by_hand:
        assert ramp_accumulation(tokens, batch_idx=batch_idx, **options) == expected, (tokens, batch_idx)
    assert ramp_accumulation(0, ramp_tokens=1000, start=1.9, full=8) == 1
    assert ramp_accumulation(1000, ramp_tokens=1000, start=8, full=8, batch_idx=6) == 2  # resumed on other devices


@pytest.mark.parametrize("full", [1, 2, 7, 12, 36, 64])
def test_it_grows_below_the_line_and_every_full_batch_ends_a_step(full):
    ramp_tokens, at, ends, sizes = 1000 * full, 0, set(), []
    while at * 50 < 1.2 * ramp_tokens:
        n = ramp_accumulation(at * 50, ramp_tokens, 1, full, at)
        assert full % n == 0 and n <= max(1 + (full - 1) * at * 50 / ramp_tokens, 1) + 1e-9 or n == full
        at, sizes = at + n, [*sizes, n]
        ends.add(at)
    assert sizes == sorted(sizes) and sizes[-1] == full
    assert set(range(full, at, full)) <= ends


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, SCALED], ids=["plain", "scaled"])
def test_every_step_has_the_gradient_learning_rate_and_betas_of_its_own_samples(folder, options):
    schedule = {"model.schedule.name": "linear", "model.schedule.min_lr_ratio": 0.0, "model.gpt.dropout": 0.0}
    built, recorder = build({**RAMP, **options, **schedule}), Recorder()
    built.trainer.callbacks.append(recorder)
    built.trainer.fit(built.module, built.data)
    assert recorder.steps == STEPS
    assert max(recorder.errors) < 1e-4
    lrs, tokens = [], 0
    for n in STEPS:
        factor = (n / 8) ** 0.5 if options else 1.0
        lrs.append(0.01 * factor * (1 - (tokens + n * 32 / 2) / 1536))
        tokens += n * 32
    assert [float(row["train/lr"]) for row in rows(folder) if row["train/lr"]] == pytest.approx(lrs)
    for n, groups in zip(STEPS, recorder.settings, strict=True):
        beta2, decay = (0.95 ** (n / 8), 0.1 * (n / 8) ** 0.5) if options else (0.95, 0.1)
        assert all(betas == pytest.approx((0.9, beta2)) for betas, _ in groups)
        assert {round(found, 9) for _, found in groups} == {0.0, round(decay, 9)}, "vectors have none"
    groups = read(folder / "run" / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert all(tuple(group["betas"]) == (0.9, 0.95) and group["weight_decay"] in (0, 0.1) for group in groups)
    assert built.trainer.accumulate_grad_batches == 8


@pytest.mark.slow
def test_validations_and_checkpoints_end_a_step_and_the_run_ends_once(folder, capsys):
    result = gl.run([], {**TINY, **RAMP, "max_tokens": 1500})  # the last step goes past it
    steps = [int(row["tokens"]) for row in rows(folder) if row["train/loss"]]
    assert steps == [32 * sum(STEPS[: i + 1]) for i in range(len(STEPS))]
    assert [int(row["tokens"]) for row in rows(folder) if row["val/loss"]] == [256, 512, 768, 1024, 1280, 1536]
    assert result["tokens"] == 1536 and result["step"] == len(STEPS)
    assert read(folder / "run" / "checkpoints" / "last.ckpt")["tokens_seen"] == 1536
    assert "steps  of 32 growing over 1,024 tokens to 256 tokens = 8 x 2 sequences" in capsys.readouterr().out


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """The folder of the whole run and of its text."""
    return run_in(tmp_path_factory.mktemp("whole"), {**TINY, **RAMP, **SCALED, "val_interval_tokens": 768})


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 6, 11, 14])  # 6 and 11: right before the batch grows
def test_a_run_stopped_in_mid_ramp_goes_on_bit_for_bit(uninterrupted, folder, step):
    options = {**TINY, **RAMP, **SCALED, "val_interval_tokens": 768}
    stop = f'[{{"class_path": "tests.callbacks.test_batch_ramp.StopAt", "init_args": {{"step": {step}}}}}]'
    with pytest.raises(SystemExit):
        gl.run([], {**options, "trainer.callbacks": stop})
    saved = read(folder / "run" / "checkpoints" / "last.ckpt")
    assert saved["tokens_seen"] == 32 * sum(STEPS[:step])
    gl.run([], {**options, "if_exists": "resume"})
    assert_same_run(folder, uninterrupted)
    parts, whole = (read(path / "run" / "checkpoints" / "last.ckpt") for path in (folder, uninterrupted))
    a, b = (checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"] for checkpoint in (parts, whole))
    assert_equal(a, b, "counters")


def test_groups_without_betas_are_left_alone():
    class Holder:
        accumulate_grad_batches = 2
        param_groups = [{"lr": 1.0, "betas": (0.9, 0.95)}, {"lr": 2.0, "momentum": 0.95, "weight_decay": 0.1}]
        optimizers = property(lambda self: [self])

    ramp, holder = BatchRamp(32, 1024, lr_rule="linear", scale_beta2=True), Holder()
    ramp._full = 8
    ramp.on_before_optimizer_step(holder, None, holder)
    assert holder.param_groups == [
        {"lr": 0.25, "betas": (0.9, 0.95**0.25)},
        {"lr": 0.5, "momentum": 0.95, "weight_decay": 0.1},
    ]
    ramp.on_train_batch_end(holder, None, None, None, 0)
    assert holder.param_groups == [
        {"lr": 0.25, "betas": (0.9, 0.95)},
        {"lr": 0.5, "momentum": 0.95, "weight_decay": 0.1},
    ]


@pytest.mark.slow
def test_the_noise_scale_is_measured_while_the_batch_grows(folder):
    gl.run([], {**TINY, **RAMP, "gradient_noise.interval_steps": 1})
    found = [row["tokens"] for row in rows(folder) if row["gradient_noise_scale"]]
    assert len(found) > 4


@pytest.mark.slow
def test_two_processes_ramp_as_one_does(folder):
    columns = {}
    for name, more in {"one": {}, "ddp": {"trainer.strategy": "ddp", "trainer.devices": 2}}.items():
        (folder / name).mkdir()
        options = {**RAMP, **SCALED, "batch_ramp.start_batch_tokens": 64, "model.gpt.dropout": 0.0, **more}
        result = fit_in_process(folder, {**options, "run_dir": f"{name}/run"})
        assert result.returncode == 0, result.stderr
        found = [row for row in rows(folder / name) if row["train/loss"]]
        columns[name] = [[float(row[key]) for row in found] for key in ("tokens", "train/lr", "train/loss")]
    assert columns["ddp"][:2] == columns["one"][:2]
    assert columns["ddp"][2] == pytest.approx(columns["one"][2], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_ramp.start_batch_tokens": 16}, ["start_batch_tokens is 16", "32", "micro_batch_size"]),
        ({"batch_ramp.start_batch_tokens": 512}, ["start_batch_tokens is 512", "256"]),
        ({"batch_ramp.start_batch_tokens": 0}, ["batch_ramp.start_batch_tokens is 0"]),
        ({"batch_ramp.ramp_tokens": -1}, ["batch_ramp.ramp_tokens is -1"]),
        ({"batch_ramp.lr_rule": "cubic"}, ["lr_rule", "cubic"]),
        ({"batch_ramp.ramp": 1}, ["did you mean batch_ramp.ramp_tokens"]),
    ],
    ids=["below a micro-step", "above the batch", "no start", "negative", "unknown rule", "misspelt"],
)
def test_a_ramp_that_cannot_be_is_refused_in_one_line(folder, capsys, options, words):
    assert cli.main(["fit", *arguments({**RAMP, **options, "run_dir": "runs/bad"})]) == 2
    errors = error_lines(capsys.readouterr().err)
    assert len(errors) == 1 and all(word in errors[0] for word in words), errors
    assert not (folder / "runs").exists()


def test_more_devices_need_a_larger_start():
    check_ramp(64, micro_step_tokens=64, batch_tokens=256)
    with pytest.raises(ValueError, match="at least micro_batch_size x context_length x devices = 64"):
        check_ramp(32, micro_step_tokens=64, batch_tokens=256)
