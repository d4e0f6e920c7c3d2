"""What stands between a prompt and a suffix: the model reads them as it read rearranged text in training."""

import contextlib

import pytest
import torch

import gpt_lightning as gl
from gpt_lightning.cli import main as cli
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.sampling import SamplingConfig, generate_tokens
from gpt_lightning.serve.text import TextGenerator
from tests.fixtures import TINY, write_text

TOKENIZER = Tokenizer.bytes_only().with_fim_markers()
EOT, PRE, SUF, MID = 256, 257, 258, 259
GREEDY = {"temperature": 0.0, "max_new_tokens": 12}


def model(tokenizer, seed=0):
    torch.manual_seed(seed)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, context_length=32, n_layers=1, n_heads=1, d_model=16, init_std=1.0
    )
    return GPT(config).eval()


def written_after(gpt, tokens, **sampling):
    """The bytes that follow `tokens`, up to the end of the document."""
    steps = generate_tokens(gpt, [tokens], SamplingConfig(**{**GREEDY, **sampling}), (EOT,))
    return TOKENIZER.decode([token for (token,) in steps if token is not None and token < EOT])


@pytest.mark.parametrize(("prompt", "suffix"), [("def f(", "return x"), ("", "b"), ("a", ""), ("", "")])
def test_the_middle_follows_prefix_and_suffix_in_the_order_of_psm(prompt, suffix):
    generator = TextGenerator(model(TOKENIZER), TOKENIZER)
    expected = written_after(generator.gpt, [PRE, *prompt.encode(), SUF, *suffix.encode(), MID])
    assert generator.generate(prompt, suffix=suffix, **GREEDY) == expected != ""
    assert "".join(generator.stream(prompt, SamplingConfig(**GREEDY), suffix=suffix)) == expected
    assert generator.generate([prompt, prompt], suffix=suffix, **GREEDY) == [expected] * 2
    assert generator.generate(prompt, **GREEDY) != expected


def test_the_middle_ends_before_the_window_would_slide_over_the_prompt():
    generator = TextGenerator(model(TOKENIZER), TOKENIZER)
    generator.gpt.wte.weight.data[EOT] = 0  # so that no row ends earlier
    prompt = [PRE, *b"prefix", SUF, *b"suffix", MID]
    expected = written_after(generator.gpt, prompt, max_new_tokens=32 + 1 - len(prompt))
    assert generator.generate("prefix", suffix="suffix", temperature=0.0, max_new_tokens=500) == expected
    assert len(written_after(generator.gpt, prompt, max_new_tokens=500)) > len(expected)
    with pytest.raises(ValueError, match="the prompt has 43 tokens, more than the model's context_length 32"):
        generator.generate("p" * 20, suffix="s" * 20)


def test_a_tokenizer_without_markers_is_refused_in_one_line():
    plain = Tokenizer.bytes_only()
    with pytest.raises(ValueError, match=r"suffix 'return x': the tokenizer has no <\|fim_prefix\|>") as caught:
        TextGenerator(model(plain), plain).generate("def f(", suffix="return x")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run that has trained for a moment on rearranged text, every option of the kind on."""
    folder = tmp_path_factory.mktemp("infilling")
    options = {"data.prepare.fim": True, "data.fim_rate": 0.9, "data.corpus": "text.txt", "run_dir": "run"}
    with contextlib.chdir(folder):
        write_text(folder / "text.txt")
        gl.run([], {**TINY, **options, "data.context_length": 32, "data.batch_tokens": 128})
    return folder / "run"


@pytest.mark.slow
def test_the_verb_prints_what_stands_between(run_dir, capsys):
    expected = gl.load(run_dir).generate("the mo", suffix=" reads", **GREEDY)
    assert expected == written_after(gl.load(run_dir).gpt, [PRE, *b"the mo", SUF, *b" reads", MID])
    flags = ["--run", str(run_dir), "--suffix", " reads", "--greedy", "--max_new_tokens", "12"]
    capsys.readouterr()
    assert cli(["generate", *flags, "--prompt", "the mo"]) == 0
    assert capsys.readouterr().out == expected + "\n"
    assert cli(["generate", *flags, "--prompt", "the mo", "--prompt", "the mo"]) == 0
    assert capsys.readouterr().out == "".join(f"=== prompt {i} of 2 ===\n{expected}\n\n" for i in (1, 2))


@pytest.mark.slow
def test_a_run_without_markers_is_told_so_by_fit_and_by_generate(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    flags = [f"--{name}={value}" for name, value in {**TINY, "data.corpus": "text.txt", "run_dir": "run"}.items()]
    assert cli(["fit", *flags, "--data.fim_rate=0.5"]) == 2
    assert "fim_rate 0.5: the tokenizer has no <|fim_prefix|>" in capsys.readouterr().err.strip().splitlines()[-1]
    assert cli(["fit", *flags]) == 0
    capsys.readouterr()
    assert cli(["generate", "--run=run", "--prompt=a", "--suffix=b"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "suffix 'b': the tokenizer has no <|fim_prefix|>" in err and err.count("\n") == 1
