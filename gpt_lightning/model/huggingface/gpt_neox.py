"""GPT-NeoX: rotary positions with LayerNorm and an MLP without a gate; blocks one after the other or in parallel.

It stores queries, keys and values head by head, ours all queries first: rows (3, H, K) become (H, 3, K).
"""

from typing import Any

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.huggingface import rope
from gpt_lightning.model.huggingface.family import UNGATED, Family, Settings, State
from gpt_lightning.model.norm import EPS


def neox_settings(config: GPTConfig) -> dict[str, Any]:
    """What our config says in other numbers, and the rotation as both old and new readers look for it."""
    return {
        "intermediate_size": config.inner_width,
        "attention_dropout": config.dropout,
        "rope_parameters": rope.SETTINGS["rope_parameters"] | {"partial_rotary_factor": 1.0},
        "rotary_emb_base": rope.BASE,
        "rotary_pct": 1.0,
    }


def neox_fields(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    """None more; the rotation is checked. It turns a quarter of a head when not told otherwise."""
    rope.check(settings, "rotary_emb_base", "rotary_pct", 0.25)
    return {}


def fold_neox(config: GPTConfig, state: State, settings: Settings) -> State:
    """Rows (3, H, K) -> (H, 3, K)."""
    return _regrouped(state, (3, config.n_heads))


def unfold_neox(config: GPTConfig, state: State, settings: Settings) -> State:
    """Rows (H, 3, K) -> (3, H, K)."""
    return _regrouped(state, (config.n_heads, 3))


def _regrouped(state: State, groups: tuple[int, int]) -> State:
    return {
        name: value.unflatten(0, (*groups, -1)).transpose(0, 1).flatten(0, 2) if ".attn.qkv." in name else value
        for name, value in state.items()
    }


GPT_NEOX = Family(
    name="GPT-NeoX",
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    layers="layers",
    modules={
        "wte": "embed_in",
        "ln_1": "input_layernorm",
        "attn.qkv": "attention.query_key_value",
        "attn.proj": "attention.dense",
        "ln_2": "post_attention_layernorm",
        "mlp.fc": "mlp.dense_h_to_4h",
        "mlp.proj": "mlp.dense_4h_to_h",
        "ln_f": "final_layer_norm",
        "lm_head": "embed_out",  # in files; transformers 5 calls it lm_head in memory
    },
    biases={
        "attn.qkv": ("attention_bias", True),
        "attn.proj": ("attention_bias", True),
        **dict.fromkeys(["ln_1", "ln_2", "mlp.fc", "mlp.proj", "ln_f"], True),
    },
    fields={
        "vocab_size": ("vocab_size", 50432),
        "context_length": ("max_position_embeddings", 2048),
        "n_layers": ("num_hidden_layers", 44),
        "n_heads": ("num_attention_heads", 64),
        "d_model": ("hidden_size", 6144),
        "d_ff": ("intermediate_size", 24576),
        "parallel": ("use_parallel_residual", True),
        "dropout": ("hidden_dropout", 0.0),
        "tie_embedding": ("tie_word_embeddings", False),
        "init_std": ("initializer_range", 0.02),
    },
    constants={"layer_norm_eps": ((EPS,), 1e-5)},
    activation=("hidden_act", "gelu"),
    activations=UNGATED,
    options={"positions": ("rotary",), "parallel": (False, True), "bias": (True, False)},
    write=neox_settings,
    read=neox_fields,
    fold=fold_neox,
    unfold=unfold_neox,
)
