"""Tokens per second of greedy decoding, ours beside Hugging Face's `generate` and nanoGPT's, on the same weights.

    python scripts/benchmark_generation.py --nanogpt PATH_OF_A_CHECKOUT

All take turns in one process, several times over; a ratio is the median over the turns, so that a busy moment of the
machine hits none of them alone. A model with a cache is timed from its first new token on, which leaves the reading of
the prompt out. Needs the extra `hf`; the default model is GPT 124M with random weights.

    python scripts/benchmark_generation.py --run runs/quickstart --text some_held_out_file.py

scores the text instead, in bits per byte, by the run's weights as float32, bfloat16 and int8.
"""

import argparse
import copy
import importlib.util
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.huggingface.folder import export_gpt
from gpt_lightning.model.inference import KINDS, prepare
from gpt_lightning.model.sampling import SamplingConfig, generate_tokens
from gpt_lightning.serve.text import TextGenerator, load

Decode = Callable[[int], list[int]]  # number of new tokens -> those tokens


def random_gpt(options: argparse.Namespace) -> GPT:
    """Random weights, large enough that greedy text does not repeat one token."""
    torch.manual_seed(0)
    n_heads = max(options.d_model // 64, 1)
    config = GPTConfig(
        context_length=1024, n_layers=options.n_layers, n_heads=n_heads, d_model=options.d_model, init_std=0.1
    )
    return GPT(config).eval()


def ours(gpt: GPT, prompt: list[int]) -> Decode:
    def decode(n: int) -> list[int]:
        steps = generate_tokens(gpt, [prompt], SamplingConfig(max_new_tokens=n, temperature=0))
        return [step[0] for step in steps if step[0] is not None]

    return decode


def hugging_face(folder: Path, prompt: list[int], dtype: torch.dtype) -> Decode:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    tokens = torch.tensor([prompt])

    def decode(n: int) -> list[int]:
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=n,
            min_new_tokens=n,
            use_cache=True,
        )
        return out[0, len(prompt) :].tolist()

    return decode


def nanogpt(checkout: Path, gpt: GPT, prompt: list[int], dtype: torch.dtype) -> Decode:
    """nanoGPT's own class with the same weights; it reads the whole text again for every token."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    config = gpt.config
    model = module.GPT(
        module.GPTConfig(
            block_size=config.context_length,
            vocab_size=config.vocab_size,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_embd=config.d_model,
            dropout=0.0,
        )
    )
    names = {"blocks.": "h.", "attn.qkv": "attn.c_attn", "attn.proj": "attn.c_proj"}
    names |= {"mlp.fc": "mlp.c_fc", "mlp.proj": "mlp.c_proj"}
    state = {}
    for name, value in gpt.state_dict().items():
        for own, its in names.items():
            name = name.replace(own, its)
        state[f"transformer.{name}"] = value
    model.load_state_dict({**state, "lm_head.weight": gpt.wte.weight})
    model = model.to(dtype).eval()
    tokens = torch.tensor([prompt])
    return lambda n: model.generate(tokens, n, top_k=1)[0, len(prompt) :].tolist()


def tokens_per_second(decode: Decode, n_tokens: int) -> float:
    """Between the first and the last new token: the time for all, less that for the prompt and the first."""
    started = time.perf_counter()
    decode(1)
    first = time.perf_counter()
    decode(n_tokens + 1)
    return n_tokens / ((time.perf_counter() - first) - (first - started))


def compare(decoders: dict[str, Decode], options: argparse.Namespace) -> None:
    """Print each one's median rate and, for each of Hugging Face's, the median of the ratios of the turns."""
    tokens = {name: decode(options.n_tokens) for name, decode in decoders.items()}  # also warms them up
    exact = [name for name in decoders if name.endswith("float32")]
    same = all(tokens[name] == tokens[exact[0]] for name in exact)
    print(f"same {options.n_tokens} greedy tokens in float32: {'yes' if same else 'NO'}")
    rates: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(options.repeats):
        for name, decode in decoders.items():
            rates[name].append(tokens_per_second(decode, options.n_tokens))
    for name, values in rates.items():
        ratios = [
            f"{statistics.median(a / b for a, b in zip(values, rates[other], strict=True)):.2f} x {other}"
            for other in rates
            if other.startswith("Hugging Face") and other != name
        ]
        spread = f"{min(values):.1f} to {max(values):.1f}"
        print(f"{name:24s}{statistics.median(values):7.1f} tokens/s  ({spread})  {'; '.join(ratios)}", flush=True)


@torch.inference_mode()
def bits_per_byte(generator: TextGenerator, text: str) -> float:
    """Of `text` in windows of the context, each token but the first of a window predicted once."""
    gpt, bits, n_bytes = generator.gpt, 0.0, 0
    for window in torch.tensor(generator.tokenizer.encode(text)).split(gpt.config.context_length):
        logits = gpt(window[None, :-1])[0]
        bits += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item() / math.log(2)
        n_bytes += len(generator.tokenizer.decode_bytes(window[1:].tolist()))
    return bits / n_bytes


def score(options: argparse.Namespace) -> None:
    """Print the run's bits per byte with its weights in each form."""
    text, first = options.text.read_text(encoding="utf-8"), None
    for weights in KINDS:
        found = bits_per_byte(load(options.run, weights=weights), text)
        first = first or found
        print(f"{weights:12s}{found:.4f} bits per byte  {found / first - 1:+.3%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_layers", type=int, default=12, help="blocks")
    parser.add_argument("--d_model", type=int, default=768, help="width; heads have 64")
    parser.add_argument("--prompt_tokens", type=int, default=32, help="length of the prompt, in tokens")
    parser.add_argument("--n_tokens", type=int, default=64, help="tokens to generate per measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each, of which the median counts")
    parser.add_argument("--threads", type=int, help="threads of torch; all cores when not given")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, to measure its model too")
    parser.add_argument("--run", type=Path, help="a run folder to score --text with, instead of timing")
    parser.add_argument("--text", type=Path, help="a UTF-8 file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.run:
        return score(options)
    gpt = random_gpt(options)
    n_params = sum(p.numel() for p in gpt.parameters())
    prompt = torch.randint(0, gpt.config.vocab_size, (options.prompt_tokens,)).tolist()
    print(f"{n_params / 1e6:.0f}M parameters, batch 1, {torch.get_num_threads()} threads, torch {torch.__version__}")
    decoders: dict[str, Decode] = {}
    with tempfile.TemporaryDirectory() as folder:
        Tokenizer.bytes_only().save(Path(folder) / "tokenizer.json")
        export_gpt(gpt, Path(folder) / "tokenizer.json", Path(folder) / "hf")
        for weights in KINDS:
            decoders[f"ours {weights}"] = ours(prepare(copy.deepcopy(gpt), weights), prompt)
            if weights != "int8":
                dtype = getattr(torch, weights)
                decoders[f"Hugging Face {weights}"] = hugging_face(Path(folder) / "hf", prompt, dtype)
                if options.nanogpt:
                    decoders[f"nanoGPT {weights}"] = nanogpt(options.nanogpt, gpt, prompt, dtype)
        compare(decoders, options)


if __name__ == "__main__":
    main()
