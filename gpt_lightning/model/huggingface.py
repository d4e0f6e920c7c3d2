"""Weights and settings in and out of Hugging Face's GPT-2 format; the only place that knows its keys.

GPT-2 and our dense GPT are the same function under other names: the four projections are stored transposed
("Conv1D"), and biases cannot be left out, so missing ones are written as zeros. Banded layers have no equal in GPT-2.
Reading needs safetensors, not transformers. Every key must be known, present and of the right shape; nothing is
skipped but the causal masks that old files hold.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt_lightning.files import new_folder
from gpt_lightning.model.gpt import GPT, Block, GPTConfig
from gpt_lightning.model.growth import to_standard

EOT = "<|endoftext|>"

# Ours: theirs, inside a block; the projections are the transposed ones.
PROJECTIONS = {
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
LAYER_NORMS = ("ln_1", "ln_2")
CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias")  # buffers of transformers before version 4.31

# Ours: theirs, and what a config.json that does not say it means (transformers' GPT2Config).
SETTINGS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 50257),
    "context_length": ("n_positions", 1024),
    "n_layers": ("n_layer", 12),
    "n_heads": ("n_head", 12),
    "d_model": ("n_embd", 768),
    "d_ff": ("n_inner", None),
    "dropout": ("resid_pdrop", 0.1),
    "tie_embedding": ("tie_word_embeddings", True),
    "init_std": ("initializer_range", 0.02),
}
# Theirs: the values that are our GPT; the first is also what a config.json means that does not say.
FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def import_gpt2(folder: str | Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Architecture and float32 weights of a GPT-2 model, named as in our GPT.

    Reads config.json and model.safetensors (whole or in shards), else pytorch_model.bin, without running code.
    Raises ValueError when the model is not GPT-2 as we have it, or a key is missing, left over or of another shape.
    """
    folder = Path(folder)
    settings = _read_json(folder / "config.json")
    theirs = {key.removeprefix("transformer."): value for key, value in _read_weights(folder).items()}
    theirs = {key: value for key, value in theirs.items() if not key.endswith(CAUSAL_MASKS)}
    config = _gpt_config(settings)
    head = theirs.get("lm_head.weight")
    if config.tie_embedding and head is not None and "wte.weight" in theirs:
        if not torch.equal(head, theirs["wte.weight"]):
            raise ValueError(f"{folder}: lm_head.weight differs from wte.weight although tie_word_embeddings is true")
        del theirs["lm_head.weight"]
    with torch.device("meta"):
        gpt = GPT(config)
    names, transposed = {name: _their_name(name) for name in gpt.state_dict()}, _transposed(gpt)
    _check_keys(folder, set(names.values()), set(theirs))
    state = {}
    for name, empty in gpt.state_dict().items():
        value = theirs[names[name]]
        value = value.t() if name in transposed else value
        if value.shape != empty.shape:
            found = tuple(theirs[names[name]].shape)
            raise ValueError(f"{folder}: {names[name]} has shape {found}, not of this config")
        state[name] = value.to(torch.float32).contiguous()
    return config, state


def why_not_gpt2(config: GPTConfig) -> str:
    """What a model of the built-in block has that GPT-2 has not; empty when it can be exported."""
    if any(width is not None and width < config.context_length for width in config.band_widths()):
        return (
            f"GPT-2 has no banded attention: a band_width of {config.band_width} under a context_length of "
            f"{config.context_length} cannot be exported; train with attention_pattern [dense]"
        )
    return ""


def export_gpt2(gpt: GPT, tokenizer_json_path: str | Path, folder: str | Path) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer open, whole or not at all.

    A mup or completep model is written with its multipliers folded into the weights, which GPT-2 does not know.
    There, text that spells `<|endoftext|>` is read as that token; our own tokenizer reads it as text.
    Raises ValueError for a block of one's own, for banded layers and for a folder that is not empty.
    """
    folder = Path(folder)
    config = gpt.config
    own = [f"{type(b).__module__}.{type(b).__qualname__}" for b in gpt.blocks if type(b) is not Block]
    if own:
        raise ValueError(f"GPT-2 has no block {own[0]}; only models of the built-in block can be exported")
    if why := why_not_gpt2(config):
        raise ValueError(why)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; choose another folder")
    from safetensors.torch import save_file

    tokenizer_json = Path(tokenizer_json_path).read_text(encoding="utf-8")
    eot_id = _eot_id(tokenizer_json_path, tokenizer_json, config.vocab_size)
    dtype = str(gpt.wte.weight.dtype).removeprefix("torch.")
    with new_folder(folder) as partial:
        _write_json(partial / "config.json", _their_config(config, eot_id) | {"dtype": dtype})
        _write_json(partial / "generation_config.json", _special_ids(eot_id))
        _write_json(partial / "tokenizer_config.json", _tokenizer_config(config.context_length))
        (partial / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        save_file(_their_state(to_standard(gpt)), partial / "model.safetensors", metadata={"format": "pt"})


def _their_name(name: str) -> str:
    """GPT-2's key for one of our parameters, without "transformer."."""
    if not name.startswith("blocks."):
        return name
    _, layer, *module, kind = name.split(".")
    return f"h.{layer}.{PROJECTIONS.get('.'.join(module), '.'.join(module))}.{kind}"


