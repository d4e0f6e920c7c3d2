"""What a forked process finds done: the package is imported and the settings of a run are known."""

from gpt_lightning.run import fit  # noqa: F401
from gpt_lightning.run.stack import read_stack
from tests import docstrings  # noqa: F401

read_stack([], "fit")
