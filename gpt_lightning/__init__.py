"""gpt-lightning: train and tune GPT-3-style language models with PyTorch Lightning.

import gpt_lightning as gl
result = gl.run(["configs/quickstart.yaml"], {"model.optim.lr": 3e-3})
print(gl.load(result["run_dir"]).generate("def "))
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpt_lightning.run as _  # first: the function of that name below, not the package, is gl.run  # noqa: F401

if TYPE_CHECKING:
    from gpt_lightning.serve.text import TextGenerator


def run(
    configs: Sequence[str | Path] = (), options: Mapping[str, Any] | None = None, verb: str = "fit"
) -> dict[str, Any]:
    """Do what `gpt-lightning VERB` does: YAML overlays, later ones win, and options by dotted name over all.

    verb: fit trains, and gives the run's last metrics, its size and its `run_dir`; "tune suggest" and the
        other verbs of tuning give the numbers of their result, and its folder as `dir`.
    Raises ValueError for what the user can mend.
    """
    flags = ((name, value if isinstance(value, str) else json.dumps(value)) for name, value in (options or {}).items())
    arguments = [*(f"--config={path}" for path in configs), *(f"--{name}={value}" for name, value in flags)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm, in Jupyter without ipywidgets
        if verb == "fit":
            from gpt_lightning.run import fit

            return fit.run(arguments)
        from gpt_lightning import cli

        known = [name for name in cli.VERBS if name.startswith("tune ")]
        if verb not in known:
            raise ValueError(f"unknown verb {verb!r}; expected one of fit, {', '.join(known)}")
        result, folder = cli.function(cli.VERBS[verb][0]).run(arguments)
        return {**result.to_dict(), "dir": str(folder)}


def load(path: str | Path, block: Any = None, weights: str = "float32") -> "TextGenerator":
    """A trained model that writes text, from a run folder, a checkpoint or a Hugging Face folder.

    block: the run's own block, when it has one: the class, or its import path.
    weights: float32, bfloat16 or int8, which is the fastest on a CPU.
    """
    from gpt_lightning.serve import text

    return text.load(path, block, weights)
