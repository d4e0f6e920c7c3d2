"""The files of a Hugging Face folder: weights, tensors alone; config.json; a tokenizer that transformers opens."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

EOT = "<|endoftext|>"
END = "<|end|>"
CHAT_TEMPLATE = (  # the ids of data/examples/encode.py: no text and no line end between a marker and what is said
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def special_ids(eot_id: int) -> dict[str, int]:
    return {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id}


def end_id(tokenizer_json: str) -> int | None:
    """The id that ends a turn, where the tokenizer has the markers of a chat."""
    ids = {token["content"]: int(token["id"]) for token in json.loads(tokenizer_json).get("added_tokens") or []}
    return ids.get(END) if {"<|user|>", "<|assistant|>"} <= ids.keys() else None


def tokenizer_config(context_length: int, is_chat: bool) -> dict[str, Any]:
    return ({"chat_template": CHAT_TEMPLATE} if is_chat else {}) | {
        "tokenizer_class": "PreTrainedTokenizerFast",  # what transformers 4 and 5 both know
        "bos_token": EOT,
        "eos_token": EOT,
        "pad_token": EOT,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }


def eot_id(path: str | Path, tokenizer_json: str, vocab_size: int) -> int:
    spec = json.loads(tokenizer_json)
    ids = {**spec["model"]["vocab"], **{token["content"]: token["id"] for token in spec.get("added_tokens") or []}}
    if EOT not in ids:
        raise ValueError(f"{path} has no {EOT} token, which a Hugging Face folder needs; export a byte-level BPE")
    if max(ids.values()) >= vocab_size:
        raise ValueError(f"{path} has ids up to {max(ids.values())}, the model only {vocab_size}: not its tokenizer")
    return ids[EOT]


def read_weights(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted({Path(name).name for name in read_json(index)["weight_map"].values()})
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


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("expected an object, {…}")
        return values
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
