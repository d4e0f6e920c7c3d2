"""The built-in losses as settings of a run: named in flags and YAML, trained on, resumed; scores stay cross entropy."""

import signal
import subprocess
from pathlib import Path

import pytest

import gpt_lightning as gl
from gpt_lightning.callbacks.preemption import Preempted
from gpt_lightning.cli import main
from gpt_lightning.model.multi_token import MultiToken
from gpt_lightning.report.metrics_csv import read_metrics
from tests.fixtures import TINY, arguments, assert_equal, build, command, environment, error_lines, read

OPTIONS = {"data.corpus": "text.txt", "run_dir": "run", "max_tokens": 256, "model.schedule.name": "constant"}
PLAIN = "gpt_lightning.model.loss.CrossEntropy"
SEVERAL = "gpt_lightning.model.multi_token.MultiToken"


@pytest.mark.parametrize(
    ("flags", "name", "values"),
    [
        (["--model.loss.label_smoothing", "0.1"], PLAIN, {"label_smoothing": 0.1, "z_loss": 0.0}),
        (["--model.loss.z_loss=1e-4", "--model.loss.token_weights={5: 2}"], PLAIN, {"token_weights": {5: 2.0}}),
        (["--model.loss.token_weights.5=2"], PLAIN, {"token_weights": {5: 2.0}}),
        (["--model.loss", "MultiToken"], SEVERAL, {"weights": (0.5, 0.25), "fade": 0.67}),
        (
            ["--model.loss=MultiToken", "--model.loss.fade=0.5", "--model.loss.weights=[0.3]"],
            SEVERAL,
            {"weights": (0.3,), "fade": 0.5, "label_smoothing": 0.0},
        ),
        (["--model.loss=MultiToken", "--model.loss.z_loss=1e-4"], SEVERAL, {"z_loss": 1e-4}),
    ],
    ids=str,
)
def test_flags_name_a_loss_and_its_settings_and_config_yaml_names_them_again(folder, flags, name, values):
    built = build(OPTIONS, flags)
    Path("again.yaml").write_text(built.stack.to_yaml())
    for run in (built, build({}, ["--config=again.yaml"])):
        assert f"{type(run.module.loss).__module__}.{type(run.module.loss).__name__}" == name
        assert {key: getattr(run.module.loss, key) for key in values} == values


@pytest.mark.slow
def test_help_lists_the_losses_by_themselves(folder):
    """In a process that has imported none of them."""
    whole = subprocess.run([*command("fit", {}), "--help"], env=environment(), capture_output=True, text=True).stdout
    known = "".join(whole.split("<class 'Loss'>")[1].split("subclasses:")[1].split(")")[0].split())
    assert [path.rsplit(".", 1)[1] for path in known.split(",")] == ["CrossEntropy", "MultiToken", "Distillation"]


def test_help_explains_the_settings_of_each_loss(folder, capsys):
    for words, expected in (
        (["--model.loss.help=CrossEntropy"], ["label_smoothing", "z_loss", "token_weights"]),
        (["--model.loss.help=MultiToken"], ["weights", "fade", "share of the run", "label_smoothing"]),
        (["--model.loss.help=Distillation"], ["teacher", "share", "temperature"]),
    ):
        with pytest.raises(SystemExit):
            main(["fit", *words])
        shown = capsys.readouterr().out
        assert all(word in shown for word in expected), words


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        {"model.loss.label_smoothing": 0.3},
        {"model.loss.z_loss": 0.1},
        {"model.loss.token_weights": {32: 0.0}},
        {"model.loss": "MultiToken"},
    ],
    ids=str,
)
def test_scores_are_cross_entropy_whatever_is_trained_on(folder, loss):
    still = {**TINY, **OPTIONS, "model.optim.lr": 1e-12, "max_tokens": 64, "model.gpt.dropout": 0.0}
    scores = gl.run([], {**still, "run_dir": "plain"}), gl.run([], {**still, **loss})
    for name in ("val/loss", "val/bits_per_byte"):
        assert scores[0][name] == pytest.approx(scores[1][name], rel=1e-6)
    plain, other = read_metrics("plain"), read_metrics("run")
    assert other["train/loss"].iloc[0] != plain["train/loss"].iloc[0]
    assert "train/bits_per_byte" in plain and "train/bits_per_byte" not in other  # it is not in nats


@pytest.mark.slow
def test_what_fades_over_the_run_goes_on_bit_for_bit_where_it_stopped(folder, monkeypatch):
    options = {**TINY, **OPTIONS, "model.loss": "MultiToken", "model.loss.fade": 0.9}
    gl.run([], {**options, "run_dir": "whole"})
    weights_ahead, seen = MultiToken.weights_ahead, []

    def stopping(self, progress):
        if progress == 0.25 and 0.25 not in seen:
            signal.raise_signal(signal.SIGTERM)
        seen.append(progress)
        return weights_ahead(self, progress)

    monkeypatch.setattr(MultiToken, "weights_ahead", stopping)
    with pytest.raises(Preempted):
        gl.run([], options)
    assert seen == [0, 0, 0.25, 0.25] and read(Path("run/checkpoints/last.ckpt"))["tokens_seen"] == 128
    gl.run([], {**options, "if_exists": "resume"})
    assert seen[4:] == [0.5, 0.5, 0.75, 0.75]
    whole, resumed = (read(Path(name, "checkpoints", "last.ckpt")) for name in ("whole", "run"))
    for key in ("state_dict", "optimizer_states", "tokens_seen"):
        assert_equal(whole[key], resumed[key], key)
    assert list(read_metrics("run")["train/loss"].dropna()) == list(read_metrics("whole")["train/loss"].dropna())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.loss.label_smoothing": 1}, "label_smoothing 1.0: expected at least 0 and below 1"),
        ({"model.loss.token_weights": "{a: 1}"}, "token_weights"),
        ({"model.loss.token_weights": "{500: 1}"}, "token_weights has the id 500; expected ids of the vocabulary"),
        ({"model.loss": "MultiToken", "model.loss.fade": 2}, "fade 2.0: expected a share of the run"),
        ({"model.loss.fade": 0.5}, "Option 'fade' is not accepted"),
        ({"model.loss": "Distillation"}, "arguments are required: teacher"),
    ],
    ids=str,
)
def test_settings_that_make_no_loss_are_refused_in_one_line(folder, capfd, options, message):
    assert main(["fit", *arguments({**OPTIONS, **options})]) == 2
    lines = error_lines(capfd.readouterr().err)
    assert len(lines) == 1 and message in lines[0], lines
    assert not Path("run/config.yaml").exists()
    assert Path("corpora").exists() == ("ids of the vocabulary" in message), "text is prepared only where it decides"
