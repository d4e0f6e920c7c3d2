"""`tune suggest` answers without Lightning, warns at its limits, and gives an overlay that `fit` takes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import gpt_lightning as gl
from gpt_lightning import cli
from gpt_lightning.data.duplication import duplication
from gpt_lightning.data.mixture import MAX_TOKENS
from gpt_lightning.data.shards import Shard, Split
from gpt_lightning.model.gpt3 import GPT3_ROWS
from gpt_lightning.tune.suggest import throughput
from gpt_lightning.tune.suggest.verb import VERB
from tests.fixtures import TINY, environment

pytestmark = pytest.mark.usefixtures("folder")

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL = {"data.corpus": "text.txt", "data.prepare.tokenizer": "bytes"}
WITHOUT_HORIZON = {key: value for key, value in TINY.items() if key != "max_tokens"}
N_PARAMS = 2 * (12 * 16**2 + 13 * 16) + 2 * 16  # of TINY, without embeddings: 6592


def suggest(arguments: list[str]):
    return VERB.run(arguments)[0]


def flags(options: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def ask(*configs: str, **options):
    """The verb on TINY or on configs; options with __ for dots; the folder is made anew."""
    named = {name.replace("__", "."): value for name, value in options.items()}
    overlays = [f"--config={CONFIGS / name}" for name in configs]
    stack = {} if configs else TINY if named.keys().isdisjoint({"tune.hours", "tune.flops"}) else WITHOUT_HORIZON
    return suggest([*overlays, *flags({**stack, **SMALL, "tune.if_exists": "overwrite", **named})])


def warned(result, words: str) -> bool:
    return any(words in warning for warning in result.warnings)


def test_three_files_a_table_and_the_recommendation_last(folder, capsys):
    assert cli.main(["tune", "suggest", *flags({**TINY, **SMALL})]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("recommendation: lr ") and "runs/suggest/tuned.yaml" in out.splitlines()[-1]
    for law in ("Step Law", "DeepSeek LLM", "Kaplan 2020", "Porian 2024", "Power Lines", "Chinchilla, refitted"):
        assert law in out
    assert "arXiv 2503.04715, restated" in out and "not stated" in out
    files = folder / "runs" / "suggest"
    result = json.loads((files / "result.json").read_text())
    assert result["case"]["n_params_non_embedding"] == N_PARAMS and result["case"]["n_tokens"] == 1024
    assert (files / "figure.png").read_bytes()[:4] == b"\x89PNG" and (files / "tuned.yaml").is_file()
    assert list((folder / "runs").iterdir()) == [files]


def test_nothing_that_takes_long_is_imported():
    code = f"""
import sys
from gpt_lightning import cli
assert cli.main(["tune", "suggest", *{flags({**TINY, **SMALL})!r}]) == 0
heavy = {{"lightning", "torch", "pandas", "wandb", "transformers"}}
assert not heavy & {{name.split(".")[0] for name in sys.modules}}
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr


@pytest.mark.slow
def test_fit_takes_the_overlay(folder):
    tuned = ask(max_tokens=4096).tuned
    overlay = folder / "runs" / "suggest" / "tuned.yaml"
    assert yaml.safe_load(overlay.read_text()) == tuned
    options = {**TINY, **SMALL}
    for key in ("model.optim.lr", "data.batch_tokens"):
        options.pop(key)  # else they would win over the overlay
    gl.run([overlay], {**options, "max_tokens": 4096, "run_dir": "run"})
    used = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert used["model"]["optim"]["lr"] == tuned["model"]["optim"]["lr"]
    assert used["model"]["optim"]["weight_decay"] == tuned["model"]["optim"]["weight_decay"]
    assert used["data"]["batch_tokens"] == tuned["data"]["batch_tokens"]


@pytest.mark.parametrize("devices", [1, 4])
def test_the_batch_divides_over_the_devices(devices):
    result = ask(trainer__devices=devices, trainer__num_nodes=2, max_tokens=100_000)
    best = result.recommended
    assert result.values["case"]["n_devices"] == 2 * devices
    assert best["batch_tokens"] % (best["micro_batch_size"] * 16 * 2 * devices) == 0


def test_the_micro_batch_shrinks_only_where_it_must():
    assert "micro_batch_size" not in ask().tuned["data"]
    tuned = ask(data__micro_batch_size=4096, data__batch_tokens=4096 * 16).tuned["data"]
    assert tuned["micro_batch_size"] < 4096 and tuned["batch_tokens"] % (tuned["micro_batch_size"] * 16) == 0


