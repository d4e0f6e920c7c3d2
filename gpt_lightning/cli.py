"""`gpt-lightning VERB`: a table from verb to function, imported when used, so that --help answers at once."""

import importlib
import sys
from typing import Any

from gpt_lightning.terminal import fail

VERBS = {
    "prepare": ("gpt_lightning.data.prepare.prepare:main", "text -> tokenizer, token shards and manifest"),
    "fit": ("gpt_lightning.run.fit:fit_main", "train a model: one run, one folder"),
    "validate": ("gpt_lightning.run.fit:validate_main", "score a run's checkpoint on the validation split"),
    "test": ("gpt_lightning.run.fit:test_main", "score a run's checkpoint on the test split"),
    "predict": ("gpt_lightning.run.fit:predict_main", "write the loss of every validation sequence"),
    "tune suggest": ("gpt_lightning.tune.suggest.verb:VERB", "what the published laws say for this corpus and budget"),
    "tune lr": ("gpt_lightning.tune.lr.verb:VERB", "the best learning rate: range test, then short whole runs"),
    "tune batch": ("gpt_lightning.tune.batch.verb:VERB", "largest and fastest micro-batch, critical batch, new lr"),
    "tune verify": ("gpt_lightning.tune.verify.verb:VERB", "proof that this model's parametrization is right"),
    "tune compare": ("gpt_lightning.tune.compare.verb:VERB", "is a change better here, at what cost? Seeds and a test"),
    "tune transfer": ("gpt_lightning.tune.transfer.verb:VERB", "the learning rate of narrow proxies for a wide model"),
    "tune ladder": ("gpt_lightning.tune.ladder.verb:VERB", "a scaling law here: loss and best size of a big run"),
    "tune sweep": ("gpt_lightning.tune.sweep.verb:VERB", "many runs over a search space, on any number of workers"),
    "report": ("gpt_lightning.report.page:main", "runs and studies -> one HTML page: tables, curves, samples"),
    "report select": ("gpt_lightning.serve.select:main", "the best of many runs, scored anew and laid out to deploy"),
    "generate": ("gpt_lightning.serve.generate:main", "write text with a run, a checkpoint or a Hugging Face folder"),
    "export": ("gpt_lightning.serve.convert:export_main", "run -> folder that Hugging Face transformers opens"),
    "import": ("gpt_lightning.serve.convert:import_main", "Hugging Face folder -> run folder"),
}


def usage(group: str = "") -> str:
    """The page that --help prints, of all verbs or of those whose names start with `group`."""
    lines = [f"  {verb:14s}{text}" for verb, (_, text) in VERBS.items() if verb.startswith(group)]
    return "\n".join(
        [
            "usage: gpt-lightning VERB [options]        gpt-lightning VERB --help",
            "",
            "Train and tune GPT-3-style language models with PyTorch Lightning.",
            "",
            *lines,
            "",
            "first run:  gpt-lightning fit --config configs/quickstart.yaml",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; what the user can mend is one line on stderr and exit code 2, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "tune" and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
        print(usage("tune "))
        return 0 if len(arguments) > 1 else 2
    n_words = 2 if arguments[0] == "tune" or " ".join(arguments[:2]) in VERBS else 1
    verb, options = " ".join(arguments[:n_words]), arguments[n_words:]
    if verb not in VERBS:
        return fail(f"unknown verb {verb!r}; expected one of {', '.join(VERBS)}")
    try:
        target, about = VERBS[verb]
        return function(target)(options, about)
    except (ValueError, OSError) as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return 130


def function(target: str) -> Any:
    """What is behind a verb, by its place "module:name": called with arguments and the line that --help begins with."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)
