"""Text in, text out: stop strings, whole characters, and the verb `generate`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt_lightning.checkpoint import gpt_config_to_dict, write_checkpoint
from gpt_lightning.cli import main as cli
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.sampling import SamplingConfig, generate_tokens
from gpt_lightning.serve.decoder import TextDecoder
from gpt_lightning.serve.generate import _parser
from gpt_lightning.serve.text import TextGenerator, load
from tests.packing import needs_packing

TOKENIZER = Tokenizer.bytes_only()  # every byte its own token, so characters and stop strings are spread over several
TEXT = "naïve 東京 👩‍👩‍👧 the end, or so"


def model_that_writes(text: str) -> GPT:
    """A GPT that ignores what it reads: its position embeddings alone point at the next byte, then at the end."""
    tokens = [*TOKENIZER.encode(text), TOKENIZER.eot_id]
    gpt = GPT(GPTConfig(vocab_size=257, context_length=len(tokens), n_layers=1, n_heads=1, d_model=256))
    torch.manual_seed(0)
    with torch.no_grad():
        gpt.blocks[0].attn.proj.weight.zero_()
        gpt.blocks[0].mlp.proj.weight.zero_()
        torch.nn.init.orthogonal_(gpt.wte.weight)
        gpt.wpe.weight.copy_(1000 * gpt.wte.weight[tokens])
    return gpt.eval()


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    return TextGenerator(model_that_writes(TEXT), TOKENIZER)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run folder with the model that writes TEXT."""
    folder = tmp_path_factory.mktemp("runs") / "written"
    gpt = model_that_writes(TEXT)
    state = {f"gpt.{name}": value for name, value in gpt.state_dict().items()}
    config = gpt_config_to_dict(gpt.config)
    write_checkpoint({"state_dict": state, "gpt_config": config}, folder / "checkpoints" / "best.ckpt")
    TOKENIZER.save(folder / "tokenizer.json")
    return folder


def expected(text: str, stop: list[str]) -> str:
    """The text before the stop string that is complete first."""
    for n in range(len(text) + 1):
        for s in sorted(stop, key=len, reverse=True):
            if text[:n].endswith(s):
                return text[: n - len(s)]
    return text


def test_the_text_ends_with_the_document(generator):
    assert generator.generate("", max_new_tokens=1000, temperature=0) == TEXT


STOPS = [
    ["end"],
    ["京"],
    ["the e", "end"],
    ["nd,", "the end, or not"],
    ["nowhere"],
    ["so long"],
    ["soo", "s", "o s"],
    ["n"],
    [TEXT],
]


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_stop_strings_across_tokens_cut_the_text_before_them(generator, stop):
    assert generator.generate("", stop=stop, temperature=0) == expected(TEXT, stop)


@pytest.mark.parametrize("stop", [[], *STOPS], ids=str)
def test_streamed_pieces_are_whole_characters_and_add_up_to_the_whole(generator, stop):
    pieces = list(generator.stream("", SamplingConfig(temperature=0), stop))
    assert "".join(pieces) == expected(TEXT, stop)
    assert all(pieces) and "\ufffd" not in "".join(pieces)
    assert len(pieces) > 1 or len(expected(TEXT, stop)) <= 1 or stop == [TEXT]


@pytest.mark.parametrize("stop", [[], ["aa"], ["ab", "ba"], ["aab", "ab", "b"], ["é€", "a"], ["aéb", "é"]], ids=str)
def test_how_the_bytes_are_cut_changes_nothing(stop):
    numbers = torch.Generator().manual_seed(0)

    def number(high: int) -> int:
        return int(torch.randint(high, (1,), generator=numbers))

    for _ in range(200):
        text = "".join("abé€👩"[number(5)] for _ in range(number(12)))
        data, decoder, out = text.encode(), TextDecoder(stop), ""
        while data:
            n = 1 + number(4)
            out, data = out + decoder.push(data[:n]), data[n:]
        assert out + decoder.push(b"", final=True) == expected(text, stop)


def test_nothing_that_may_begin_a_stop_string_is_shown_and_the_rest_at_once():
    decoder = TextDecoder(["STOP"])
    assert [decoder.push(data) for data in (b"a", b"S", b"T", b"x", b"SS", b"TO", b"P", b"y")] == [
        *("a", "", "", "STx", "S", "", "", "")
    ]


def test_bytes_that_are_no_utf8_become_replacement_characters_as_in_python():
    data = b"a\xf0\x9f\x91b\xe6\x9d\xff\xc3"
    decoder = TextDecoder()
    pieces = [decoder.push(data[i : i + 1]) for i in range(len(data))]
    assert "".join(pieces) + decoder.push(b"", final=True) == data.decode(errors="replace")


def test_several_prompts_give_a_list_and_each_what_it_gives_alone():
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=257, context_length=32, n_layers=2, n_heads=2, d_model=16, init_std=0.5)).eval()
    generator = TextGenerator(gpt, TOKENIZER)
    prompts = ["def ", "", "héllo wörld"]
    together = generator.generate(prompts, temperature=0, max_new_tokens=60)
    assert together == [generator.generate(prompt, temperature=0, max_new_tokens=60) for prompt in prompts]


