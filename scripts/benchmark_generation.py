"""Tokens per second of greedy decoding, ours beside Hugging Face's `generate` and nanoGPT's, on the same weights.

    python scripts/benchmark_generation.py --nanogpt PATH_OF_A_CHECKOUT

All take turns in one process, several times over; the medians are compared, so that a busy moment of the machine
hits none of them alone. A model with a cache is timed from its first new token on, which leaves the reading of the
prompt out. Needs the extra `hf`; the default model is GPT 124M with random weights.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.huggingface import export_gpt2
from gpt_lightning.model.sampling import SamplingConfig, generate_tokens

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


def compare(decoders: dict[str, Decode], options: argparse.Namespace, n_params: int, dtype: torch.dtype) -> None:
    tokens = {name: decode(options.n_tokens) for name, decode in decoders.items()}  # also warms them up
    if dtype == torch.float32:
        same = all(found == tokens["ours"] for found in tokens.values())
        print(f"same {options.n_tokens} greedy tokens: {'yes' if same else 'NO'}; {len(set(tokens['ours']))} different")
    rates: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(options.repeats):
        for name, decode in decoders.items():
            rates[name].append(tokens_per_second(decode, options.n_tokens))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, median in medians.items():
        bandwidth = median * n_params * dtype.itemsize / 1e9
        spread = f"{min(rates[name]):.1f} to {max(rates[name]):.1f}"
        ratio = f"ours is {medians['ours'] / median:.2f} x" if name != "ours" else f"{bandwidth:.1f} GB/s of weights"
        print(f"{str(dtype):16s}{name:14s}{median:8.1f} tokens/s  ({spread})  {ratio}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_layers", type=int, default=12, help="blocks")
    parser.add_argument("--d_model", type=int, default=768, help="width; heads have 64")
    parser.add_argument("--prompt_tokens", type=int, default=32, help="length of the prompt, in tokens")
    parser.add_argument("--n_tokens", type=int, default=64, help="tokens to generate per measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each, of which the median counts")
    parser.add_argument("--threads", type=int, help="threads of torch; all cores when not given")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, to measure its model too")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    gpt = random_gpt(options)
    n_params = sum(p.numel() for p in gpt.parameters())
    prompt = torch.randint(0, gpt.config.vocab_size, (options.prompt_tokens,)).tolist()
    print(f"{n_params / 1e6:.0f}M parameters, batch 1, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        Tokenizer.bytes_only().save(Path(folder) / "tokenizer.json")
        export_gpt2(gpt, Path(folder) / "tokenizer.json", Path(folder) / "hf")
        for dtype in (torch.float32, torch.bfloat16):
            gpt = gpt.to(dtype)
            decoders = {"ours": ours(gpt, prompt), "Hugging Face": hugging_face(Path(folder) / "hf", prompt, dtype)}
            if options.nanogpt:
                decoders["nanoGPT"] = nanogpt(options.nanogpt, gpt, prompt, dtype)
            compare(decoders, options, n_params, dtype)


if __name__ == "__main__":
    main()
