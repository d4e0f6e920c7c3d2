"""Whole runs in this process: what is learnt, counted, written and read back."""

import json
import math

import pandas
import pytest
import torch

import gpt_lightning as gl
from gpt_lightning.checkpoint import load_gpt
from gpt_lightning.cli import main
from gpt_lightning.data.compression import text_of
from gpt_lightning.report.metrics_csv import append_metrics, read_metrics, truncate_metrics
from gpt_lightning.run.build import supported_precision
from gpt_lightning.run.stack import read_stack
from tests.fixtures import TINY, arguments, build, fit_in_process


def run(**options):
    return gl.run([], {**TINY, "data.corpus": "text.txt", "run_dir": "run", **options})


@pytest.mark.slow
def test_scores_are_those_of_the_saved_weights_over_the_whole_validation_text(folder):
    result = run()
    gpt = load_gpt("run")
    corpus = build({"data.corpus": "text.txt", "run_dir": "other"}).data
    text = b"".join(text_of(corpus.fixed_split("val"), corpus.tokenizer, skip=1))
    split = corpus.corpora[0].split("val")
    tokens = torch.from_numpy(split.windows([0], split.n_tokens - 1).rows[0].astype("int64"))
    nats = 0.0  # by hand: window by window, plain cross entropy
    for start in range(0, len(tokens) - 1, 16):
        window = tokens[start : start + 17]
        logits = gpt(window[None, :-1])
        nats += torch.nn.functional.cross_entropy(logits[0], window[1:], reduction="sum").item()
    assert result["val/loss"] == pytest.approx(nats / (len(tokens) - 1), rel=1e-5)
    assert result["val/perplexity"] == pytest.approx(math.exp(result["val/loss"]), rel=1e-5)
    assert bytes(tokens[1:][tokens[1:] < 256].tolist()) == text  # the very first token is never a target
    assert result["val/bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)


@pytest.mark.slow
def test_validate_test_and_predict_agree_with_the_end_of_the_run(folder, capsys):
    result = run()
    flags = arguments({"data.corpus": "text.txt", "run_dir": "run"})
    for verb, key in (("validate", "val/loss"), ("test", "test/loss")):
        capsys.readouterr()
        assert main([verb, *flags]) == 0
        assert f"{key:32s}{result['val/loss']:.4f}" in capsys.readouterr().out
    assert main(["predict", *flags]) == 0
    losses = pandas.read_csv(folder / "run" / "predictions.csv")["loss"]
    assert len(losses) == 65 and losses[:64].mean() == pytest.approx(result["val/loss"], rel=0.05)


@pytest.mark.slow
def test_accumulation_changes_nothing(folder):
    options = {"data.batch_tokens": 128, "model.gpt.dropout": 0.0, "max_tokens": 512}
    whole = run(**options, **{"data.micro_batch_size": 8})
    parts = run(**options, **{"data.micro_batch_size": 2, "run_dir": "parts"})
    a, b = read_metrics("run"), read_metrics("parts")
    for column in ("train/loss", "train/bits_per_byte", "train/grad_norm", "train/lr"):
        assert list(a[column].dropna()) == pytest.approx(list(b[column].dropna()), rel=1e-5), column
    assert parts["val/loss"] == pytest.approx(whole["val/loss"], rel=1e-5)


def test_the_logged_learning_rate_is_the_schedule_in_the_middle_of_each_step(folder):
    run(**{"model.schedule.name": "linear", "model.schedule.min_lr_ratio": 0.0, "max_tokens": 256})
    assert list(read_metrics("run")["train/lr"].dropna()) == pytest.approx([0.01 * x / 8 for x in (7, 5, 3, 1)])


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(folder):
    built = build({"data.corpus": "text.txt", "run_dir": "run"})
    module = built.module
    module.trainer = built.trainer
    module.configure_model()
    optimizer = torch.optim.AdamW(module.gpt.parameters(), lr=0.1, fused=True)
    for bad, expected in ((False, 0), (True, 1), (True, 2), (False, 0)):
        total, count = module.gpt(torch.zeros(1, 4, dtype=torch.int64)).sum(), torch.tensor(4)
        module.step.add(total, count, count, 4).backward()
        if bad:
            module.gpt.wpe.weight.grad[0, 0] = math.nan
        before = [p.detach().clone() for p in module.gpt.parameters()]
        moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
        module.configure_gradient_clipping(optimizer, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert module.skipped_steps.item() == expected
        unchanged = all(torch.equal(a, b) for a, b in zip(before, module.gpt.parameters(), strict=True))
        assert unchanged == bad
        if bad:
            after = [s["exp_avg"] for s in optimizer.state.values()]
            assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))


@pytest.mark.slow
def test_weights_to_start_from_are_loaded_with_fresh_counters(folder):
    first = run()
    second = run(**{"model.init_from": "run", "run_dir": "second", "model.optim.lr": 1e-9, "max_tokens": 256})
    assert second["val/loss"] == pytest.approx(first["val/loss"], rel=1e-4)
    assert second["tokens"] == 256


