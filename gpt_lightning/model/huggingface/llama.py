"""Llama and its kin: rotary positions, RMSNorm and a gated MLP.

Qwen3 adds norms on queries and keys, Mistral one band for all layers, Ministral a pattern of dense and banded layers.
Qwen3 can have bands too. Biases: Llama's are all or none, as ours; Qwen3's MLP and the Mistrals have none.
"""

from dataclasses import replace
from typing import Any

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.huggingface import rope
from gpt_lightning.model.huggingface.family import ANY, GATED, Family, Settings, expect, our_kinds, shortest
from gpt_lightning.model.norm import EPS

KINDS = {"dense": "full_attention", "banded": "sliding_attention"}
SIZES: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 32000),
    "context_length": ("max_position_embeddings", 2048),
    "n_layers": ("num_hidden_layers", 32),
    "n_heads": ("num_attention_heads", 32),
    "n_kv_heads": ("num_key_value_heads", None),
    "d_model": ("hidden_size", 4096),
    "d_ff": ("intermediate_size", 11008),
    "dropout": ("attention_dropout", 0.0),
    "tie_embedding": ("tie_word_embeddings", False),
    "init_std": ("initializer_range", 0.02),
}


def llama_settings(config: GPTConfig) -> dict[str, Any]:
    """What our config leaves to be worked out. A padding id would leave its embedding out of fine-tuning."""
    return {
        "pad_token_id": None,
        "num_key_value_heads": config.n_kv_heads or config.n_heads,
        "head_dim": config.d_head,
        "intermediate_size": config.inner_width,
        **rope.SETTINGS,
    }


def llama_fields(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    """Heads, checked; and the rotation. Sizes that are not said and wrong show in the shapes of the weights."""
    rope.check(settings)
    n_heads, d_model, n_kv_heads = fields["n_heads"], fields["d_model"], fields["n_kv_heads"]
    expect("head_dim", settings.get("head_dim") or d_model // n_heads, d_model / n_heads)
    return {"n_kv_heads": None if n_kv_heads == n_heads else n_kv_heads}


def mistral_settings(config: GPTConfig) -> dict[str, Any]:
    """One band."""
    return llama_settings(config) | {"sliding_window": config.band_width}


def mistral_fields(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    """A window for all layers, 4096 when not said; null: none."""
    window = settings.get("sliding_window", 4096)
    return llama_fields(settings, fields) | _bands(window, ["dense" if window is None else "banded"])


def ministral_settings(config: GPTConfig) -> dict[str, Any]:
    """A kind per layer."""
    return mistral_settings(config) | {"layer_types": [KINDS[kind] for kind in config.attention_kinds()]}


def ministral_fields(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    """Kinds as said; without, those of Mistral."""
    if settings.get("layer_types") is None:
        return mistral_fields(settings, fields)
    return llama_fields(settings, fields) | _layer_types(settings, fields, settings.get("sliding_window", 4096))


def qwen3_settings(config: GPTConfig) -> dict[str, Any]:
    """Bands are switched on by a setting of their own."""
    banded = "banded" in config.attention_pattern
    window = config.band_width if banded else None
    return ministral_settings(config) | {
        "use_sliding_window": banded,
        "sliding_window": window,
        "max_window_layers": config.n_layers,
    }


def qwen3_fields(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    """Without layer_types, the layers from max_window_layers on are banded."""
    window = settings.get("sliding_window", 4096) if settings.get("use_sliding_window", False) else None
    if settings.get("layer_types") is None:
        first = fields["n_layers"] if window is None else settings.get("max_window_layers", 28)
        kinds = ["banded" if i >= first else "dense" for i in range(fields["n_layers"])]
        return llama_fields(settings, fields) | _bands(window, kinds)
    return llama_fields(settings, fields) | _layer_types(settings, fields, window)


def _layer_types(settings: Settings, fields: dict[str, Any], window: int | None) -> dict[str, Any]:
    return _bands(window, our_kinds("layer_types", settings["layer_types"], KINDS, fields["n_layers"]))


def _bands(window: int | None, kinds: list[str]) -> dict[str, Any]:
    if "banded" not in kinds:
        return {"attention_pattern": ("dense",)}
    if window is None:
        raise ValueError("sliding_window is None; expected a number of tokens, for the layers of sliding_attention")
    return {"attention_pattern": shortest(kinds), "band_width": window}


LLAMA = Family(
    name="Llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    prefix="model.",
    layers="layers",
    modules={
        "wte": "embed_tokens",
        "ln_1": "input_layernorm",
        "attn.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "attn.proj": "self_attn.o_proj",
        "ln_2": "post_attention_layernorm",
        "mlp.fc": "mlp.gate_proj mlp.up_proj",
        "mlp.proj": "mlp.down_proj",
        "ln_f": "norm",
        "lm_head": "lm_head",
    },
    biases={
        "attn.qkv": ("attention_bias", False),
        "attn.proj": ("attention_bias", False),
        "mlp.fc": ("mlp_bias", False),
        "mlp.proj": ("mlp_bias", False),
    },
    fields=SIZES,
    constants={"rms_norm_eps": ((EPS,), 1e-6)},
    activation=("hidden_act", "silu"),
    activations=GATED,
    options={"positions": ("rotary",), "norm": ("rms",), "n_kv_heads": ANY, "bias": (True, False)},
    write=llama_settings,
    read=llama_fields,
)
QWEN3 = replace(
    LLAMA,
    name="Qwen3",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    modules=LLAMA.modules | {"attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm"},
    biases={name: said for name, said in LLAMA.biases.items() if name.startswith("attn")},
    options=LLAMA.options | {"qk_norm": (True,), "bias": (False,), "attention_pattern": ANY},
    write=qwen3_settings,
    read=qwen3_fields,
)
MISTRAL = replace(
    LLAMA,
    name="Mistral",
    model_type="mistral",
    architecture="MistralForCausalLM",
    biases={},
    options=LLAMA.options | {"bias": (False,), "attention_pattern": (("banded",),)},
    write=mistral_settings,
    read=mistral_fields,
)
MINISTRAL = replace(
    MISTRAL,
    name="Ministral",
    model_type="ministral",
    architecture="MinistralForCausalLM",
    options=MISTRAL.options | {"attention_pattern": ANY},
    write=ministral_settings,
    read=ministral_fields,
)
