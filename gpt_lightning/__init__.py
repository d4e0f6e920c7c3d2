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

    arguments = [f"--config={path}" for path in configs]
    for name, value in (options or {}).items():
        arguments.append(f"--{name}={value if isinstance(value, str) else json.dumps(value)}")
    return train.run(arguments)


def load(path: str | Path) -> "TextGenerator":
    """A trained model that writes text, from a run folder, a checkpoint or a Hugging Face folder."""
    from gpt_lightning import generator

    return generator.load(path)