def test_a_timescale_is_left_to_itself():
    assert "weight_decay" not in ask(model__optim__weight_decay="timescale").tuned["model"]["optim"]


def test_tokens_per_parameter_warns_below_twenty():
    assert warned(ask(max_tokens=20 * N_PARAMS - 1), "tokens per parameter")
    assert not warned(ask(max_tokens=20 * N_PARAMS), "tokens per parameter")


def test_more_than_four_epochs_warn():
    n_tokens = ask().values["corpus"]["n_tokens"]
    assert not warned(ask(max_tokens=4 * n_tokens), "epochs")
    assert warned(ask(max_tokens=4 * n_tokens + 1), "epochs, more than 4")


def test_fewer_than_a_hundred_steps_warn():
    few, many = ask(max_tokens=1000), ask(max_tokens=10_000_000)
    assert warned(few, "steps of") and 100 * few.recommended["batch_tokens"] > 1000
    assert not warned(many, "steps of") and 100 * many.recommended["batch_tokens"] <= 10_000_000


@pytest.mark.slow
def test_accumulation_on_one_replica_offers_the_smaller_batch():
    result = ask(max_tokens=100_000)
    batch_tokens, lr = result.recommended["batch_tokens"], result.recommended["lr"]
    ratio = 2 * 16 / batch_tokens
    assert ratio < 1 and warned(result, f"--data.batch_tokens 32 --model.optim.lr {lr * ratio**0.5:.2g}")
    decay = result.recommended["weight_decay"]
    assert warned(result, f"[0.9,{0.95**ratio:.5g}] --model.optim.weight_decay {decay * ratio**0.5:.2g}")
    timescale = ask(max_tokens=100_000, model__optim__weight_decay="timescale")
    assert warned(timescale, "accumulated") and not warned(timescale, "--model.optim.weight_decay")
    assert not warned(ask(max_tokens=100_000, trainer__devices=2), "accumulated")
    whole = batch_tokens // 16
    assert not warned(ask(max_tokens=100_000, data__micro_batch_size=whole, data__batch_tokens=whole * 16), "accumul")


def test_no_law_fitted_here_is_said_and_then_all_of_them_count():
    far = ask()
    assert warned(far, "no law for lr or batch") and len(far.values["centres"]["lr"]["laws"]) == 4
    near = ask("model/gpt3-125m.yaml", max_tokens=2_500_000_000)
    assert near.values["centres"]["lr"]["laws"] == ("DeepSeek LLM", "Porian 2024") and not warned(near, "for lr")


def test_laws_for_another_method_are_said_to_be_that():
    mup = {"model__gpt__parametrization": "mup", "model__gpt__base_d_model": 8}
    assert warned(ask(**mup), "not for mup") and warned(ask(model__optim__name="muon"), "not for muon")
    assert warned(ask(model__optim__lr_ratios={"embedding": 10.0}), "not for lr_ratios embedding 10")
    assert not warned(ask(model__optim__lr_ratios={"embedding": 1.0}), "lr_ratios")
    assert not warned(ask(), "not for")


@pytest.mark.parametrize("row", [row.name for row in GPT3_ROWS])
def test_gpt3_configs_find_their_own_row(row):
    """The config's lr and batch are the paper's (tests/test_configs.py)."""
    result = ask(f"model/gpt3-{row}.yaml", "optim/gpt3.yaml")
    config = yaml.safe_load((CONFIGS / "model" / f"gpt3-{row}.yaml").read_text())
    found = result.values["gpt3_row"]
    law = next(law for law in result.values["laws"] if law["source"] == "arXiv 2005.14165")
    assert found["name"] == row and law["inside"] and law["lr"] == config["model"]["optim"]["lr"]
    assert law["batch_tokens"] == pytest.approx(config["data"]["batch_tokens"], rel=0.05)


def test_a_model_of_no_gpt3_size_has_no_row():
    assert ask().values["gpt3_row"] is None


def test_a_budget_in_flops():
    result = ask("model/gpt3-125m.yaml", tune__flops="1e18")
    size = result.values["compute_optimal"]
    assert size["n_params_non_embedding"] == pytest.approx(8.0e7, rel=0.01)
    assert size["n_tokens"] == pytest.approx(2.07e9, rel=0.01)
    # 6 x (12 x 12 x 768^2 + 257 x 768) + attention: 12 x 768 x 12 layers x mean keys (dense 1024.5, banded 240.06)
    per_token = 6 * (144 * 768**2 + 257 * 768) + 12 * 768 * 6 * (1024.5 + 240.06)
    assert result.values["case"]["n_tokens"] == pytest.approx(1e18 / per_token, rel=1e-4)
    assert result.tuned["max_tokens"] == result.recommended["max_tokens"] <= 1e18 / per_token


