"""The stack below a run that starts from another one's weights: the architecture that these weights are of."""

from pathlib import Path
from typing import Any

import yaml

FROM_DATA = ("vocab_size", "context_length")  # of model.gpt


def base_overlay(init_from: str) -> dict[str, Any]:
    """`model.gpt` and `data.context_length` of the run that `init_from`, its folder or a checkpoint in it, belongs to.

    Overlays and flags win over it. Empty where there is no config.yaml. A block of the user's own is no part of it:
    no file names code to be run. Raises ValueError for a file that is damaged.
    """
    path = Path(init_from)
    for folder in (path, path.parent, path.parent.parent):
        file = folder / "config.yaml"
        if file.is_file() and ((folder / "checkpoints").is_dir() or folder == path):
            break
    else:
        return {}
    try:
        stack = yaml.safe_load(file.read_text(encoding="utf-8"))
        gpt = {name: value for name, value in stack["model"]["gpt"].items() if name not in FROM_DATA}
        return {"model": {"gpt": gpt}, "data": {"context_length": stack["data"]["context_length"]}}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is not the config.yaml of a run ({error!r}); restore it, or name another run"
        ) from None
