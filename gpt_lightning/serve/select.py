"""The verb `report select`: the best of many runs, scored anew and laid out to deploy.

gpt-lightning report select runs --output best

candidates    runs that kept a checkpoint, the lowest in their own metrics.csv first; of another validation text, or
              in nats per token of another vocabulary, they are refused
choice        the first few of them on the whole validation split: runs score themselves on parts that may differ
score         of the one that is chosen, on the test split, which nothing was chosen on
best/         README.md (model card)  selected.json  config.yaml  tokenizer.json  checkpoints/best.ckpt (weights
              alone)  huggingface/ where a family there holds the model
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gpt_lightning import files
from gpt_lightning.report.runs import METRICS
from gpt_lightning.terminal import Parser, console, say

if TYPE_CHECKING:
    from gpt_lightning.data.corpus import Corpus
    from gpt_lightning.report.runs import RunFolder
    from gpt_lightning.run.build import Run
    from gpt_lightning.run.stack import Stack

N_FINALISTS = 5
OF_TEXT = ("data.corpus", "data.val_corpus", "data.prepare.")  # settings that decide it
STATE_OF_TRAINING = ("optimizer_states", "lr_schedulers", "loops", "callbacks")
ALONE = {  # a run of any strategy is scored here
    **{"trainer.devices": 1, "trainer.num_nodes": 1, "trainer.strategy": "auto", "trainer.logger": False},
    **{"trainer.enable_progress_bar": False, "trainer.callbacks": None},
}


@dataclass(frozen=True)
class Candidate:
    """A run that may be chosen. recorded: the lowest in its metrics.csv; scored: on the whole validation split."""

    run: str
    recorded: float
    scored: float | None = None


def main(argv: list[str], about: str = "") -> int:
    """The verb `report select`."""
    parser = Parser(prog="gpt-lightning report select", description=about or None, allow_abbrev=False)
    parser.add_argument("paths", nargs="*", default=["runs"], help="folders with runs at any depth; runs")
    parser.add_argument("--output", default="best", metavar="FOLDER", help="new folder; best")
    parser.add_argument("--metric", default=METRICS[0], choices=METRICS, help=f"what is to be lowest; {METRICS[0]}")
    options = parser.parse_args(argv)
    select(options.paths, Path(options.output), options.metric)
    return 0


def select(paths: Sequence[str | Path], output: Path, metric: str = METRICS[0]) -> dict[str, Any]:
    """Choose, score and lay out; what selected.json holds. Raises ValueError where there is nothing to choose from."""
    from gpt_lightning.report.runs import find_runs
    from gpt_lightning.run.fit import score
    from gpt_lightning.serve.card import model_card

    if output.exists():
        raise ValueError(f"{output} is already there; choose another --output")
    runs = find_runs(paths)
    candidates = _candidates(runs, metric)
    by_name = {run.name: run for run in runs}
    _check_text([by_name[candidate.run] for candidate in candidates], metric)
    finalists = _finalists(candidates[:N_FINALISTS], by_name, metric)
    chosen, scores, run = finalists[0]
    source, split = by_name[chosen.run], "val"
    if all("test" in corpus.splits for corpus in run.data.val_corpora):
        split, (scores, run) = "test", score(_stack(source), "test")
    else:
        say("the corpus has no test split (prepare with --test_fraction): the score is that of the validation split")
    selected = {
        "run": chosen.run,
        "metric": metric,
        "split": split,
        "scores": scores,
        "n_runs": len(runs),
        "n_candidates": len(candidates),
        "finalists": [asdict(candidate) for candidate, _, _ in finalists],
    }
    with files.new_folder(output) as folder:
        selected["huggingface"] = _lay_out(source, folder, output)
        files.write_text(folder / "selected.json", json.dumps(selected, indent=2) + "\n")
        files.write_text(folder / "README.md", model_card(selected, run, source, str(output)))
    text = ", ".join(f"{key} {value:.4f}" for key, value in scores.items())
    console().print(f"{output}: {chosen.run}, the best of {len(candidates)} runs; {text}", markup=False)
    return selected


def _candidates(runs: "Sequence[RunFolder]", metric: str) -> list[Candidate]:
    from gpt_lightning.report.metrics_csv import read_metrics

    found, without = [], 0
    for run in runs:
        table = read_metrics(run.path)
        kept = any((run.path / "checkpoints" / f"{name}.ckpt").exists() for name in ("best", "last"))
        if metric in table and table[metric].notna().any() and kept:
            found.append(Candidate(run.name, float(table[metric].min())))
        else:
            without += 1
    if not found:
        raise ValueError(f"of {len(runs)} runs none has both a checkpoint and {metric} in its metrics.csv")
    if without:
        say(f"{without} of {len(runs)} runs kept no checkpoint or have no {metric}: they cannot be chosen")
    return sorted(found, key=lambda candidate: candidate.recorded)


def _finalists(
    candidates: "Sequence[Candidate]", runs: "Mapping[str, RunFolder]", metric: str
) -> "list[tuple[Candidate, dict[str, float], Run]]":
    """Each on the whole validation split, with all scores and its run, the lowest first."""
    from gpt_lightning.run.fit import score

    scored: list[tuple[Candidate, dict[str, float], Run]] = []
    for candidate in candidates:
        scores, run = score(_stack(runs[candidate.run]), "val")
        scored.append((Candidate(candidate.run, candidate.recorded, scores[metric]), scores, run))
        say(f"{candidate.run}: {metric} {scores[metric]:.4f} on the whole validation split")
    return sorted(scored, key=lambda finalist: finalist[1][metric])


def _check_text(runs: "Sequence[RunFolder]", metric: str) -> None:
    """Raise ValueError where runs have different validation splits; those of the same settings are opened once."""
    from gpt_lightning.run.build import open_corpora

    firsts: dict[str, RunFolder] = {}
    for run in runs:
        text = {key: value for key, value in run.settings.items() if key.startswith(OF_TEXT)}
        firsts.setdefault(json.dumps(text, sort_keys=True, default=str), run)
    scored_on = {}
    for run in firsts.values():
        try:
            scored_on[run.name] = _scored_on(open_corpora(_stack(run))[1], metric)
        except (ValueError, OSError) as error:
            raise ValueError(f"{run.name}: {error}; give the folders of runs whose corpus is there") from error
        if scored_on[run.name] != scored_on[runs[0].name]:
            of_tokens = "" if metric == METRICS[0] else f", or --metric {METRICS[0]} for runs of several vocabularies"
            raise ValueError(
                f"{runs[0].name} and {run.name} have different validation splits, so {metric} does not say which is "
                f"better; give the folders of runs on one corpus{of_tokens}"
            )


def _scored_on(corpora: "Sequence[Corpus]", metric: str) -> list[str]:
    """What scores must share to compare: the validation text, and in nats per token also what cuts it into tokens."""
    from gpt_lightning.data.compression import text_digest

    text = text_digest(corpora)
    if text is None:  # no tokenizer: the very tokens
        return [corpus.identity for corpus in corpora]
    tokenizers = [corpus.tokenizer.sha256 for corpus in corpora if corpus.tokenizer]
    return [text] if metric == METRICS[0] else [text, *tokenizers]


def _stack(run: "RunFolder") -> "Stack":
    """The run's own settings, to be scored on whole splits by one process."""
    from gpt_lightning.run.stack import read_stack

    stack, _ = read_stack([f"--config={run.path / 'config.yaml'}"], "report select")
    options = {"run_dir": str(run.path), "trainer.limit_val_batches": 1.0, "trainer.limit_test_batches": 1.0}
    return stack.with_({**ALONE, **options})