def test_a_budget_in_hours_with_a_known_and_with_a_measured_speed(monkeypatch):
    known = ask(tune__hours=2, tune__tokens_per_second=1000)
    assert known.values["case"]["n_tokens"] == 7_200_000 and not known.values["budget"]["estimated"]
    assert 0 <= 7_200_000 - known.tuned["max_tokens"] < known.recommended["batch_tokens"]
    monkeypatch.setattr(throughput, "estimate_tokens_per_second", lambda *_: 10.0)
    measured = ask(tune__hours=1, trainer__devices=3)
    assert measured.values["case"]["n_tokens"] == 3600 * 10 * 3 and measured.values["budget"]["estimated"]


def test_the_estimate_of_speed_is_of_the_right_size():
    """Against whole steps of the model itself, timed here; a factor of 3 for a busy machine."""
    import time

    import torch
    from torch.nn import functional as F

    from gpt_lightning.model.gpt import GPT, GPTConfig

    config = GPTConfig(vocab_size=512, context_length=128, n_layers=4, n_heads=2, d_model=128)
    model, tokens = GPT(config), torch.randint(512, (8, 129))
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        seconds.append(time.perf_counter() - started)
    estimate = throughput.estimate_tokens_per_second(config, "32-true")
    assert 1 / 3 < estimate / (8 * 128 / min(seconds)) < 3


def test_no_horizon_given_is_that_of_fit():
    result = suggest(flags({**WITHOUT_HORIZON, **SMALL}))
    assert result.values["case"]["n_tokens"] == MAX_TOKENS and "max_tokens" not in result.tuned


def split(*documents: np.ndarray) -> Split:
    return Split((Shard("train-00000", np.concatenate(documents), np.cumsum([len(d) for d in documents])),))


def test_planted_duplicates_are_found():
    """Of 100 documents 7 are copies; spans against a count of all windows."""
    numbers = np.random.default_rng(0)
    documents = [numbers.integers(0, 50_000, size=size, dtype=np.uint16) for size in numbers.integers(60, 300, 93)]
    documents += [documents[i].copy() for i in (3, 3, 8, 20, 21, 50, 92)]
    found = duplication(split(*documents))
    assert found.documents == pytest.approx(0.07) and found.sampled_tokens[0] == found.n_tokens
    tokens, seen = np.concatenate(documents), set()
    windows = [tokens[i : i + 64].tobytes() for i in range(len(tokens) - 63)]
    repeated = sum(w in seen or seen.add(w) is not None for w in windows) / len(windows)
    assert found.spans == pytest.approx(repeated, abs=0.02) and repeated > 0.03


def test_documents_of_one_length_that_differ_are_no_copies():
    numbers = np.random.default_rng(1)
    one = numbers.integers(0, 300, size=100, dtype=np.uint16)
    swapped = one.copy()
    swapped[[3, 4]] = one[[4, 3]] if one[3] != one[4] else one[[4, 3]] + 1
    assert duplication(split(one, swapped, one[::-1].copy())).documents == 0
    assert duplication(split(one, swapped, one)).documents == pytest.approx(1 / 3)


def test_a_huge_corpus_is_sampled_and_its_share_of_copies_stays_right():
    numbers = np.random.default_rng(2)
    documents = [numbers.integers(0, 60_000, size=size, dtype=np.uint16) for size in numbers.integers(100, 4000, 1000)]
    found = duplication(split(*documents, *documents[:250]), sample_tokens=600_000)
    assert found.n_tokens > 2_000_000 and max(found.sampled_tokens) < 700_000
    assert found.documents == pytest.approx(0.2, abs=0.05)


def test_where_no_documents_are_marked_nothing_is_said_of_them():
    assert duplication(Split((Shard("x", np.arange(1000, dtype=np.uint16)),))).documents is None


def test_the_corpus_reports_its_copies(folder):
    for i in range(40):
        (folder / "texts").mkdir(exist_ok=True)
        text = f"document {i % 30} " + " ".join(f"word{(i % 30) * k}" for k in range(60))
        (folder / "texts" / f"{i}.txt").write_text(text)
    corpus = ask(data__corpus="texts", data__prepare__val_fraction=0.1).values["corpus"]
    assert corpus["n_documents"] > 30 and 0.05 < corpus["duplicate_documents"] <= 10 / corpus["n_documents"]
    assert corpus["bytes_per_token"] == pytest.approx(1, abs=0.02)  # byte tokenizer, and one id per document