def test_an_empty_prompt_is_the_start_of_a_document():
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=257, context_length=32, n_layers=2, n_heads=2, d_model=16, init_std=0.5)).eval()
    steps = list(generate_tokens(gpt, [[TOKENIZER.eot_id]], SamplingConfig(max_new_tokens=20, seed=1)))
    written = TextGenerator(gpt, TOKENIZER).generate("", max_new_tokens=20, seed=1)
    assert written == TOKENIZER.decode([step[0] for step in steps]) != ""


def test_what_cannot_be_is_one_clear_error(generator, tmp_path):
    with pytest.raises(ValueError, match="more than the model's context_length"):
        generator.generate("x" * 1000)
    with pytest.raises(ValueError, match="unknown sampling setting 'max_tokens'; expected one of max_new_tokens"):
        generator.generate("x", max_tokens=3)
    with pytest.raises(ValueError, match="not empty"):
        generator.generate("x", stop=[""])
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no checkpoint in"):
        load(tmp_path)


def test_load_opens_a_run_its_checkpoint_and_nothing_without_a_tokenizer(run_dir, tmp_path):
    for path in (run_dir, run_dir / "checkpoints" / "best.ckpt"):
        assert load(path).generate(temperature=0) == TEXT
    for name in ("best.ckpt", "best.ckpt.sha256"):
        (tmp_path / name).write_bytes((run_dir / "checkpoints" / name).read_bytes())
    with pytest.raises(ValueError, match="no tokenizer.json beside"):
        load(tmp_path / "best.ckpt")


def test_the_verb_prints_one_prompt_with_its_text(run_dir, capsys):
    assert cli(["generate", "--run", str(run_dir), "--greedy", "--stop", "京"]) == 0
    assert capsys.readouterr().out == "naïve 東\n"


def test_the_verb_prints_several_prompts_under_headers(run_dir, capsys):
    assert cli(["generate", "--run", str(run_dir), "--prompt", "n", "--prompt", "xy", "--greedy"]) == 0
    # The model goes by position: the last token of a prompt of n writes what follows TEXT's n - 1st.
    assert re.findall("=== prompt . of 2 ===\n(.*)\n", capsys.readouterr().out) == ["n" + TEXT, "xy" + TEXT[1:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_new_token", "3"], "--max_new_token"),
        (["--top_p", "2"], "top_p 2.0"),
        (["--temperature", "hot"], "hot"),
        (["--prompt", "x" * 1000], "context_length"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_prints_no_text(run_dir, capsys, options, message):
    assert cli(["generate", "--run", str(run_dir), *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_the_help_names_the_defaults_that_hold():
    text, defaults = " ".join(_parser("").format_help().split()), SamplingConfig()
    for name in ("max_new_tokens", "temperature", "seed"):
        assert re.search(rf"--{name} \w .*?\(default: {getattr(defaults, name)}\)", text), name
    assert defaults.top_k is None and defaults.top_p is None


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(run_dir):
    command = [sys.executable, "-m", "gpt_lightning", "generate", "--run", str(run_dir), "--greedy"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout and process.stderr
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(timeout=60), errors) == (0, b"")


def test_help_imports_no_torch():
    code = "import sys; from gpt_lightning.cli import main; main([sys.argv[1], '--help'])"
    for verb in ("generate", "export", "import"):
        program = f"try:\n    {code}\nfinally:\n    assert 'torch' not in sys.modules"
        process = subprocess.run([sys.executable, "-c", program, verb], capture_output=True, text=True)
        assert process.returncode == 0 and f"gpt-lightning {verb}" in process.stdout, process.stderr


PLAIN_C = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # Python then reads arguments as ASCII


def generate_in(environment: dict[str, str], *arguments: bytes) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gpt_lightning", "generate", "--max_new_tokens", "7", "--greedy", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, PLAIN_C], ids=["C", "C without UTF-8 mode"])
def test_a_prompt_is_utf8_in_every_locale(run_dir, environment):
    done = generate_in(environment, b"--run", os.fsencode(run_dir), b"--prompt", "é".encode(), b"--stop", "ïv".encode())
    assert done.returncode == 0, done.stderr
    assert done.stdout == "éa\n".encode()  # two bytes were read, so the text goes on at its second, up to the stop


def test_a_prompt_that_is_not_utf8_is_refused_in_one_line(run_dir):
    done = generate_in(PLAIN_C, b"--run", os.fsencode(run_dir), b"--prompt", b"\xe9")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1 and b"is not UTF-8 text" in done.stderr


@pytest.mark.parametrize(
    "weights", ["float32", *(pytest.param(name, marks=needs_packing) for name in ("bfloat16", "int8"))]
)
def test_the_text_of_sure_weights_is_the_same_however_they_are_stored(run_dir, weights, capsys):
    assert cli(["generate", "--run", str(run_dir), "--weights", weights, "--greedy"]) == 0
    assert capsys.readouterr().out == TEXT + "\n"
    assert load(run_dir, weights=weights).generate("", max_new_tokens=99, temperature=0) == TEXT


def test_weights_that_do_not_exist_are_refused_in_one_line(run_dir, capsys):
    assert cli(["generate", "--run", str(run_dir), "--weights", "int3"]) == 2
    assert capsys.readouterr().err == "error: weights 'int3'; expected one of float32, bfloat16, int8\n"