def _lay_out(source: "RunFolder", folder: Path, output: Path) -> str:
    """Weights, settings, tokenizer and the Hugging Face folder; the family of that."""
    from gpt_lightning.checkpoint import find_checkpoint, read_checkpoint, write_checkpoint

    checkpoint = read_checkpoint(find_checkpoint(source.path), optimizer=False)
    weights = {key: value for key, value in checkpoint.items() if key not in STATE_OF_TRAINING}
    write_checkpoint(weights, folder / "checkpoints" / "best.ckpt")
    own = yaml.safe_load((source.path / "config.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump({**own, "run_dir": str(output)}, sort_keys=False)
    files.write_text(folder / "config.yaml", text)
    if (source.path / "tokenizer.json").is_file():
        shutil.copy(source.path / "tokenizer.json", folder / "tokenizer.json")
    return _export(checkpoint, folder)


def _export(checkpoint: dict[str, Any], folder: Path) -> str:
    """The family that it was written as, or empty; and a line that says why not."""
    from gpt_lightning.checkpoint import gpt_of, trained_block
    from gpt_lightning.model.huggingface.folder import export_gpt, not_ours

    try:
        if block := trained_block(checkpoint):
            raise ValueError(not_ours(block["class_path"]))
        if not (folder / "tokenizer.json").is_file():
            raise ValueError("it has no tokenizer.json")
        return export_gpt(gpt_of(checkpoint), folder / "tokenizer.json", folder / "huggingface")
    except ValueError as error:
        say(f"no Hugging Face folder: {error}")
        return ""