def _transposed(gpt: GPT) -> set[str]:
    """Names of the matrices that GPT-2 stores as (inputs, outputs)."""
    return {name for name, role in gpt.roles().items() if role == "hidden"}


def _check_keys(folder: Path, expected: set[str], found: set[str]) -> None:
    for problem, keys in (("lacks", expected - found), ("has the unknown", found - expected)):
        if keys:
            some = ", ".join(sorted(keys)[:3]) + (", …" if len(keys) > 3 else "")
            raise ValueError(f"{folder} {problem} weights {some} ({len(keys)} in all); expected a GPT-2 model")


def _gpt_config(settings: dict[str, Any]) -> GPTConfig:
    if settings.get("model_type") != "gpt2":
        raise ValueError(f"model_type is {settings.get('model_type')!r}; only gpt2 models can be imported")
    for key, allowed in FIXED.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{key} is {settings[key]!r}; only GPT-2 models with {allowed[0]!r} can be imported")
    return GPTConfig(**{ours: settings.get(theirs, default) for ours, (theirs, default) in SETTINGS.items()})


def _their_config(config: GPTConfig, eot_id: int) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(config, ours) for ours, (theirs, _) in SETTINGS.items()},
        "n_ctx": config.context_length,  # read by llama.cpp's converter
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        **{key: allowed[0] for key, allowed in FIXED.items()},
        **_special_ids(eot_id),
    }


def _their_state(gpt: GPT) -> dict[str, Tensor]:
    state, transposed = {}, _transposed(gpt)
    for name, value in gpt.state_dict().items():
        value = value.detach().cpu()
        key = _their_name(name)
        key = key if key.startswith("lm_head.") else f"transformer.{key}"
        state[key] = (value.t() if name in transposed else value).contiguous()
    for name, module in gpt.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is None and module is not gpt.lm_head:
            state["transformer." + _their_name(f"{name}.bias")] = module.weight.new_zeros(len(module.weight)).cpu()
    return state


def _special_ids(eot_id: int) -> dict[str, int]:
    return {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id}


def _tokenizer_config(context_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # what transformers 4 and 5 both know
        "bos_token": EOT,
        "eos_token": EOT,
        "pad_token": EOT,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }


def _eot_id(path: str | Path, tokenizer_json: str, vocab_size: int) -> int:
    spec = json.loads(tokenizer_json)
    ids = {**spec["model"]["vocab"], **{token["content"]: token["id"] for token in spec.get("added_tokens") or []}}
    if EOT not in ids:
        raise ValueError(f"{path} has no {EOT} token, which a GPT-2 folder needs; export a byte-level BPE")
    if max(ids.values()) >= vocab_size:
        raise ValueError(f"{path} has ids up to {max(ids.values())}, the model only {vocab_size}: not its tokenizer")
    return ids[EOT]


def _read_weights(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted({Path(name).name for name in _read_json(index)["weight_map"].values()})
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    elif (folder / "pytorch_model.bin").is_file():
        return _read_pytorch(folder / "pytorch_model.bin")
    else:
        raise ValueError(f"{folder} has no weights; expected model.safetensors or pytorch_model.bin")
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for name in names:
        try:
            weights |= load_file(folder / name)
        except Exception as error:  # safetensors has its own kinds
            raise ValueError(f"{folder / name} is not a whole safetensors file: {error}") from error
    return weights


def _read_pytorch(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, with advice to load it unsafely
        raise ValueError(f"{path} is not a file of tensors alone; it was not loaded") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} is not a dictionary of tensors")
    return weights


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
