"""Fine-tuning is `fit` with examples: what it starts from, trains, keeps as it was, and says of its data."""

import json
import os
import signal
from pathlib import Path

import pandas
import pytest
import torch
from lightning.pytorch import Callback
from torch.nn import functional as F

import gpt_lightning as gl
from gpt_lightning.checkpoint import load_gpt
from gpt_lightning.cli import main
from gpt_lightning.data.examples.encode import chat_prompt, encode_example
from gpt_lightning.data.examples.kinds import ExamplesConfig, to_example
from gpt_lightning.data.examples.read import Row
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.model.sampling import SamplingConfig, generate_tokens
from gpt_lightning.report.metrics_csv import read_metrics
from gpt_lightning.run.stack import read_stack
from tests import forked
from tests.fixtures import TINY, WORDS, assert_equal, error_lines, read, write_text

BASE = {
    **TINY,
    "data.batch_tokens": 256,
    "data.corpus": "text.txt",
    "run_dir": "base",
    "data.context_length": 64,
    "model.gpt.dropout": 0.0,
}
TUNED = {
    **{"model.init_from": "base", "run_dir": "tuned", "max_tokens": 1024, "val_interval_tokens": 512},
    **{"data.micro_batch_size": 2, "data.batch_tokens": 128, "data.prepare.val_fraction": 0.2},
    **{"model.optim.lr": 0.01, "trainer.precision": "32-true", "trainer.accelerator": "cpu"},
    **{"trainer.log_every_n_steps": 1, "samples.max_new_tokens": 4},
}
CHAT = {**TUNED, "data.corpus": "chat.jsonl", "data.examples.kind": "chat"}
LABELS = {**TUNED, "data.corpus": "labels.jsonl", "data.examples.kind": "classification"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with a base run and files of examples; tests write beside it."""
    import contextlib

    folder = tmp_path_factory.mktemp("finetune")
    with contextlib.chdir(folder):
        write_text(Path("text.txt"))
        gl.run([], BASE)
        turns = [(f"say {a} {b}", f"{b} {a}") for a in WORDS for b in WORDS[:5]]
        chat = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in turns]
        Path("chat.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in chat))
        rows = [{"text": f"{a} {b}", "label": ["no", "yes", "perhaps"][(i + j) % 3]} for i, a in enumerate(WORDS)
                for j, b in enumerate(WORDS)]  # fmt: skip
        for name in ("labels.jsonl", "more.jsonl"):
            Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def folder(base, tmp_path, monkeypatch):
    for path in base.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flags(options: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def fit(options: dict, **more) -> dict:
    return gl.run([], {**options, **more})


def built(options: dict):
    """The run, with its model as it starts."""
    from gpt_lightning.run.build import build

    run = build(read_stack(flags(options), "fit")[0])
    run.data.setup("fit")
    run.trainer.datamodule, run.module.trainer = run.data, run.trainer
    run.module.configure_model()
    run.module.gpt.eval()
    return run


def weights(path: str) -> dict[str, torch.Tensor]:
    return read(Path(path) / "checkpoints" / "last.ckpt")["state_dict"]


def test_the_architecture_comes_from_the_run_that_it_starts_from():
    stack, _ = read_stack([*flags(CHAT), "--model.gpt.dropout=0.1"], "fit")
    assert (stack["model.gpt.n_layers"], stack["model.gpt.d_model"], stack["data.context_length"]) == (2, 16, 64)
    assert stack["model.gpt.dropout"] == 0.1 and stack["model.optim.lr"] == 0.01
    light, _ = read_stack(flags(CHAT), "fit", light=True)
    assert light["model.gpt.d_model"] == 16


def test_a_chat_model_answers_and_its_old_ids_are_as_they_were(capsys):
    result = fit(CHAT)
    losses = read_metrics("tuned")["val/loss"].dropna().tolist()
    assert result["val/loss"] == losses[-1] < losses[0] and "gzip_bits_per_byte" not in result
    tokenizer = Tokenizer.from_file("tuned/tokenizer.json")
    assert tokenizer.vocab_size == 261 and tokenizer.extends(Tokenizer.bytes_only())
    chat = [{"role": "user", "content": "say the model"}]
    answer = "".join(gl.load("tuned").chat(chat, max_new_tokens=20, temperature=0.0))
    assert answer and "<|" not in answer
    capsys.readouterr()
    words = ["--run", "tuned", "--chat", "--prompt", "say the model", "--max_new_tokens", "20", "--greedy"]
    assert main(["generate", *words]) == 0
    assert capsys.readouterr().out == answer + "\n"
    assert main(["generate", "--run", "base", "--chat", "--prompt", "hi"]) == 2
    assert "this model knows no chat" in capsys.readouterr().err
    assert "say the model" not in answer
    generator = gl.load("tuned")
    for stop in (*tokenizer.chat_ids, tokenizer.eot_id):  # whatever a turn begins or ends with, the answer is over
        generator.gpt.logits = lambda hidden, stop=stop: F.one_hot(torch.full(hidden.shape[:-1], stop), 261).float()
        steps = generate_tokens(
            generator.gpt, [[1]], SamplingConfig(max_new_tokens=5, temperature=0), tokenizer.stop_ids
        )
        assert list(steps) == [[None]]


@pytest.mark.slow
def test_transformers_gives_the_template_our_ids_and_the_same_logits():
    transformers = pytest.importorskip("transformers")
    fit(CHAT)
    assert main(["export", "--run", "tuned", "--output", "tuned-hf"]) == 0
    theirs = transformers.AutoTokenizer.from_pretrained("tuned-hf")
    ours = Tokenizer.from_file("tuned/tokenizer.json")
    odd = [
        " a ",
        "\n",
        "\ttab\r\n",
        "naïve 東京 👩‍👩‍👧",
        "{{ x }}",
        "{% if %}",
        "<s> [INST]",
        "'s 's",
        "  two  ",
        "1 2 3",
        "\u2028",
    ]
    for i in range(20):
        text = [odd[(i * 7 + k) % len(odd)] + str(i) for k in range(4)]
        roles = ["system", "user", "assistant", "user"] if i % 2 else ["user", "assistant", "user", "user"]
        messages = [{"role": role, "content": words} for role, words in zip(roles, text, strict=True)]
        expected = chat_prompt(messages, ours, 1000)
        found = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert found == expected, messages
        asked = to_example(Row("", {"messages": messages[:3]}), ExamplesConfig(kind="chat")) if i % 2 else None
        if asked is not None:
            masked = theirs.apply_chat_template(messages[:3], return_assistant_tokens_mask=True, return_dict=True)
            encoded = encode_example(asked, ours, 1000, {})
            assert masked["input_ids"] == encoded.ids.tolist()
            assert masked["assistant_masks"] == encoded.is_target.astype(int).tolist()
    model = transformers.AutoModelForCausalLM.from_pretrained("tuned-hf").eval()
    assert model.generation_config.eos_token_id == [ours.chat_ids.end, ours.eot_id]
    tokens = torch.randint(261, (2, 32))
    torch.testing.assert_close(model(tokens).logits, load_gpt("tuned")(tokens), atol=1e-5, rtol=1e-5)


def test_new_rows_begin_as_the_mean_and_change_next_to_nothing():
    old, new = load_gpt("base"), built(CHAT).module.gpt
    tokens = torch.arange(32)[None]
    torch.testing.assert_close(new.wte.weight[257:], old.wte.weight.mean(0).expand(4, -1))
    shares = new(tokens).softmax(-1)
    assert shares[..., 257:].sum(-1).max() <= 4 / 261 * 1.001
    torch.testing.assert_close(F.normalize(shares[..., :257], p=1, dim=-1), old(tokens).softmax(-1))


def test_examples_in_one_row_do_not_see_each_other():
    """Loss of every answer of a packed batch, beside that of its example alone."""
    run = built(CHAT)
    gpt = run.module.gpt
    tokens, targets, positions = next(iter(run.data.val_dataloader()))
    packed = F.cross_entropy(gpt.logits(gpt.hidden_states(tokens, None, positions)).mT, targets, reduction="none")
    assert (positions == 0).sum() > 2 * len(tokens), "no row holds several examples"
    for row in range(len(tokens)):
        begins = [*(positions[row] == 0).nonzero().flatten().tolist(), tokens.shape[1]]
        for begin, end in zip(begins, begins[1:], strict=False):
            alone = F.cross_entropy(gpt(tokens[row : row + 1, begin:end])[0], targets[row, begin:end], reduction="none")
            torch.testing.assert_close(packed[row, begin:end], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"model.trainable.parts": "head"}, {"model.trainable.frozen_blocks": 1}], ids=str
)
def test_what_is_frozen_stays_and_what_is_trained_moves(options):
    result = fit(LABELS, **options)
    before, after = weights("base"), weights("tuned")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    head = options.get("model.trainable.parts") == "head"
    expected = set() if head else set(before)
    if options.get("model.trainable.frozen_blocks"):
        expected = {name for name in before if not name.startswith(("gpt.blocks.0.", "gpt.wpe", "gpt.wte"))}
    assert moved == expected
    assert {"val/accuracy", "val/macro_f1", "majority_accuracy", "naive_bayes_accuracy"} <= result.keys()
    assert "val/bits_per_byte" not in result and after["gpt.label_head.weight"].shape == (3, 16)
    state = read(Path("tuned/checkpoints/last.ckpt"))["optimizer_states"][0]["state"]
    assert len(state) == len(expected) + 1  # and the head
    with pytest.raises(ValueError, match="tuned tells labels apart and writes no text"):
        gl.load("tuned")


def test_lora_trains_beside_frozen_matrices_and_new_rows_and_is_merged():
    fit(CHAT, **{"model.trainable.parts": "lora", "model.trainable.rank": 3})
    before, after = weights("base"), weights("tuned")
    thin = {name for name in after if name.endswith(("lora_a", "lora_b"))}
    assert len(thin) == 2 * 4 * 2
    for name, value in before.items():
        kept = after[name][:257] if name == "gpt.wte.weight" else after[name]
        assert torch.equal(kept, value), name
    assert not torch.equal(after["gpt.wte.weight"][257:], before["gpt.wte.weight"].mean(0).expand(4, -1))
    merged = load_gpt("tuned")
    assert not any("lora" in name for name in merged.state_dict())
    run = built({**CHAT, "model.trainable.parts": "lora", "model.trainable.rank": 3})
    run.module.gpt.load_state_dict({name.removeprefix("gpt."): value for name, value in after.items()})
    tokens = torch.randint(261, (2, 32))
    torch.testing.assert_close(merged(tokens), run.module.gpt(tokens), atol=2e-5, rtol=0)
    assert (merged.blocks[0].attn.qkv.weight - before["gpt.blocks.0.attn.qkv.weight"]).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["all", "lora"])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(folder, parts):
    options = {**CHAT, "model.trainable.parts": parts, "max_tokens": 2048, "val_interval_tokens": 256}
    for name, steps in (("whole", (16,)), ("killed", (7, 16))):
        for last in steps:
            dies = (
                f"--trainer.callbacks+=tests.run.test_finetune.Dies --trainer.callbacks.init_args.step={last}".split()
            )
            words = [*flags({**options, "run_dir": name, "if_exists": "resume"}), *(dies if last < 16 else [])]
            result = forked.run(["fit", *words], folder)
            assert (result.returncode == 0) == (last == 16), result.stderr
    whole, killed = (read(Path(name) / "checkpoints" / "last.ckpt") for name in ("whole", "killed"))
    for key in ("state_dict", "optimizer_states", "tokens_seen", "CorpusDataModule"):
        assert_equal(whole[key], killed[key], key)


class Dies(Callback):
    """The process, without a word, after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_label_does_not_depend_on_what_else_is_in_the_batch():
    fit(LABELS)
    run = built(LABELS)
    gpt = load_gpt("tuned")
    tokens, targets, positions = next(iter(run.data.val_dataloader()))
    hidden = gpt.hidden_states(tokens, None, positions)
    rows, places = (targets != -100).nonzero(as_tuple=True)
    assert len(rows) > len(tokens), "no row holds several examples"
    for row, place in zip(rows.tolist(), places.tolist(), strict=True):
        begin = place - int(positions[row, place])
        alone = gpt(tokens[row : row + 1, begin : place + 1])[0, -1]
        torch.testing.assert_close(gpt.logits(hidden[row, place]), alone, atol=1e-5, rtol=1e-5)


def test_predictions_name_each_example_and_are_those_of_its_text_alone(capsys):
    result = fit(LABELS)
    assert main(["predict", "--config", "tuned/config.yaml"]) == 0
    table = pandas.read_csv("tuned/predictions.csv")
    assert table.columns.tolist() == ["example", "label", "predicted", "p(no)", "p(perhaps)", "p(yes)"]
    lines = Path("labels.jsonl").read_text().splitlines()
    gpt, tokenizer = load_gpt("tuned"), Tokenizer.bytes_only()
    for _, row in table.iterrows():
        asked = json.loads(lines[int(row["example"].removeprefix("labels.jsonl line ")) - 1])
        assert asked["label"] == row["label"]
        logits = gpt(torch.tensor([[*tokenizer.encode(asked["text"]), tokenizer.eot_id]]))[0, -1]
        shares = torch.tensor(row[["p(no)", "p(perhaps)", "p(yes)"]].tolist())
        torch.testing.assert_close(logits.softmax(-1), shares, atol=2e-6, rtol=0)
        assert row["predicted"] == ["no", "perhaps", "yes"][int(logits.argmax())]
    right = table["label"] == table["predicted"]
    assert right.mean() == pytest.approx(result["val/accuracy"]) and Path("tuned/confusion.png").stat().st_size > 5_000
    assert f"{right.sum()} of {len(table)} labels are right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {**CHAT, "model.init_from": None, "data.context_length": 64},
            "examples are encoded as the text that the model",
        ),
        ({**CHAT, "data.fim_rate": 0.5}, "data.fim_rate rearranges text, and data.corpus are examples"),
        ({**CHAT, "model.trainable.parts": "head"}, "only a classification has one"),
        ({**CHAT, "model.trainable.frozen_blocks": 3}, "frozen_blocks 3: the model has 2 blocks"),
        (
            {**CHAT, "model.trainable.matrices": "[attn.q]", "model.trainable.parts": "lora"},
            "has attn.q; the blocks of",
        ),
        (
            {**LABELS, "data.corpus": '{"labels.jsonl": 1, "more.jsonl": 1}'},
            "labels.jsonl has labels for targets, and other",
        ),
        ({**CHAT, "data.examples.kind": "completion"}, "chat.jsonl line 1 has no field 'prompt' (found: messages)"),
        ({**CHAT, "data.examples.val_targets": "x"}, "examples.val_targets without examples.val"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(folder, capfd, options, words):
    given = flags({name: value for name, value in options.items() if value is not None})
    assert main(["fit", *given]) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert line.startswith("error: ") and words in line
    assert not Path("tuned/config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chat", "classification"])
