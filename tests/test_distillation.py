"""A loss with a teacher: against whole logits and torch's own divergence; in runs that stop, go on and are scored."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import gpt_lightning as gl
from gpt_lightning.checkpoint import gpt_config_to_dict, write_checkpoint
from gpt_lightning.cli import main
from gpt_lightning.data.characters import CharacterTokenizer
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.distillation import Distillation
from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.loss import CrossEntropy, MicroStep
from gpt_lightning.model.readout import Readout, capped
from gpt_lightning.report.metrics_csv import read_metrics
from tests.fixtures import TINY, arguments, assert_equal, error_lines, read, run_in

V = 23
TEACHER = GPTConfig(vocab_size=V, context_length=9, n_layers=1, n_heads=1, d_model=8, tie_embedding=False)
MODERN = replace(TEACHER, tie_embedding=True, positions="rotary", norm="rms", mlp="relu2", logit_softcap=4.0)


def saved(path: Path, config: GPTConfig = TEACHER) -> GPT:
    """A model with random weights, large enough to prefer some tokens, and its checkpoint."""
    torch.manual_seed(1)
    gpt = GPT(config)
    with torch.no_grad():
        gpt.readout.weight.mul_(50)
    state = {f"gpt.{name}": value for name, value in gpt.state_dict().items()}
    write_checkpoint({"gpt_config": gpt_config_to_dict(config), "state_dict": state}, path)
    return gpt.eval()


def micro_step(softcap: float | None = None, dtype=torch.float64) -> MicroStep:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, 12, dtype=torch.float64, generator=random).to(dtype).requires_grad_()
    weight = torch.randn(V, 12, dtype=torch.float64, generator=random).to(dtype).requires_grad_()
    ids = torch.randint(0, V, (3, 8), generator=random)
    targets = ids[:, 1:].clone()
    targets[1, 3:] = targets[2, 0] = -100
    return MicroStep(hidden, Readout(weight, softcap), ids[:, :-1], targets, progress=0.0)


@pytest.mark.parametrize("chunk_tokens", [1, 8, 1000])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("share", "temperature"), [(0.5, 1.0), (0.3, 2.5), (1.0, 0.7), (0.0, 1.0)])
@pytest.mark.parametrize("teacher", [TEACHER, MODERN], ids=["gpt-3", "modern"])
def test_value_and_gradients_are_those_of_whole_logits(tmp_path, share, temperature, teacher, softcap, chunk_tokens):
    gpt, step = saved(tmp_path / "teacher.ckpt", teacher).double(), micro_step(softcap)
    logits, counts = capped(step.hidden @ step.readout.weight.T, softcap), step.targets != -100
    p = (logits / temperature).log_softmax(-1)[counts]
    q = (gpt(step.tokens).detach() / temperature).log_softmax(-1)[counts]
    nats = F.cross_entropy(logits.mT, step.targets, reduction="sum")
    expected = (1 - share) * nats + share * temperature**2 * F.kl_div(p, q, reduction="sum", log_target=True)
    total, count = Distillation(str(tmp_path / "teacher.ckpt"), share, temperature, chunk_tokens)(step)
    assert count == counts.sum()
    torch.testing.assert_close(total, expected)
    inputs = step.hidden, step.readout.weight
    torch.testing.assert_close(torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs))


def test_the_teacher_sees_the_documents_of_a_row_as_the_student_does(tmp_path):
    saved(tmp_path / "teacher.ckpt")
    loss, step = Distillation(str(tmp_path / "teacher.ckpt"), share=1.0), micro_step()
    targets = torch.full_like(step.targets, -100)
    targets[:, 4:] = step.targets[:, 4:]  # of the second document
    positions = torch.tensor([0, 1, 2, 3, 0, 1, 2]).expand(3, 7)
    whole = loss(replace(step, targets=targets, positions=positions))[0]
    alone = loss(MicroStep(step.hidden[:, 4:], step.readout, step.tokens[:, 4:], step.targets[:, 4:], 0.0))[0]
    torch.testing.assert_close(whole, alone)
    assert not torch.isclose(loss(replace(step, targets=targets))[0], alone)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it_and_half_of_the_cross_entropy(tmp_path):
    gpt = saved(tmp_path / "teacher.ckpt")
    tokens, targets = micro_step().tokens, micro_step().targets
    step = MicroStep(gpt.hidden_states(tokens), gpt.readout, tokens, targets, 0.0)
    loss = Distillation(str(tmp_path / "teacher.ckpt"))
    torch.testing.assert_close(loss(step)[0], CrossEntropy()(step)[0] / 2)
    loss.share = 1.0
    step = replace(step, hidden=step.hidden.detach().requires_grad_())
    (gradient,) = torch.autograd.grad(loss(step)[0], step.hidden)
    assert gradient.abs().max() < 1e-4


def test_under_bf16_autocast_it_is_near_to_float64_and_the_teacher_has_neither_gradients_nor_a_place_in_the_loss(
    tmp_path,
):
    saved(tmp_path / "teacher.ckpt")
    loss = Distillation(str(tmp_path / "teacher.ckpt"), temperature=2.0)
    exact_step, step = micro_step(2.0), micro_step(2.0, torch.float32)
    exact = loss(exact_step)[0]
    with torch.autocast("cpu", torch.bfloat16):
        total = loss(step)[0]
    assert total.item() == pytest.approx(exact.item(), rel=1e-2)
    for ours, right in zip(
        torch.autograd.grad(total, (step.hidden, step.readout.weight)),
        torch.autograd.grad(exact, (exact_step.hidden, exact_step.readout.weight)),
        strict=True,
    ):
        assert ours.dtype == torch.float32 and (ours - right).norm() < 2e-2 * right.norm()
    assert not list(loss.parameters()) and not loss.state_dict() and not list(loss.children())
    assert not any(p.requires_grad for p in loss.teacher().parameters())


OPTIONS = {"data.corpus": "text.txt", "max_tokens": 256, "model.schedule.name": "constant"}
SMALLER = {"model.gpt.d_model": 8, "model.gpt.n_heads": 1, "model.gpt.n_layers": 1, "run_dir": "teacher"}
TAUGHT = {"model.loss": "Distillation", "model.loss.teacher": "teacher", "model.loss.share": 0.7}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a teacher and the text that it learned from."""
    return run_in(tmp_path_factory.mktemp("taught"), {**TINY, **OPTIONS, **SMALLER})


