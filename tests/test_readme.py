"""The README's commands run: each `gpt-lightning` line as it stands, made small by flags laid over it."""

import json
import re
import shlex
from pathlib import Path

import pytest

from gpt_lightning import cli
from gpt_lightning.data.prepare import sources
from tests.fixtures import write_text

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)).replace("\\\n", " ")
COMMANDS = [line.split("#")[0].strip() for line in BLOCKS.splitlines() if line.startswith("gpt-lightning ")]
TINY = ["--max_tokens=512", "--model.gpt.d_model=32", "--model.gpt.n_heads=2", "--model.schedule.warmup_tokens=256"]
TUNE = {  # a tuning verb's own options that make it small
    "tune suggest": [],
    "tune lr": ["--tune.tokens=5120", "--tune.seeds=1", "--tune.val_tokens=256"],
    "tune batch": ["--tune.tokens=2048"],
    "tune verify": [],
    "tune transfer": ["--max_tokens=5120", "--tune.val_tokens=256", "--model.gpt.d_model=32", "--model.gpt.n_heads=4"],
    "tune ladder": [
        *["--max_tokens=10240", "--tune.val_tokens=256", "--model.gpt.d_model=32", "--model.gpt.n_heads=8"],
        *["--tune.flops=5e10", "--tune.share=0.6", "--data.batch_tokens=512", "--data.micro_batch_size=8"],
    ],
    "tune sweep": [
        "--max_tokens=20480",
        "--tune.rungs=2",
        "--tune.trials=3",
        "--tune.space={model.optim.lr: [1e-3, 1e-2]}",
    ],
    "tune compare": ["--tune.seeds=2", "--tune.val_tokens=256", *TINY],
}
SMALL = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto", "--trainer.num_nodes=1"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_runs_in_the_order_it_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    library, files = sources._stdlib_files()
    few = [path for path in files if path.parent.name in ("json", "logging", "email")]
    monkeypatch.setattr(sources, "_stdlib_files", lambda: (library, few))  # compressing all of it takes half a minute
    monkeypatch.setattr("gpt_lightning.tune.batch.micro_batch.LARGEST", 4)
    monkeypatch.setattr("gpt_lightning.tune.ladder.plan.LEAST_STEPS", 4)
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_text(tmp_path / "my.txt")
    write_examples(tmp_path)
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        n_words = 2 if command.split()[1] == "tune" else 1
        words = shlex.split(command)[1:]
        verb, options = " ".join(words[:n_words]), words[n_words:]
        if verb in ("fit", "validate"):
            run_dir = options[options.index("--run_dir") + 1] if "--run_dir" in options else "runs/quickstart"
            options += ["--config=configs/debug.yaml", "--data.prepare.tokenizer=bytes", *SMALL, *TINY]
            options += ["--model.compile=false"]  # the type checks of the tests do not compile
            options += ["--if_exists=overwrite", f"--run_dir={run_dir}"]
        if verb in TUNE:
            options += ["--config=configs/debug.yaml", "--data.prepare.tokenizer=bytes", *SMALL, *TUNE[verb]]
            tuned = Path("runs", verb.removeprefix("tune "), "tuned.yaml")
        if verb == "generate":
            options += ["--max_new_tokens=3"]
        assert cli.main([*verb.split(), *options]) == 0, command + "\n" + capsys.readouterr().err
        assert verb not in TUNE or tuned.is_file(), command


def write_examples(folder: Path) -> None:
    """Conversations and labelled texts."""
    chat = [
        [{"role": "user", "content": f"is {i} odd?"}, {"role": "assistant", "content": "?!"[i % 2]}] for i in range(40)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in chat))
    (folder / "labels.csv").write_text("text,label\n" + "".join(f"is {i} odd?,{i % 2}\n" for i in range(40)))


def test_names_every_tuning_verb():
    named = {" ".join(command.split()[1:3]) for command in COMMANDS}
    assert named >= {verb for verb in cli.VERBS if verb.startswith("tune ")}


def test_the_tree_names_every_file_of_the_package():
    for path in (ROOT / "gpt_lightning").rglob("*.py"):
        if path.name not in ("__init__.py", "__main__.py"):
            assert re.search(rf"\b{path.stem}\b", TEXT), path


def test_is_under_200_lines_and_its_links_exist():
    assert TEXT.count("\n") < 200
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