def test_its_configs_run(folder, kind):
    """Under what the base run of these tests needs, and for a few steps."""
    config = Path(__file__).parents[2] / "configs" / "task" / f"{kind}.yaml"
    corpus = {"chat": "chat.jsonl", "classification": "labels.jsonl"}[kind]
    small = {"max_tokens": 1024, "val_interval_tokens": 512, "data.batch_tokens": 512, "trainer.precision": "32-true"}
    result = gl.run([config], {**small, "model.init_from": "base", "data.corpus": corpus, "run_dir": "from_config"})
    assert result["tokens"] == 1024 and ("val/accuracy" in result) == (kind == "classification")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"model.trainable.parts": "lora"}], ids=str)
def test_tune_lr_takes_the_same_stack(options):
    stack = {name: value for name, value in CHAT.items() if not name.startswith(("run_dir", "samples"))}
    tuning = {"tune.tokens": 2560, "tune.seeds": 1, "tune.val_tokens": 256, "max_tokens": 2560}
    found = gl.run([], {**stack, **options, **tuning}, verb="tune lr")
    assert found["lr"] > 0 and Path("runs/lr/tuned.yaml").is_file()
    assert "base" in Path("runs/lr/identity.json").read_text()


def test_relations_have_tacreds_score(folder):
    rows = []
    for i in range(60):
        a, b = WORDS[i % 13], WORDS[(i * 5 + 1) % 13]
        spans = {"subj_start": 0, "subj_end": 0, "obj_start": 2, "obj_end": 2, "subj_type": "A", "obj_type": "B_C"}
        rows.append({"token": [a, "and", b], "relation": ["no_relation", "x", "y"][i % 3], **spans})
    Path("tacred.json").write_text(json.dumps(rows))
    result = fit(LABELS, **{"data.corpus": "tacred.json", "data.examples.kind": "relation"})
    assert 0 <= result["val/micro_f1"] <= 1 and result["val/macro_f1"] >= 0
    found = built({**LABELS, "data.corpus": "tacred.json", "data.examples.kind": "relation"}).data
    assert found.labels == ["no_relation", "x", "y"] and found.negative == 0