@pytest.fixture
def taught(trained, monkeypatch, tmp_path) -> Path:
    """A working directory with links to them."""
    for name in ("text.txt", "corpora", "teacher"):
        (tmp_path / name).symlink_to(trained / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_run_with_a_teacher_goes_on_bit_for_bit_and_is_scored_by_cross_entropy(taught):
    options = {**TINY, **OPTIONS, **TAUGHT}
    gl.run([], {**options, "run_dir": "whole"})
    gl.run([], {**options, "run_dir": "run", "max_tokens": 128})
    gl.run(["run/config.yaml"], {"if_exists": "resume", "max_tokens": 256})
    whole, resumed = (read(Path(name, "checkpoints", "last.ckpt")) for name in ("whole", "run"))
    for key in ("state_dict", "optimizer_states", "tokens_seen"):
        assert_equal(whole[key], resumed[key], key)
    for column in ("train/loss", "train/grad_norm"):
        assert list(read_metrics("run")[column].dropna()) == list(read_metrics("whole")[column].dropna())
    gl.run([], {**TINY, **OPTIONS, "run_dir": "plain"})
    plain = read(Path("plain/checkpoints/last.ckpt"))
    assert list(whole["state_dict"]) == list(plain["state_dict"]) and whole["loss"] == {}
    assert not torch.equal(whole["state_dict"]["gpt.wte.weight"], plain["state_dict"]["gpt.wte.weight"])
    still = {"model.optim.lr": 1e-12, "max_tokens": 64}
    scores = [
        gl.run([], {**TINY, **OPTIONS, **loss, **still, "run_dir": f"still{i}"}) for i, loss in enumerate(({}, TAUGHT))
    ]
    assert scores[0]["val/loss"] == pytest.approx(scores[1]["val/loss"], rel=1e-6)
    assert "train/bits_per_byte" not in read_metrics("still1")  # it is not in nats


def other_vocabulary(folder: Path) -> None:
    saved(folder / "other.ckpt")


def other_tokenizer(folder: Path) -> None:
    """Of as many ids."""
    (folder / "other" / "checkpoints").mkdir(parents=True)
    n = Tokenizer.from_file("teacher/tokenizer.json").vocab_size
    saved(folder / "other" / "checkpoints" / "last.ckpt", replace(TEACHER, vocab_size=n, context_length=16))
    CharacterTokenizer({chr(i): i for i in range(n)}).save(folder / "other" / "tokenizer.json")


def own_block(folder: Path) -> None:
    (folder / "evil.py").write_text("from gpt_lightning.model.gpt import Block\n")
    state = read(folder / "teacher" / "checkpoints" / "last.ckpt")
    write_checkpoint({**state, "block": {"class_path": "evil.Block", "init_args": {}}}, folder / "other.ckpt")


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            other_vocabulary,
            {"model.loss.teacher": "other.ckpt"},
            "teacher other.ckpt has vocab_size 23, this model 257",
        ),
        (other_tokenizer, {"model.loss.teacher": "other"}, "teacher other has another tokenizer than the data"),
        (own_block, {"model.loss.teacher": "other.ckpt"}, "teacher other.ckpt has the block evil.Block"),
        (None, {"data.context_length": 32}, "teacher teacher was trained with context_length 16, here it is 32"),
        (None, {"model.loss.teacher": "nowhere"}, "no checkpoint in nowhere"),
        (None, {"model.loss.share": 1.5}, "share 1.5: expected 0 to 1"),
        (None, {"model.loss.temperature": 0}, "temperature 0.0: expected a finite number above 0"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_teacher_that_cannot_be_is_refused_in_one_line_before_training(taught, capfd, make, options, message):
    if make is not None:
        make(taught)
    capfd.readouterr()
    assert main(["fit", *arguments({**OPTIONS, **TAUGHT, "run_dir": "run", **options})]) == 2
    lines = error_lines(capfd.readouterr().err)
    assert len(lines) == 1 and message in lines[0], lines
    assert not Path("run/config.yaml").exists() and "evil" not in sys.modules


def test_tune_verify_says_in_one_line_that_it_cannot(taught, capfd):
    assert main(["tune", "verify", *arguments({**OPTIONS, **TAUGHT})]) == 2
    lines = error_lines(capfd.readouterr().err)
    assert len(lines) == 1 and "model.loss Distillation cannot be verified" in lines[0], lines
    assert "teacher teacher has vocab_size 257, this model 32" in lines[0]
