"""What a resumed run is told is what it does: lr, decay, betas and schedule are those of its own config.yaml."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

import gpt_lightning as gl
from gpt_lightning import cli
from gpt_lightning.checkpoint import load_gpt
from gpt_lightning.report.metrics_csv import read_metrics
from tests.fixtures import TINY, build, read, run_in, write_text

OPTIONS = {
    **TINY,
    "data.corpus": "text.txt",
    "run_dir": "run",
    "max_tokens": 256,
    "model.gpt.dropout": 0.0,
    "model.schedule.name": "constant",
    "model.optim.eps": 1e-6,  # above the gradient of key biases, which is rounding alone
    "trainer.gradient_clip_val": 0,
}
STEP = 64  # tokens
CHANGES = {
    "lr": {"model.optim.lr": 0.003},
    "lr_ratios": {"model.optim.lr_ratios": {"embedding": 4.0, "vector": 0.5}},
    "betas": {"model.optim.betas": [0.5, 0.8]},
    "eps": {"model.optim.eps": 1e-3},
    "weight_decay": {"model.optim.weight_decay": 3.0},
    "decay_embeddings": {"model.optim.decay_embeddings": False},
    "schedule": {"model.schedule.name": "linear", "model.schedule.min_lr_ratio": 0.0},
    "warm-up": {"model.schedule.warmup_tokens": 1000},
    "clipping": {"trainer.gradient_clip_val": 1e-3},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    return tmp_path


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The folder of the run that is resumed, and of its text."""
    return run_in(tmp_path_factory.mktemp("stopped"), OPTIONS)


def one_step_of_plain_adamw(changes: dict) -> dict[str, torch.Tensor]:
    """The weights after the checkpoint and one step more, by torch's AdamW with the settings changed."""
    option = {**OPTIONS, **changes}.get
    saved, gpt = read(Path("run/checkpoints/last.ckpt")), load_gpt("run/checkpoints/last.ckpt")
    lr = option("model.optim.lr")
    if option("model.schedule.name") == "linear":
        lr *= 1 - (256 + STEP / 2) / (256 + STEP)
    lr *= min((256 + STEP / 2) / option("model.schedule.warmup_tokens", 1), 1)
    ratios, decay = option("model.optim.lr_ratios", {}), option("model.optim.weight_decay", 0.1)
    undecayed = {"vector"} if option("model.optim.decay_embeddings", True) else {"vector", "embedding"}
    roles = [facts.role.removeprefix("final_") for facts in gpt.facts().values()]
    groups = [
        {"params": [p], "lr": lr * ratios.get(role, 1.0), "weight_decay": 0.0 if role in undecayed else decay}
        for p, role in zip(gpt.parameters(), roles, strict=True)
    ]
    optimizer = torch.optim.AdamW(
        groups, betas=option("model.optim.betas", (0.9, 0.95)), eps=option("model.optim.eps", 1e-8)
    )
    for number, p in enumerate(gpt.parameters()):
        optimizer.state[p] = {**saved["optimizer_states"][0]["state"][number]}
    data = build(OPTIONS).data
    data.load_state_dict(saved["CorpusDataModule"])
    batches = iter(data.train_dataloader())
    tokens, targets = (torch.cat(part) for part in zip(*(next(batches) for _ in range(2)), strict=True))
    F.cross_entropy(gpt(tokens).flatten(0, 1), targets.flatten()).backward()
    if option("trainer.gradient_clip_val"):
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), option("trainer.gradient_clip_val"))
    optimizer.step()
    return {name: p.detach() for name, p in gpt.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_the_first_step_after_a_resume_has_the_settings_that_config_yaml_tells(stopped, folder, name):
    shutil.copytree(stopped, folder, dirs_exist_ok=True)
    expected, unchanged = one_step_of_plain_adamw(CHANGES[name]), one_step_of_plain_adamw({})
    again = {**CHANGES[name], "if_exists": "resume", "max_tokens": 256 + STEP}
    gl.run(["run/config.yaml"], again)
    found = load_gpt("run/checkpoints/last.ckpt").state_dict()
    error = max((found[n] - expected[n]).abs().max().item() for n in expected)
    change = max((unchanged[n] - expected[n]).abs().max().item() for n in expected)
    assert error < 2e-6 < 1e-5 < change
    told = yaml.safe_load(Path("run/config.yaml").read_text())
    for option, value in CHANGES[name].items():
        told_value = told
        for key in option.split("."):
            told_value = told_value[key]
        assert told_value == value


@pytest.mark.slow
def test_muons_momentum_is_that_of_the_resumed_run_and_its_name_is_refused(capsys):
    gl.run([], {**OPTIONS, "model.optim.name": "muon"})
    gl.run(["run/config.yaml"], {"if_exists": "resume", "max_tokens": 320, "model.optim.momentum": 0.5})
    groups = read(Path("run/checkpoints/last.ckpt"))["optimizer_states"][0]["param_groups"]
    assert {group["momentum"] for group in groups if group["algorithm"] == "muon"} == {0.5}
    flags = ["--config=run/config.yaml", "--if_exists=resume", "--max_tokens=384", "--model.optim.name=adamw"]
    assert cli.main(["fit", *flags]) == 2
    assert "updated by match_rms_adamw, here by adamw (model.optim)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_tokens": 90}, [1 - 32 / 90, 1 - 77 / 90]),  # the second step goes past the horizon: (64 + 90) / 2
        ({"max_tokens": 129}, [1 - 32 / 129, 1 - 96 / 129, 1 - 128.5 / 129]),
        ({"max_tokens": 128, "model.schedule.warmup_tokens": 128}, [0.25, 0.75]),
        ({"max_tokens": 1, "model.schedule.warmup_tokens": 128}, [0.5 / 128]),
    ],
    ids=["past the horizon", "by one token", "warm-up", "one token"],
)
def test_no_step_has_a_learning_rate_of_0(options, expected):
    linear = {"model.schedule.name": "linear", "model.schedule.min_lr_ratio": 0.0}
    gl.run([], {**OPTIONS, **linear, **options})
    found = list(read_metrics("run")["train/lr"].dropna())
    assert found == pytest.approx([0.01 * multiplier for multiplier in expected]) and min(found) > 0
