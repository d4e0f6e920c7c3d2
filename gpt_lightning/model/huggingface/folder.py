"""A Hugging Face folder in and out: a run's model that transformers opens, and its models as ours.

Reading needs safetensors, not transformers, and never runs code. Every key must be known, present and of the right
shape; nothing is skipped but the masks and frequencies that old files hold.
"""

from pathlib import Path

import torch
from torch import Tensor

from gpt_lightning.files import new_folder
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.gpt import GPT, Block, ParallelBlock
from gpt_lightning.model.growth import to_standard
from gpt_lightning.model.huggingface import files
from gpt_lightning.model.huggingface.choice import family_named, family_of
from gpt_lightning.model.inference import KINDS

BUILT_IN = (Block, ParallelBlock)


def import_gpt(folder: str | Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Architecture and float32 weights of a model, named as in our GPT.

    Reads config.json and model.safetensors (whole or in shards), else pytorch_model.bin.
    Raises ValueError when the model is of a family, or has a setting, that we do not hold, or a key is missing, left
    over or of another shape.
    """
    folder = Path(folder)
    settings = files.read_json(folder / "config.json")
    try:
        family = family_named(settings.get("model_type"))
        config = family.config(settings)
    except (TypeError, ValueError) as error:  # TypeError: a number that is none
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    with torch.device("meta"):
        gpt = GPT(config)
    weights = files.read_weights(folder)
    try:
        return config, family.to_ours(gpt, weights, settings)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def not_ours(block: str) -> str:
    """Why a model of a block of one's own cannot be exported."""
    return f"no Hugging Face family has the block {block}; only models of the built-in block can be exported"


def export_gpt(gpt: GPT, tokenizer_json_path: str | Path, folder: str | Path) -> str:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer open, whole or not at all.

    A mup or completep model is written with its multipliers folded into the weights, which no family knows.
    There, text that spells `<|endoftext|>` is read as that token; our own tokenizer reads it as text.
    Returns what it is written as: the family, and its activation where a reader might take another for granted.
    Raises ValueError for a block of one's own, for what no family has, and for a folder that is not empty.
    """
    folder, config = Path(folder), gpt.config
    own = [f"{type(b).__module__}.{type(b).__qualname__}" for b in gpt.blocks if type(b) not in BUILT_IN]
    if own:
        raise ValueError(not_ours(own[0]))
    if any(isinstance(part, tuple(KINDS.values())) for part in gpt.modules()):
        raise ValueError("this model was prepared for generation, as gl.load does; export its run folder or checkpoint")
    family = family_of(config)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; choose another folder")
    from safetensors.torch import save_file

    tokenizer_json = Path(tokenizer_json_path).read_text(encoding="utf-8")
    special_ids = files.special_ids(files.eot_id(tokenizer_json_path, tokenizer_json, config.vocab_size))
    standard = to_standard(gpt)
    settings = special_ids | family.settings(standard.config)
    weights = family.to_theirs(standard, settings)
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    with new_folder(folder) as partial:
        files.write_json(partial / "config.json", settings | {"dtype": dtype, "torch_dtype": dtype})
        end = files.end_id(tokenizer_json)
        stops = {} if end is None else {"eos_token_id": [end, special_ids["eos_token_id"]]}
        files.write_json(partial / "generation_config.json", special_ids | stops)
        tokenizer_config = files.tokenizer_config(config.context_length, is_chat=end is not None)
        files.write_json(partial / "tokenizer_config.json", tokenizer_config)
        (partial / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    key, usual = family.activation
    return family.name if settings[key] == usual else f"{family.name} with {key} {settings[key]}"
