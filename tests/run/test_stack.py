"""One reader: every overlay and form of a flag means the same to `fit` and to verbs that read without Lightning."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_lightning.run.schema import Data, Devices, Model, Ramp
from gpt_lightning.run.stack import flatten, read_stack
from tests.fixtures import arguments, environment, write_text

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name not in ("task", "sweep"))
LEFT_OUT = ("trainer.", "samples.", "gradient_noise.", "model.block", "model.loss")  # by the light reader
CORPUS = ("model.gpt.vocab_size", "model.gpt.n_labels")  # come from the corpus
FORMS = {
    "a group as a mapping": ["--config=muon.yaml", "--model.optim", "{lr: 1e-3}"],
    "a group as a file": ["--model.gpt", "gpt.yaml"],
    "the whole model as a mapping": ["--model={gpt: {n_layers: 3}, optim: {lr: 2e-3}}", "--model.gpt.n_heads=2"],
    "a key of a mapping": ["--config=muon.yaml", "--model.optim.lr_ratios.hidden=5"],
    "a mapping that replaces": ["--config=muon.yaml", "--model.optim.lr_ratios={embedding: 6.0}"],
    "flags before overlays": ["--max_tokens=2e3", "--model.optim.lr", "3e-4", "-c", "muon.yaml"],
    "counts": ["--max_tokens=3e6", "--run_dir=1e4", "--data.batch_tokens", "8_192"],
    "a mixture": ["--data.corpus={a: 1.0, b: 3}"],
    "text that is no YAML": ["--data.prepare.glob=**/*.yaml"],
    "what only fit reads": [
        "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor",
        "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy",
        "--trainer.strategy.init_args.find_unused_parameters=true",
        "--samples.prompt=def",
        "--gradient_noise.interval_steps=3",
    ],
    "devices in a mapping": ["--trainer={devices: 2, num_nodes: 3, log_every_n_steps: 5}", "--trainer.num_nodes=4"],
    "null": ["--config=muon.yaml", "--model.schedule.decay_tokens=null", "--model.gpt.d_ff=null"],
    "a ramp": ["--batch_ramp.ramp_tokens=1e5", "--batch_ramp={lr_rule: sqrt}"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "muon.yaml").write_text("model: {optim: {name: muon, lr_ratios: {hidden: 2.0}, lr: 5e-3}}\n")
    (tmp_path / "gpt.yaml").write_text("n_layers: 3\nd_model: 96\n")
    (tmp_path / "task.yaml").write_text("tune: {seeds: 3}\n")
    return tmp_path


def both(*words: str) -> tuple[dict, dict]:
    """What `fit` and the light reader read, as far as both know it."""
    read = [flatten(read_stack(list(words), "x", light=light)[0].to_dict()) for light in (False, True)]
    keep = [{k: v for k, v in one.items() if not k.startswith((*LEFT_OUT, *CORPUS))} for one in read]
    devices = [{k: one[k] for k in one if k in ("trainer.devices", "trainer.num_nodes")} for one in read]
    return keep[0] | devices[0], keep[1] | devices[1]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_is_read_alike(path):
    full, light = both(f"--config={path}")
    assert full == light and len(full) > 30


@pytest.mark.parametrize("words", FORMS.values(), ids=FORMS)
def test_every_form_of_a_flag_is_read_alike(words):
    full, light = both(*words)
    assert full == light


def test_a_muon_overlay_keeps_muon_and_its_ratios_under_a_mapping_with_another_lr():
    for light in (False, True):
        stack, _ = read_stack(["--config=muon.yaml", "--model.optim", "{lr: 1e-3}"], "x", light=light)
        optim = stack.settings("model.optim")
        assert (optim.name, optim.lr, optim.lr_ratios) == ("muon", 1e-3, {"hidden": 2.0})


def test_text_stays_text_and_counts_are_numbers():
    stack, _ = read_stack(["--max_tokens=3e6", "--run_dir=1e4"], "x", light=True)
    assert (stack["max_tokens"], stack["run_dir"]) == (3_000_000, "1e4")


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.optim.lr=nan"], ["model.optim.lr", "finite number", "nan"]),
        (["--model.optim.lr=inf"], ["model.optim.lr", "finite number", "inf"]),
        (["--model.optim.lr=fast"], ["model.optim.lr", "finite number", "fast"]),
        (["--max_tokens=many"], ["max_tokens", "whole number", "many"]),
        (["--model.gpt.bias=maybe"], ["model.gpt.bias", "true or false", "maybe"]),
        (["--model.gpt.n_layer=2"], ["n_layer", "did you mean model.gpt.n_layers"]),
        (["--model.gpt", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--config", "task.yaml"], ["tune", "such as gpt-lightning tune compare"]),
        (["--tune.seeds=3"], ["tune.seeds", "such as gpt-lightning tune compare"]),
        (["--val_interval_tokens=0"], ["val_interval_tokens", "0"]),
        (["stray"], ["stray", "--key value"]),
    ],
)
def test_what_is_wrong_is_said_in_words(words, said, light):
    with pytest.raises(ValueError) as error:
        read_stack(words, "x", light=light)
    assert all(word in str(error.value) for word in said), error.value
    assert "<class" not in str(error.value)


def test_a_stack_is_a_value():
    stack, _ = read_stack(["--model.optim.lr=1e-3"], "x")
    other = stack.with_({"model.optim.lr": 2e-3, "max_tokens": 77, "data.context_length": 64})
    assert (stack["model.optim.lr"], stack["max_tokens"]) == (1e-3, 300_000_000)
    assert (other["model.optim.lr"], other["max_tokens"], other["model.max_tokens"]) == (2e-3, 77, 77)
    assert other["model.gpt.context_length"] == 64, "what follows from a setting follows"
    for options, words in (
        ({"model.optim.lrr": 1.0}, "did you mean"),
        ({"model.optim.lr": "fast"}, "finite number"),
        ({"model.gpt.n_heads": 7}, "not divisible"),
    ):
        with pytest.raises(ValueError, match=words):
            stack.with_(options)


def test_the_yaml_of_a_stack_is_the_same_stack(folder):
    stack, _ = read_stack(
        ["--config=muon.yaml", "--model.gpt.attention_pattern=[dense, banded]", "--max_tokens=5e5"], "x"
    )
    (folder / "again.yaml").write_text(stack.to_yaml())
    assert read_stack(["--config=again.yaml"], "x")[0].to_dict() == stack.to_dict()


@pytest.mark.parametrize("kind", ["model", "data", "batch_ramp", "trainer"])
def test_the_light_schema_has_the_names_and_defaults_of_the_signatures(kind):
    from lightning.pytorch import Trainer

    from gpt_lightning.callbacks.batch_ramp import BatchRamp
    from gpt_lightning.data.datamodule import CorpusDataModule
    from gpt_lightning.module import GPTModule

    light, full, extra = {
        "model": (Model(), GPTModule, {"max_tokens"}),  # linked from the run's
        "data": (Data(), CorpusDataModule, set()),
        "batch_ramp": (Ramp(), BatchRamp, set()),
        "trainer": (Devices(), Trainer, None),
    }[kind]
    signature = inspect.signature(full).parameters
    names = {field.name for field in dataclasses.fields(light)}
    assert names == set(signature) - extra if extra is not None else names <= set(signature)
    for name in names - {"block", "loss", "precision"}:
        assert getattr(light, name) == signature[name].default, name


def test_settings_that_lightning_refuses_are_one_line(folder, capsys):
    from gpt_lightning import cli

    write_text(folder / "text.txt")
    flags = arguments({"data.corpus": "text.txt", "trainer.accelerator": "gpu", "run_dir": "runs/bad"})
    assert cli.main(["fit", *flags]) == 2
    errors = capsys.readouterr().err
    assert errors.strip().splitlines()[-1] == "error: the Trainer cannot be made: No supported gpu backend found!"
    assert "Traceback" not in errors
    assert not (folder / "runs").exists()


def test_reading_without_lightning_imports_neither_it_nor_torch():
    code = "import sys\nfrom gpt_lightning.run.stack import read_stack\nread_stack([], 'x', light=True)\n"
    code += "print(sorted({'torch', 'lightning', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
