"""GPT-2 and GPT-Neo: learned positions and LayerNorm, as GPT-3, and GPT-Neo with bands, as GPT-3 itself has.

GPT-2 and our dense GPT are the same function under other names; biases cannot be left out there. GPT-Neo does not
divide the scores by sqrt(d_head) and has no biases on queries, keys and values, which fold into what it has:

    1 / sqrt(d_head)    into W_q
    b_k                 adds the same to all scores of a query: the softmax does not see it
    b_v                 probabilities sum to one: b_o += W_o b_v
    b_q                 delta with W_q delta = b_q into ln_1.bias. Keys do not see it (as b_k), and of the values it is
                        taken out again: b_o -= W_o W_v delta

Exact but for rounding, which grows with delta; an ill-conditioned W_q is refused.
"""

from typing import Any

import torch

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.huggingface.family import ANY, UNGATED, Family, Settings, State, our_kinds, shortest
from gpt_lightning.model.norm import EPS

LARGEST_DELTA = (
    50.0  # times what LayerNorm gives; logits of 4 layers of 256 are off by 6e-6 at 6, 2e-5 at 31, 6e-5 at 117
)

GPT2_MODULES = {
    "wte": "wte",
    "wpe": "wpe",
    "ln_1": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "ln_2": "ln_2",
    "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
    "ln_f": "ln_f",
    "lm_head": "lm_head",
}
NEO_MODULES = GPT2_MODULES | {
    "attn.qkv": "attn.attention.q_proj attn.attention.k_proj attn.attention.v_proj",
    "attn.proj": "attn.attention.out_proj",
}
BIASES: dict[str, bool | tuple[str, bool]] = dict.fromkeys(
    ["ln_1", "attn.qkv", "attn.proj", "ln_2", "mlp.fc", "mlp.proj", "ln_f"], True
)
KINDS = {"dense": "global", "banded": "local"}


def gpt2_settings(config: GPTConfig) -> dict[str, Any]:
    """`n_ctx` is read by llama.cpp's converter."""
    return {"n_ctx": config.context_length, "embd_pdrop": config.dropout, "attn_pdrop": config.dropout}


GPT2 = Family(
    name="GPT-2",
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    layers="h",
    modules=GPT2_MODULES,
    biases=BIASES,
    fields={
        "vocab_size": ("vocab_size", 50257),
        "context_length": ("n_positions", 1024),
        "n_layers": ("n_layer", 12),
        "n_heads": ("n_head", 12),
        "d_model": ("n_embd", 768),
        "d_ff": ("n_inner", None),
        "dropout": ("resid_pdrop", 0.1),
        "tie_embedding": ("tie_word_embeddings", True),
        "init_std": ("initializer_range", 0.02),
    },
    constants={
        "layer_norm_epsilon": ((EPS,), 1e-5),
        "scale_attn_weights": ((True,), True),
        "scale_attn_by_inverse_layer_idx": ((False,), False),
        "add_cross_attention": ((False,), False),
    },
    activation=("activation_function", "gelu_new"),
    activations=UNGATED,
    options={"bias": (True, False)},
    transposed=True,
    write=gpt2_settings,
)


def neo_settings(config: GPTConfig) -> dict[str, Any]:
    """Every layer's kind, said once."""
    return {
        "attention_types": [[[KINDS[kind] for kind in config.attention_kinds()], 1]],
        "embed_dropout": config.dropout,
        "attention_dropout": config.dropout,
    }


def neo_fields(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    """The pattern of attention."""
    said = settings.get("attention_types") or [[["global", "local"], 12]]
    kinds = [kind for pattern, times in said for kind in pattern * times]
    return {"attention_pattern": shortest(our_kinds("attention_types", kinds, KINDS, fields["n_layers"]))}


def fold_neo(config: GPTConfig, state: State, settings: Settings) -> State:
    """The table above, in float32 whatever the model has, whose bits would not do.

    Raises ValueError where b_q cannot move into ln_1.bias without loss.
    """
    state = {
        name: value.to(torch.promote_types(value.dtype, torch.float32), copy=True) for name, value in state.items()
    }
    for i in range(config.n_layers):
        block = {name: state[f"blocks.{i}.{name}"] for name in ("attn.qkv.weight", "attn.proj.weight", "ln_1.weight")}
        w_q, _, w_v = (part.double() for part in block["attn.qkv.weight"].chunk(3))
        if config.bias:
            b_q, b_k, b_v = state[f"blocks.{i}.attn.qkv.bias"].chunk(3)
            ln, out = state[f"blocks.{i}.ln_1.bias"], state[f"blocks.{i}.attn.proj.bias"]
            delta = _solve(w_q, b_q.double(), (block["ln_1.weight"].abs() + ln.abs()).max().item(), i)
            out += (block["attn.proj.weight"].double() @ (b_v.double() - w_v @ delta)).to(out.dtype)
            ln += delta.to(ln.dtype)
            for bias in (b_q, b_k, b_v):
                bias.zero_()
        block["attn.qkv.weight"][: config.d_model] *= config.d_head**-0.5
    return state


def _solve(w_q: torch.Tensor, b_q: torch.Tensor, size: float, layer: int) -> torch.Tensor:
    """delta with W_q delta = b_q. `size`: the largest that LayerNorm gives without it, about."""
    if not b_q.any():
        return torch.zeros_like(b_q)
    delta, failed = torch.linalg.solve_ex(w_q, b_q)
    if failed or not delta.abs().max() <= LARGEST_DELTA * size:
        raise ValueError(
            f"GPT-Neo has no bias on queries, and that of layer {layer} does not fold into its LayerNorm: the query "
            "weights are too nearly singular; train with bias false"
        )
    return delta


def unfold_neo(config: GPTConfig, state: State, settings: Settings) -> State:
    """GPT-Neo's queries at our scale."""
    for i in range(config.n_layers):
        state[f"blocks.{i}.attn.qkv.weight"][: config.d_model] *= config.d_head**0.5
    return state


GPT_NEO = Family(
    name="GPT-Neo",
    model_type="gpt_neo",
    architecture="GPTNeoForCausalLM",
    prefix="transformer.",
    layers="h",
    modules=NEO_MODULES,
    biases=BIASES | {"attn.qkv": False},
    fields={
        "vocab_size": ("vocab_size", 50257),
        "context_length": ("max_position_embeddings", 2048),
        "n_layers": ("num_layers", 24),
        "n_heads": ("num_heads", 16),
        "d_model": ("hidden_size", 2048),
        "d_ff": ("intermediate_size", None),
        "band_width": ("window_size", 256),
        "dropout": ("resid_dropout", 0.0),
        "tie_embedding": ("tie_word_embeddings", True),
        "init_std": ("initializer_range", 0.02),
    },
    constants={"layer_norm_epsilon": ((EPS,), 1e-5)},
    activation=("activation_function", "gelu_new"),
    activations=UNGATED,
    options={"bias": (True, False), "attention_pattern": ANY},
    write=neo_settings,
    read=neo_fields,
    fold=fold_neo,
    unfold=unfold_neo,
)
