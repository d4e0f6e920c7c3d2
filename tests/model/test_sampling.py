"""Decoding against the full forward pass, and sampling against its definitions."""

import pytest
import torch

from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.sampling import SamplingConfig, generate_tokens, sample

GREEDY = {"temperature": 0.0}
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]


def small_gpt(pattern=("dense", "banded"), context_length=16) -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=37,
        context_length=context_length,
        n_layers=3,
        n_heads=2,
        d_model=16,
        attention_pattern=pattern,
        band_width=5,
        init_std=0.5,
    )
    return GPT(config).eval()


def written(gpt: GPT, prompts: list[list[int]], stop_ids: tuple[int, ...] = (), **sampling) -> list[list[int | None]]:
    """Per prompt the tokens generated for it."""
    steps = generate_tokens(gpt, prompts, SamplingConfig(**sampling), stop_ids)
    return [list(row) for row in zip(*steps, strict=True)]


@torch.no_grad()
def greedy_without_cache(gpt: GPT, prompt: list[int], n_tokens: int) -> list[int]:
    """The full forward pass for every token; beyond the context from the last half of it on."""
    window, out = list(prompt), []
    for _ in range(n_tokens):
        if len(window) > gpt.config.context_length:
            window = window[-(gpt.config.context_length // 2) :]
        out.append(gpt(torch.tensor([window]))[0, -1].argmax().item())
        window.append(out[-1])
    return out


@pytest.mark.parametrize("pattern", [("dense",), ("banded",), ("dense", "banded")])
def test_greedy_is_the_argmax_of_the_full_forward_pass_at_every_step_and_past_the_context(pattern):
    gpt = small_gpt(pattern)
    (tokens,) = written(gpt, [[1, 2, 3]], max_new_tokens=50, **GREEDY)
    assert tokens == greedy_without_cache(gpt, [1, 2, 3], 50)
    assert len(set(tokens)) > 5  # not one token over and over, which a wrong window would also give


def test_a_batch_of_unequal_prompts_writes_what_each_writes_alone_past_the_context_too():
    gpt = small_gpt()
    batch = written(gpt, PROMPTS, max_new_tokens=50, **GREEDY)
    assert batch == [greedy_without_cache(gpt, prompt, 50) for prompt in PROMPTS]


def test_a_prompt_that_fills_the_context_is_read_whole():
    gpt, prompt = small_gpt(), list(range(16))
    assert written(gpt, [prompt], max_new_tokens=20, **GREEDY) == [greedy_without_cache(gpt, prompt, 20)]


def test_a_row_ends_at_the_end_of_text_and_the_others_go_on():
    gpt = small_gpt()
    full = [greedy_without_cache(gpt, prompt, 30) for prompt in PROMPTS]
    eot_id = full[0][4]
    ends = [row.index(eot_id) if eot_id in row else 30 for row in full]
    assert len(set(ends)) > 1
    batch = written(gpt, PROMPTS, (eot_id,), max_new_tokens=30, **GREEDY)
    n_steps = min(max(ends) + 1, 30)
    for row, expected, end in zip(batch, full, ends, strict=True):
        assert row == expected[: min(end, n_steps)] + [None] * (n_steps - end)


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    gpt = small_gpt()
    runs = [written(gpt, PROMPTS, max_new_tokens=30, temperature=1.0, seed=seed) for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]


def test_a_tiny_temperature_is_greedy():
    gpt = small_gpt()
    assert written(gpt, PROMPTS, temperature=1e-30, max_new_tokens=20) == written(
        gpt, PROMPTS, max_new_tokens=20, **GREEDY
    )


def support(logits: list[float], top_k: int | None, top_p: float | None, temperature: float) -> dict[int, float]:
    """Token -> probability by the definitions, one token at a time: scale, keep k, then the fewest that reach p."""
    scaled = torch.tensor(logits, dtype=torch.float64) / temperature
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    weights = {i: scaled[i].exp().item() for i in order}
    weights = {i: weight / sum(weights.values()) for i, weight in weights.items()}
    kept, total = {}, 0.0
    for i in order:
        kept[i] = weights[i]
        total += weights[i]
        if top_p is not None and total >= top_p:
            break
    return {i: weight / sum(kept.values()) for i, weight in kept.items()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(None, None), (1, None), (3, None), (100, None), (None, 0.3), (None, 0.75), (4, 0.6), (4, 1.0)]
)
def test_samples_follow_the_restricted_distribution(top_k, top_p, temperature):
    logits = [0.3, 2.1, -1.0, 1.7, 0.0, 1.1, -3.0, 0.9]
    expected = support(logits, top_k, top_p, temperature)
    n = 40_000
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    tokens = sample(torch.tensor([logits]).expand(n, -1), config, torch.Generator().manual_seed(0))
    counts = torch.bincount(tokens, minlength=len(logits)) / n
    for token in range(len(logits)):
        p = expected.get(token, 0.0)
        assert counts[token].item() == pytest.approx(p, abs=5 * (p * (1 - p) / n) ** 0.5), token


def test_top_k_keeps_k_tokens_even_when_more_are_equally_likely():
    tokens = sample(torch.zeros(2000, 10), SamplingConfig(temperature=1.0, top_k=3), torch.Generator().manual_seed(0))
    assert len(tokens.unique()) == 3


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], []], "the prompt is empty"),
        ([[1] * 17], "17 tokens, more than the model's context_length 16"),
        ([[37]], "token 37 is outside the model's vocab_size 37"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(prompts, message):
    with pytest.raises(ValueError, match=message):
        list(generate_tokens(small_gpt(), prompts, SamplingConfig()))


@pytest.mark.parametrize("setting", [{"max_new_tokens": -1}, {"temperature": -1.0}, {"top_k": 0}, {"top_p": 1.5}])
def test_sampling_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        SamplingConfig(**setting)


def test_no_prompts_and_no_tokens_give_nothing():
    assert written(small_gpt(), [], max_new_tokens=5) == written(small_gpt(), [[1]], max_new_tokens=0) == []


@pytest.mark.slow
def test_a_compiled_model_is_not_compiled_again_for_decoding():
    gpt = small_gpt(("dense",))
    expected = written(gpt, [[1, 2, 3]], max_new_tokens=20, **GREEDY)
    gpt.compile_blocks()
    torch._dynamo.utils.counters.clear()
    assert written(gpt, [[1, 2, 3]], max_new_tokens=20, **GREEDY) == expected
    assert not torch._dynamo.utils.counters["frames"]
