"""Options that no export knows, against who has them: Olmo2, Gemma2, GPTBigCode; where nobody has, a loop by hand."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gpt_lightning.model.gpt import GPT
from gpt_lightning.model.growth import to_standard
from gpt_lightning.model.huggingface.family import ANY
from gpt_lightning.model.huggingface.gpt2 import GPT2
from gpt_lightning.model.huggingface.llama import LLAMA, QWEN3, ministral_fields
from tests.model.parity import CONTEXT, VOCAB, assert_same_logits, our_gpt, shaken

transformers = pytest.importorskip("transformers")

POST = {"post_ln_1": "post_attention_layernorm", "post_ln_2": "post_feedforward_layernorm"}
OLMO2 = replace(  # normalises all heads' queries together: as ours where there is one head
    QWEN3,
    modules={ours: theirs for ours, theirs in QWEN3.modules.items() if ours not in ("ln_1", "ln_2")} | POST,
    options=LLAMA.options | {"qk_norm": (True,), "norm_place": ("after",)},
    read=LLAMA.read,
)


def unfold_gemma2(config, state, settings):
    """Its norms multiply by 1 + weight, and its embedding by sqrt(d_model), which the tied readout does not."""
    state = {name: value + 1 if value.ndim == 1 else value for name, value in state.items()}
    state["wte.weight"] = state["wte.weight"] * config.d_model**0.5
    state["ln_f.weight"] = state["ln_f.weight"] / config.d_model**0.5
    return state


GEMMA2 = replace(
    LLAMA,
    modules=LLAMA.modules | POST | {"ln_2": "pre_feedforward_layernorm"},
    biases={},
    fields=LLAMA.fields | {"logit_softcap": ("final_logit_softcapping", 30.0)},
    constants=LLAMA.constants | {"attn_logit_softcapping": ((None,), 50.0), "query_pre_attn_scalar": ((8,), 256)},
    activation=("hidden_activation", "gelu_pytorch_tanh"),
    options=LLAMA.options | {"norm_place": ("both",), "bias": (False,), "attention_pattern": ANY},
    read=ministral_fields,
    unfold=unfold_gemma2,
)
BIGCODE = replace(GPT2, transposed=False, options={"n_kv_heads": (1,)}, constants={"multi_query": ((True,), True)})


def model(config_class, model_class, **settings):
    torch.manual_seed(0)
    return shaken(
        model_class(config_class(vocab_size=VOCAB, pad_token_id=None, **{"initializer_range": 0.2, **settings}))
    )


def read_as(family, theirs) -> GPT:
    settings = theirs.config.to_dict()
    with torch.device("meta"):
        gpt = GPT(family.config(settings))
    gpt.load_state_dict(family.to_ours(gpt, theirs.state_dict(), settings), assign=True)
    return gpt.eval()


SIZES = {"hidden_size": 32, "max_position_embeddings": CONTEXT, "num_hidden_layers": 3, "intermediate_size": 40}


@pytest.mark.parametrize("tied", [True, False])
def test_norms_after_each_branch_are_olmo2s(tied):
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "tie_word_embeddings": tied}
    theirs = model(transformers.Olmo2Config, transformers.Olmo2ForCausalLM, **SIZES, **heads)
    ours = read_as(OLMO2, theirs)
    assert ours.config.norm_place == "after" and ours.config.qk_norm
    assert_same_logits(ours, theirs)


def test_norms_on_both_sides_geglu_bands_and_a_softcap_are_gemma2s():
    caps = {"attn_logit_softcapping": None, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5}
    more = {"layer_types": kinds, "sliding_window": 7, "initializer_range": 0.1}
    theirs = model(transformers.Gemma2Config, transformers.Gemma2ForCausalLM, **SIZES, **caps, **heads, **more)
    ours = read_as(GEMMA2, theirs)
    assert (ours.config.norm_place, ours.config.mlp, ours.config.logit_softcap) == ("both", "geglu", 3.0)
    assert ours.config.attention_pattern == ("banded", "dense") and ours.config.n_kv_heads == 2
    assert_same_logits(ours, theirs)


def test_one_head_of_keys_and_values_with_layer_norm_and_learned_positions_is_gpt_bigcodes():
    sizes = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 3, "n_head": 4}
    theirs = model(transformers.GPTBigCodeConfig, transformers.GPTBigCodeForCausalLM, **sizes)
    ours = read_as(BIGCODE, theirs)
    assert ours.config.n_kv_heads == 1
    assert_same_logits(ours, theirs)


@torch.no_grad()
def by_hand(gpt: GPT, tokens: list[int]) -> torch.Tensor:
    """Logits (T, V) of norms before, LayerNorm, gelu; query by query and head by head."""
    c, w = gpt.config, gpt.state_dict()
    K, per_kv = c.d_head, c.n_heads // (c.n_kv_heads or c.n_heads)
    x = w["wte.weight"][tokens] + (w["wpe.weight"][: len(tokens)] if c.positions == "learned" else 0)
    first = None
    for i in range(c.n_layers):
        b = {name.removeprefix(f"blocks.{i}."): value for name, value in w.items() if name.startswith(f"blocks.{i}.")}
        normed = F.layer_norm(x, (c.d_model,), b["ln_1.weight"], b["ln_1.bias"])
        q, k, v = (b["attn.qkv.weight"] @ normed.T + b["attn.qkv.bias"][:, None]).T.split(
            (c.d_model, c.d_kv, c.d_kv), 1
        )
        first = v if first is None else first
        if c.value_residual and i > 0:
            v = (1 - b["attn.value_mix"]) * v + b["attn.value_mix"] * first
        out = torch.zeros_like(x)
        for t in range(len(tokens)):
            for h in range(c.n_heads):
                own, kv = slice(h * K, (h + 1) * K), slice(h // per_kv * K, (h // per_kv + 1) * K)
                scores = torch.stack([q[t, own] @ k[s, kv] for s in range(t + 1)]) / K**0.5
                out[t, own] = sum(p * v[s, kv] for s, p in enumerate(scores.softmax(0)))
        x = x + out @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        normed = F.layer_norm(x, (c.d_model,), b["ln_2.weight"], b["ln_2.bias"])
        hidden = F.gelu(normed @ b["mlp.fc.weight"].T + b["mlp.fc.bias"], approximate="tanh")
        x = x + hidden @ b["mlp.proj.weight"].T + b["mlp.proj.bias"]
    return F.layer_norm(x, (c.d_model,), w["ln_f.weight"], w["ln_f.bias"]) @ w["wte.weight"].T


BY_HAND = [
    {"positions": "none"},
    {"positions": "none", "n_kv_heads": 2},
    {"value_residual": True},
    {"value_residual": True, "n_kv_heads": 2},
]


@pytest.mark.parametrize("settings", BY_HAND, ids=str)
def test_what_no_model_of_transformers_has_is_what_a_loop_computes(settings):
    gpt = our_gpt(**settings).double()
    if gpt.config.value_residual:
        for i, block in enumerate(gpt.blocks):
            block.attn.value_mix.data.fill_(0.2 + 0.3 * i)
    tokens = torch.randint(0, VOCAB, (1, 12), generator=torch.Generator().manual_seed(2))
    expected = by_hand(gpt, tokens[0].tolist())
    assert expected.abs().max() > 1
    torch.testing.assert_close(gpt(tokens)[0], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm_place", ["before", "after", "both"])
@pytest.mark.parametrize(
    "settings",
    [
        {"qk_norm": True, "positions": "rotary", "norm": "rms", "n_kv_heads": 2},
        {"logit_softcap": 3.0, "n_kv_heads": 1, "tie_embedding": False},
        {"parallel": True, "mlp": "swiglu", "bias": False},
        {"value_residual": True, "positions": "none", "mlp": "relu2"},
    ],
    ids=str,
)
def test_multipliers_fold_into_the_weights_of_every_structure(settings, norm_place):
    completep = {"parametrization": "completep", "base_d_model": 8, "base_n_layers": 1, "base_d_head": 2}
    gpt = our_gpt(**settings, **completep, norm_place=norm_place)
    standard = to_standard(gpt)
    assert standard.config.parametrization == "standard" and standard.readout_multiplier == 1
    assert_same_logits(gpt, standard)
