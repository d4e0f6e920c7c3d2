"""gpt-lightning: train and tune GPT-3-style language models with PyTorch Lightning.

import gpt_lightning as gl
result = gl.run(["configs/quickstart.yaml"], {"model.optim.lr": 3e-4})
print(gl.load(result["run_dir"]).generate("def "))
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_lightning.generator import TextGenerator


def run(configs: Sequence[str | Path] = (), options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train as `gpt-lightning fit` does: YAML layers, later ones win, and options by dotted name over all.

    Returns the run's last metrics, its size and its `run_dir`. Raises ValueError for what the user can mend.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm, in Jupyter without ipywidgets
        from gpt_lightning import train

    return train.run(_arguments(configs, options))


def tune(verb: str, configs: Sequence[str | Path] = (), options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Tune as `gpt-lightning tune VERB` does; the numbers of its result.json, and its folder as `dir`.

    verb: suggest, lr, batch or verify. options: those of `run`, and the verb's own as "tune.NAME".
    Raises ValueError for what the user can mend.
    """
    from gpt_lightning import cli

    name = f"tune {verb}"
    if name not in cli.VERBS:
        known = ", ".join(known.split()[1] for known in cli.VERBS if known.startswith("tune "))
        raise ValueError(f"unknown verb {verb!r}; expected one of {known}")
    options = {"tune.dir": f"runs/{verb}", **(options or {})}
    cli.function(cli.VERBS[name][0])(_arguments(configs, options))
    folder = Path(options["tune.dir"])
    return {**json.loads((folder / "result.json").read_text(encoding="utf-8")), "dir": str(folder)}


def _arguments(configs: Sequence[str | Path], options: Mapping[str, Any] | None) -> list[str]:
    flags = ((name, value if isinstance(value, str) else json.dumps(value)) for name, value in (options or {}).items())
    return [*(f"--config={path}" for path in configs), *(f"--{name}={value}" for name, value in flags)]


def load(path: str | Path) -> "TextGenerator":
    """A trained model that writes text, from a run folder, a checkpoint or a Hugging Face folder."""
    from gpt_lightning import generator

    return generator.load(path)
