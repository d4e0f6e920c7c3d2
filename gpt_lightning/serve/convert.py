"""The verbs `export` and `import`: between a run folder and a folder that Hugging Face transformers opens.

An imported model becomes a run like any other: generate from it, score it, or train it further by laying its
config.yaml under your own settings, `fit --config runs/gpt2/config.yaml --data.corpus my.txt`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from gpt_lightning.terminal import Parser

if TYPE_CHECKING:
    from gpt_lightning.model.gpt import GPTConfig

CONFIG_HEADER = """\
# Imported from {source}. To train it further:
#   gpt-lightning fit --config {run_dir}/config.yaml --data.corpus CORPUS --run_dir runs/NAME --max_tokens 10_000_000
"""


def export_main(argv: list[str], about: str = "") -> int:
    """The verb `export`."""
    parser = Parser(
        prog="gpt-lightning export",
        description=about or None,
        epilog="Written as the family that holds the model: GPT-2, GPT-Neo, Llama, Qwen3, GPT-NeoX, Mistral or "
        "Ministral; what none has is refused by name. In that folder, text that spells <|endoftext|> is read as that "
        "token.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, metavar="PATH", help="a run folder, or one of its .ckpt files")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new folder; 4 bytes per parameter")
    options = parser.parse_args(argv)

    from gpt_lightning.checkpoint import find_checkpoint, find_tokenizer, gpt_of, read_checkpoint, trained_block
    from gpt_lightning.model.huggingface.folder import export_gpt, not_ours

    tokenizer, checkpoint = find_tokenizer(options.run), read_checkpoint(find_checkpoint(options.run), optimizer=False)
    if block := trained_block(checkpoint):
        raise ValueError(not_ours(block["class_path"]))
    family = export_gpt(gpt_of(checkpoint), tokenizer, options.output)
    opened = f"transformers.AutoModelForCausalLM.from_pretrained({options.output!r})"
    print(f"{options.output}: written as {family}; open it with {opened}")
    return 0


def import_main(argv: list[str], about: str = "") -> int:
    """The verb `import`."""
    parser = Parser(
        prog="gpt-lightning import",
        description=about or None,
        epilog="Reads GPT-2, GPT-Neo, Llama, Qwen3, GPT-NeoX, Mistral, Ministral and NanoChat where their settings are "
        "ours; what is not is refused by name. NanoChat cannot be written back: its norms have no weights.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--input",
        required=True,
        metavar="FOLDER",
        help="holds config.json, tokenizer.json and model.safetensors (or pytorch_model.bin)",
    )
    parser.add_argument("--run_dir", required=True, metavar="FOLDER", help="new run folder; 4 bytes per parameter")
    options = parser.parse_args(argv)
    import_run(Path(options.input), Path(options.run_dir))
    print(f'{options.run_dir}: try gpt-lightning generate --run {options.run_dir} --prompt "Once upon a time"')
    return 0


def import_run(source: Path, path: Path) -> None:
    """Make a run folder from a Hugging Face folder. Raises ValueError, with nothing written, when it cannot be one."""
    from importlib.metadata import version

    from gpt_lightning.checkpoint import gpt_config_to_dict, write_checkpoint
    from gpt_lightning.data.tokenizer import Tokenizer
    from gpt_lightning.model.huggingface.folder import import_gpt
    from gpt_lightning.run.folder import RunDir

    run_dir = RunDir(path)
    if run_dir.check("overwrite"):
        raise ValueError(f"{path} already holds a run; choose another --run_dir")
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder; expected one with a model, as gpt-lightning export writes it")
    tokenizer = Tokenizer.from_file(source / "tokenizer.json")
    config, state = import_gpt(source)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} ids, the model only {config.vocab_size}; "
            "expected a tokenizer.json that belongs to the model"
        )
    run_dir.claim("refuse")
    try:
        run_dir.write_text("tokenizer.json", tokenizer.json)
        checkpoint = {
            "state_dict": {f"gpt.{name}": value for name, value in state.items()},
            "gpt_config": gpt_config_to_dict(config),
            "tokens_seen": 0,
            "pytorch-lightning_version": version("lightning"),  # without it Lightning reads no checkpoint
        }
        write_checkpoint(checkpoint, run_dir.checkpoints / "best.ckpt")
        run_dir.write_text("config.yaml", _config_yaml(config, source, path))
    finally:
        run_dir.release()


def _config_yaml(config: "GPTConfig", source: Path, run_dir: Path) -> str:
    """An overlay for `fit` that starts from these weights, with this tokenizer."""
    import yaml

    from gpt_lightning.checkpoint import gpt_config_to_dict

    gpt = {key: value for key, value in gpt_config_to_dict(config).items() if value is not None}
    context_length = gpt.pop("context_length")  # this and vocab_size come from the data
    del gpt["vocab_size"]
    overlay = {
        "model": {"gpt": gpt, "init_from": str(run_dir / "checkpoints" / "best.ckpt")},
        "data": {"context_length": context_length, "prepare": {"tokenizer": str(run_dir / "tokenizer.json")}},
    }
    header = CONFIG_HEADER.format(source=source, run_dir=run_dir)
    return header + yaml.safe_dump(overlay, sort_keys=False, default_flow_style=None)
