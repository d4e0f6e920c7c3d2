"""The model card of a selected run: what it is, read, cost and scored, how it was chosen, and how to load it."""

from typing import TYPE_CHECKING, Any

import jinja2

from gpt_lightning.model.flops import count_parameters, flops_per_token
from gpt_lightning.model.own_block import block_spec
from gpt_lightning.terminal import duration, short

if TYPE_CHECKING:
    from gpt_lightning.report.runs import RunFolder
    from gpt_lightning.run.build import Run

CARD = """\
---
library_name: gpt-lightning
pipeline_tag: text-generation
---
# {{ name }}

A decoder-only transformer of {{ n_params }} parameters ({{ n_params_non_embedding }} without embeddings): \
{{ gpt.n_layers }} layers x {{ gpt.d_model }}, {{ gpt.n_heads }} heads, context of {{ gpt.context_length }} tokens, \
vocabulary of {{ gpt.vocab_size }}. It continues text like what it was trained on; it was not taught to follow \
instructions, nor kept from repeating what is harmful or wrong in that text.

## Score

| {{ split_name }} | |
|---|---|
{% for key, value in scores.items() -%}
| {{ key }} | {{ "%.6f"|format(value) }} |
{% endfor %}
{% if split == "test" %}Nothing was chosen on the test split.{% else -%}
The corpus has no test split: this is the split that the run was chosen on, so it flatters.{% endif %}

## Chosen from

{{ n_candidates }} runs that kept a checkpoint, of {{ n_runs }}, by the lowest {{ metric }}: those that were lowest in \
their own metrics.csv, scored anew on the whole validation split.

| run | in its metrics.csv | whole validation split |
|---|---|---|
{% for one in finalists -%}
| {{ one.run }} | {{ "%.4f"|format(one.recorded) }} | {{ "%.4f"|format(one.scored) }} |
{% endfor %}
## Data

{% for corpus in corpora -%}
* {{ corpus }}
{% endfor %}
## Budget

{{ tokens }} tokens, {{ flops }} FLOPs{{ seconds }}; optimizer {{ optim.name }}, lr {{ optim.lr }}. config.yaml has \
all settings and trains it again: `gpt-lightning fit --config {{ folder }}/config.yaml --run_dir runs/again`.

## Load

```python
import gpt_lightning as gl

print(gl.load("{{ folder }}"{% if block %}, block="{{ block }}"{% endif %}).generate("{{ prompt }}"))
```
{% if block %}
Its block, `{{ block }}`, is not in this folder: Python must find it.
{% endif -%}
{% if huggingface %}
As {{ huggingface }}, with Hugging Face transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{{ folder }}/huggingface")
tokenizer = AutoTokenizer.from_pretrained("{{ folder }}/huggingface")
```
{% endif %}"""


def model_card(selected: dict[str, Any], run: "Run", source: "RunFolder", folder: str) -> str:
    """Markdown. selected: what selected.json holds. run: as it was scored. folder: where it will lie."""
    gpt, block = run.module.gpt_config, run.module.own_block
    counts = count_parameters(gpt, block)
    tokens = source.summary.get("tokens", run.module.tokens_seen)
    seconds = source.summary.get("elapsed_seconds")
    return (
        jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
        .from_string(CARD)
        .render(
            name=f"{source.path.name}, the best of {selected['n_candidates']} runs",
            gpt=gpt,
            n_params=short(counts.total),
            n_params_non_embedding=short(counts.non_embedding),
            split_name={"test": "test split", "val": "validation split"}[selected["split"]],
            corpora=[_described(corpus, run) for corpus in run.data.corpora],
            tokens=f"{tokens:,}",
            flops=f"{flops_per_token(gpt, block) * tokens:.2e}",
            seconds=f", {duration(seconds)}" if seconds else "",
            optim=run.stack["model.optim"],
            prompt=run.stack["samples.prompt"] or "The ",
            folder=folder,
            block=(block_spec(block) or {}).get("class_path") if block else None,
            **{key: value for key, value in selected.items() if key not in ("run",)},
        )
    )


def _described(corpus: Any, run: "Run") -> str:
    """A corpus in a line: where from, how much of it, and its digest."""
    known = corpus.manifest.get("identity") or {}
    train = corpus.split("train")
    source = known.get("source", corpus.path.name)
    return f"{source}: {train.n_tokens:,} training tokens of {corpus.vocab_size:,} ids, identity {corpus.identity[:12]}"
