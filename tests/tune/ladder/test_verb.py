"""The verb `tune ladder` on a tiny stack: what it trains, says, writes and refuses."""

import json
from pathlib import Path

import pytest
import yaml

from gpt_lightning.cli import main
from gpt_lightning.run.stack import read_stack
from gpt_lightning.tune.ladder import plan, verb
from gpt_lightning.tune.ladder.plan import Rung
from gpt_lightning.tune.ladder.result import LadderResult, LadderRun
from gpt_lightning.tune.sizes import Size
from tests.fixtures import arguments, error_lines

STACK = {
    **{"data.corpus": "text.txt", "max_tokens": 122_880, "model.gpt.dropout": 0.0, "tune.val_tokens": 256},
    **{"model.gpt.d_model": 32, "model.gpt.n_heads": 8, "model.gpt.parametrization": "mup"},
    **{"model.gpt.base_d_model": 16, "model.schedule.warmup_tokens": 12_288, "tune.share": 0.6},
    **{"data.batch_tokens": 512, "data.micro_batch_size": 32},
}


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    monkeypatch.setattr(plan, "LEAST_STEPS", 4)


def ladder(**options) -> int:
    return main(["tune", "ladder", *arguments({**STACK, **options})])


@pytest.mark.slow
def test_runs_are_kept_and_the_overlay_is_a_run_of_the_budget(folder, capsys):
    assert ladder() == 0
    printed = capsys.readouterr()
    assert "arning:" not in printed.err, printed.err
    found = json.loads(Path("runs/ladder/result.json").read_text())
    journal = Path("runs/ladder/measured.jsonl").read_text().splitlines()
    assert len(found["runs"]) == len(journal) >= 7
    for run in found["runs"]:
        assert run["bits_per_byte"] / run["loss"] == pytest.approx(found["bits_per_byte_per_nat"], rel=1e-6)
    for words in ("Chinchilla, refitted, for this budget", "GPT-3's figure 3.1", "the stack as it is", "bits per byte"):
        assert words in printed.out, words
    assert Path("runs/ladder/figure.png").stat().st_size > 20_000
    for name in ("predicted_loss", "predicted_loss_of_the_stack"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]

    tuned = yaml.safe_load(Path("runs/ladder/tuned.yaml").read_text())
    assert tuned["max_tokens"] == found["max_tokens"]
    assert tuned["model"]["schedule"]["warmup_tokens"] == pytest.approx(found["max_tokens"] / 10, abs=1)
    flags = [flag for flag in arguments(STACK) if not flag.startswith(("--tune.", "--max_tokens", "--model.gpt.n_h"))]
    flags = [flag for flag in flags if not flag.startswith(("--model.gpt.d_model", "--model.schedule"))]
    stack, _ = read_stack([*flags, "--config=runs/ladder/tuned.yaml"], "fit")
    assert (stack["model.gpt.d_model"], stack["max_tokens"]) == (found["d_model"], found["max_tokens"])

    Path("runs/ladder/measured.jsonl").write_text("".join(line + "\n" for line in journal[:-1]))  # stopped in the last
    assert ladder() == 0
    assert Path("runs/ladder/measured.jsonl").read_text().splitlines() == journal, "the same run gave another loss"
    assert json.loads(Path("runs/ladder/result.json").read_text()) == found


def planted_runs(bonus: float, levels=(1e12, 4e12, 16e12)) -> list[LadderRun]:
    """Losses of a known law, those of the highest level so much lower."""
    runs = []
    for flops in levels:
        for n_params in (4e4, 8e4, 16e4, 32e4):
            tokens = flops / 6 / n_params
            loss = 1.0 + 30 / n_params**0.25 + 40 / tokens**0.25
            size = Size(None, int(n_params), 6 * n_params)
            runs.append(LadderRun(Rung(size, round(tokens)), loss * (1 - bonus * (flops == levels[-1])), None))
    return runs


@pytest.mark.parametrize("bonus", [0.04, 0.0, -0.04])
def test_an_interval_allows_for_what_the_law_missed_of_its_own_highest_level(bonus):
    runs = planted_runs(bonus)
    drift = verb._drift(runs)
    assert drift == pytest.approx(1 / (1 - bonus) - 1, abs=2e-3)
    law, size = verb._law(runs), runs[-1].rung.size
    result = LadderResult({}, size, [size], runs, law, drift, 64e12, 0.0)
    wide, narrow = result._predicted(size, 10**8), law.predicted(size.n_params, 10**8)
    assert wide.value == narrow.value
    assert wide.low / narrow.low == pytest.approx(min(1.0, 1 - bonus), abs=3e-3)
    assert wide.high / narrow.high == pytest.approx(max(1.0, 1 - bonus), abs=3e-3)


def test_two_levels_do_not_say_how_far_their_law_holds():
    assert verb._drift(planted_runs(0.04, (1e12, 4e12))) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model.gpt.parametrization": "standard"}, "each size of a ladder wants another lr; run gpt-lightning tune"),
        ({"tune.share": 0}, "tune.share 0.0: must be above 0"),
        ({"tune.flops": 1e6}, "FLOPs makes 0 runs, of 0 sizes"),
    ],
)
def test_what_makes_no_ladder_is_one_line(folder, capfd, options, words):
    assert ladder(**options) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert line.startswith("error: ") and words in line
    assert not Path("runs/ladder/result.json").exists()


def test_a_run_that_diverges_is_said_and_those_before_it_are_kept(folder, monkeypatch, capfd):
    trained = []

    def diverging(stack, rung, settings):
        if len(trained) == 3:
            return train(stack, rung, settings)
        trained.append(rung)
        return {"loss": 3.0, "bits_per_byte": 1.0}

    train = verb._trained
    monkeypatch.setattr(verb, "_trained", diverging)
    assert ladder(**{"model.optim.lr": 1e6}) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert " diverged; lower model.optim.lr" in line
    assert len(Path("runs/ladder/measured.jsonl").read_text().splitlines()) == 3