def test_resuming_a_finished_run_says_so_and_keeps_its_summary(folder, capsys):
    run(max_tokens=128)
    before = (folder / "run" / "summary.json").read_bytes()
    flags = arguments({"data.corpus": "text.txt", "run_dir": "run", "max_tokens": 128, "if_exists": "resume"})
    assert main(["fit", *flags]) == 2
    assert "already seen its 128 tokens; raise --max_tokens" in capsys.readouterr().err
    assert (folder / "run" / "summary.json").read_bytes() == before


def test_a_run_without_validation_ends_well(folder, capsys):
    flags = arguments({"data.corpus": "text.txt", "run_dir": "run", "max_tokens": 128, "trainer.limit_val_batches": 0})
    assert main(["fit", *flags]) == 0
    assert "128 tokens in" in capsys.readouterr().out


def test_the_summary_sets_the_model_beside_gzip_and_xz(folder):
    import gzip

    result = run(max_tokens=64)
    corpus = build({"data.corpus": "text.txt", "run_dir": "other"}).data
    text = b"".join(text_of(corpus.fixed_split("val"), corpus.tokenizer, skip=1))
    assert result["gzip_bits_per_byte"] == pytest.approx(8 * len(gzip.compress(text, 9)) / len(text), rel=0.01)
    assert result["xz_after_training_bits_per_byte"] < result["xz_bits_per_byte"]
    assert json.loads((folder / "run" / "summary.json").read_text())["val/loss"] == result["val/loss"]


@pytest.mark.slow
def test_samples_do_not_change_the_run(folder):
    with_samples = run()
    without = run(**{"samples.max_new_tokens": 0, "run_dir": "without"})
    assert with_samples["val/loss"] == without["val/loss"]
    assert (folder / "run" / "samples.txt").read_text().count("=== after") == 4
    assert not (folder / "without" / "samples.txt").exists()


MODERN = {
    **{"model.gpt.positions": "rotary", "model.gpt.norm": "rms", "model.gpt.qk_norm": True, "model.gpt.mlp": "swiglu"},
    **{"model.gpt.n_kv_heads": 1, "model.gpt.logit_softcap": 5.0, "model.gpt.value_residual": True},
}
OTHERS = {
    **{"model.gpt.positions": "none", "model.gpt.norm_place": "both", "model.gpt.mlp": "geglu"},
    **{"model.gpt.parallel": True, "model.gpt.tie_embedding": False, "model.gpt.attention_pattern": "[banded]"},
    "model.gpt.band_width": 4,
}


@pytest.mark.slow
@pytest.mark.parametrize("structure", [{}, MODERN, OTHERS], ids=["gpt-3", "modern", "others"])
def test_compiled_blocks_train_to_the_same_loss_under_the_same_names(folder, structure):
    options = {"max_tokens": 128, "model.gpt.dropout": 0.0, **structure}
    plain = run(**options)
    options |= {"data.corpus": "text.txt", "run_dir": "compiled", "model.compile": True}
    result = fit_in_process(folder, options)  # the tests' type checks do not compile
    assert result.returncode == 0 and "Warning" not in result.stderr, result.stderr
    compiled = json.loads((folder / "compiled" / "summary.json").read_text())
    assert compiled["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-4)
    assert list(load_gpt("run").state_dict()) == list(load_gpt("compiled").state_dict())


def test_counts_can_be_written_as_people_say_them(folder):
    stack, _ = read_stack(arguments({"data.corpus": "text.txt", "max_tokens": "1.5e3", "run_dir": "1e4"}), "fit")
    assert (stack["max_tokens"], stack["run_dir"]) == (1500, "1e4")
    (folder / "overlay.yaml").write_text("max_tokens: 2e3\nval_interval_tokens: 1_000\n")
    flags = [
        flag for flag in arguments({"data.corpus": "text.txt"}) if "_tokens=1024" not in flag and "val_int" not in flag
    ]
    stack, _ = read_stack([*flags, "--config=overlay.yaml"], "fit")
    assert (stack["max_tokens"], stack["val_interval_tokens"]) == (2000, 1000)


def test_precision_falls_back_with_a_reason_where_bf16_is_not_native(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert supported_precision("bf16-mixed", "auto") == (
        "32-true",
        "this processor has no native bf16: training in float32 instead",
    )
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert supported_precision("bf16-mixed", "auto") == ("bf16-mixed", "")


def test_metrics_survive_new_columns_and_a_row_cut_by_a_kill(tmp_path):
    path = tmp_path / "metrics.csv"
    append_metrics(path, {"tokens": 1, "a": 0.5})
    append_metrics(path, {"tokens": 2, "b": 2.0})
    append_metrics(path, {"tokens": 3, "a": 1.5})
    with path.open("a") as file:
        file.write("4,0.")
    truncate_metrics(path, 2)
    table = read_metrics(path)
    assert list(table["tokens"]) == [1, 2] and table["a"][0] == 0.5 and table["b"][1] == 2.0
    assert math.isnan(table["b"][0])