def test_the_same_identity_resumes_and_another_is_refused(folder, capsys):
    command = ["tune", "suggest", *flags({**TINY, **SMALL}), "--tune.if_exists=resume"]
    assert cli.main(command) == cli.main(command) == 0
    before = (folder / "runs" / "suggest" / "result.json").read_bytes()
    assert cli.main([*command, "--max_tokens=2048"]) == 2
    assert "max_tokens 1024 (now 2048)" in capsys.readouterr().err
    assert (folder / "runs" / "suggest" / "result.json").read_bytes() == before
    assert cli.main([*command, "--max_tokens=2048", "--tune.if_exists=overwrite"]) == 0


def test_later_overlays_win_and_flags_over_all(folder):
    (folder / "a.yaml").write_text("max_tokens: 1e5\nmodel: {gpt: {n_layers: 3}, optim: {lr: 1e-3}}\n")
    (folder / "b.yaml").write_text("model: {gpt: {n_layers: 4}}\ntrainer: {devices: 2, anything: 1}\n")
    small = flags({**SMALL, "model.gpt.d_model": 16, "model.gpt.n_heads": 2, "data.context_length": 16})
    result = suggest(
        ["--config", "a.yaml", "--config=b.yaml", *small, "--tune.hours", "1", "--tune.tokens_per_second=1e3"]
    )
    assert result.values["case"]["n_params_non_embedding"] == 4 * (12 * 16**2 + 13 * 16) + 2 * 16
    assert result.values["stack"]["lr"] == 1e-3 and result.values["case"]["n_devices"] == 2


BAD = {
    "two budgets": ({"tune.hours": 1, "tune.flops": "1e15"}, ["tune.hours", "tune.flops"]),
    "two budgets, one as a flag of fit": ({"tune.hours": 1, "max_tokens": 100}, ["max_tokens", "tune.hours"]),
    "no hours": ({"tune.hours": 0}, ["tune.hours", "0"]),
    "negative FLOPs": ({"tune.flops": -5}, ["tune.flops", "-5"]),
    "speed without hours": ({"tune.tokens_per_second": 5}, ["tune.hours"]),
    "missing corpus": ({"data.corpus": "nowhere.txt"}, ["nowhere.txt"]),
    "missing YAML": ({"config": "nowhere.yaml"}, ["nowhere.yaml"]),
    "misspelt key of the model": ({"model.gpt.n_layer": 2}, ["n_layer", "did you mean model.gpt.n_layers"]),
    "misspelt group": ({"model.gtp.n_layers": 2}, ["gtp", "did you mean model.gpt"]),
    "misspelt key of the verb": ({"tune.hour": 2}, ["hour", "did you mean tune.hours"]),
    "misspelt budget": ({"max_token": 2}, ["max_token", "did you mean max_tokens"]),
    "misspelt key of prepare": ({"data.prepare.vocabsize": 2}, ["did you mean data.prepare.vocab_size"]),
    "wrong type": ({"model.gpt.n_layers": "two"}, ["n_layers", "two"]),
    "heads do not divide": ({"model.gpt.n_heads": 3}, ["16", "3", "15", "18"]),
    "unknown schedule": ({"model.schedule.name": "cosinus"}, ["cosinus"]),
    "no horizon": ({"max_tokens": 0}, ["max_tokens"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(case, folder, capsys):
    options, words = BAD[case]
    assert cli.main(["tune", "suggest", *flags({**WITHOUT_HORIZON, **SMALL, **options})]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert not (folder / "runs").exists() and not (folder / "corpora").exists()


@pytest.mark.slow
def test_every_config_is_read(folder):
    for path in sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in ("task", "sweep")):
        name = str(path.relative_to(CONFIGS))
        assert ask(name, "debug.yaml", trainer__devices=1).recommended["lr"] > 0, name


def test_a_block_of_ones_own_is_counted_from_the_model_with_its_settings(folder, monkeypatch):
    (folder / "my_wide_block.py").write_text(
        "from torch import nn\nfrom gpt_lightning.model.gpt import Block\n\n\n"
        "class Wide(Block):\n    def __init__(self, config, extra: int = 1):\n        super().__init__(config)\n"
        "        self.more = nn.Linear(config.d_model, extra * config.d_model, bias=False)\n"
    )
    found = ask(model__block="my_wide_block.Wide", model__block__extra=3).values["case"]
    assert found["n_params_non_embedding"] == N_PARAMS + 2 * 3 * 16**2
