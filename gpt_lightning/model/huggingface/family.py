"""A family of Hugging Face models, told as data: what its config.json says, and which of our weights is which of its.

One table serves both directions, so that what is written is what is read. Weights keep their bits but for what a
family's `fold` and `unfold` change on the way out and in.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.gpt import GPT

State = dict[str, Tensor]
Settings = Mapping[str, Any]  # a config.json

BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
ANY: tuple[Any, ...] = ()  # every value of an option
# Their activations: our `mlp`. Of two names for one function the first is written.
UNGATED = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf", "relu2": "relu2"}
GATED = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}


def expect(key: str, found: Any, *accepted: Any) -> None:
    """Raises ValueError naming a setting that we cannot hold."""
    if found not in accepted:
        raise ValueError(f"{key} is {found!r}; expected {' or '.join(map(repr, accepted))}, as our GPT has it")


def unchanged(config: GPTConfig, state: State, settings: Settings) -> State:
    """For families whose weights mean what ours do."""
    return state


def our_kinds(key: str, said: Sequence[str], theirs: Mapping[str, str], n_layers: int) -> list[str]:
    """Per layer dense or banded, from a family's words for them, `theirs`. Raises ValueError naming the key."""
    ours = {word: kind for kind, word in theirs.items()}
    for word in said:
        expect(key, word, *ours)
    expect(f"the number of layers in {key}", len(said), n_layers)
    return [ours[word] for word in said]


def shortest(kinds: Sequence[str]) -> tuple[str, ...]:
    """The shortest pattern that gives these kinds when it is repeated over the layers, as attention_pattern."""
    n = next(n for n in range(1, len(kinds) + 1) if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))
    return tuple(kinds[:n])


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """One model_type of transformers."""

    name: str
    model_type: str
    architecture: str
    prefix: str
    """What stands before all names but that of the readout."""
    layers: str
    """What it calls `blocks`."""
    modules: dict[str, str]
    """Our modules, those of a layer without its number: its own. Several, where ours has their rows on top of each
    other; a norm that is not here has no weights there."""
    biases: dict[str, bool | tuple[str, bool]] = field(default_factory=dict)
    """Our modules whose biases it has: always, or by a setting (its key, and what it is when not said)."""
    fields: dict[str, tuple[str, Any]]
    """Our fields: its keys, and what a config.json that does not say it means."""
    constants: dict[str, tuple[tuple[Any, ...], Any]]
    """Its keys: the values that are our GPT, the first of which is written; and what it means when not said."""
    activation: tuple[str, str]
    """The key of the MLP's activation, and what it is when not said."""
    activations: dict[str, str]
    """Those that it can have: our `mlp`."""
    options: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Our options: the values that it holds, where they are not GPT-3's alone."""
    transposed: bool = False
    """Whether its matrices are stored as (inputs, outputs)."""
    write: Callable[[GPTConfig], dict[str, Any]] = lambda config: {}
    """More of its settings, from our config."""
    read: Callable[[Settings, dict[str, Any]], dict[str, Any]] = lambda settings, fields: {}
    """More of our fields, from its settings and the fields so far. Raises ValueError."""
    fold: Callable[[GPTConfig, State, Settings], State] = unchanged
    """Our weights as it wants them, still by our names. Raises ValueError."""
    unfold: Callable[[GPTConfig, State, Settings], State] = unchanged
    """Its weights, by our names, as we want them."""

    def settings(self, config: GPTConfig) -> dict[str, Any]:
        """What its config.json says of a model's architecture."""
        activation = next(theirs for theirs, ours in self.activations.items() if ours == config.mlp)
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **{key: getattr(config, ours) for ours, (key, _) in self.fields.items()},
            **{key: accepted[0] for key, (accepted, _) in self.constants.items()},
            **{said[0]: config.bias for said in self.biases.values() if isinstance(said, tuple)},
            self.activation[0]: activation,
            **self.write(config),
        }

    def config(self, settings: Settings) -> GPTConfig:
        """The architecture that a config.json describes. Raises ValueError naming a setting that we cannot hold."""
        for key, (accepted, unsaid) in self.constants.items():
            expect(key, settings.get(key, unsaid), *accepted)
        activation = settings.get(*self.activation)
        expect(self.activation[0], activation, *self.activations)
        fields = {ours: values[0] for ours, values in self.options.items() if len(values) == 1}
        for ours, (key, unsaid) in self.fields.items():
            fields[ours] = settings.get(key, unsaid)
            may_be_none = getattr(GPTConfig(), ours) is None
            if not isinstance(fields[ours], int | float) and not (fields[ours] is None and may_be_none):
                raise ValueError(f"{key} is {fields[ours]!r}; expected a number")
        fields["mlp"] = self.activations[activation]
        fields["bias"] = any(self._has_bias(module, settings) for module in self.biases)
        return GPTConfig(**fields | self.read(settings, fields))

    def to_theirs(self, gpt: GPT, settings: Settings) -> State:
        """The weights of a model of parametrization "standard" by its names; biases that only it has are zeros."""
        state = {name: value.detach().cpu() for name, value in gpt.state_dict().items()}
        state = self.fold(gpt.config, state, settings)
        theirs, dtype = State(), state["wte.weight"].dtype
        for name, keys, rows in self._layout(gpt, settings):
            value = state.pop(name, torch.zeros(sum(rows), dtype=dtype))  # zeros: biases alone
            assert keys or not value.any(), name  # what it does not have was folded into other weights
            for key, part in zip(keys, value.split(rows) if keys else (), strict=True):
                part = part.t() if self._is_transposed(name) else part
                full = key if key == self._head else self.prefix + key
                theirs[full] = part.clone(memory_format=torch.contiguous_format)
        assert not state, sorted(state)
        return theirs

    def to_ours(self, gpt: GPT, theirs: State, settings: Settings) -> State:
        """Float32 weights by our names. `gpt`: an empty model of the config.

        Raises ValueError naming a key that is missing, left over or of another shape.
        """
        layout, empty = list(self._layout(gpt, settings)), gpt.state_dict()
        theirs = self._bare(theirs, gpt.config.tie_embedding)
        self._check_keys({key for _, keys, _ in layout for key in keys}, set(theirs))
        state: State = {}
        for name, keys, rows in layout:
            parts = [theirs[key].t() if self._is_transposed(name) else theirs[key] for key in keys]
            for key, part, n in zip(keys, parts, rows if keys else (), strict=True):
                if part.shape != (n, *empty[name].shape[1:]):
                    raise ValueError(f"{key} has shape {tuple(theirs[key].shape)}, not of this config")
            if keys:
                state[name] = torch.cat(parts).to(torch.float32)
            elif name in empty:  # norms without weights, and biases that it does without
                state[name] = torch.full(empty[name].shape, float(name.endswith("weight")))
        return self.unfold(gpt.config, state, settings)

    @property
    def _head(self) -> str:
        return self.modules["lm_head"] + ".weight"

    def _bare(self, theirs: State, tied: bool) -> State:
        """Without the prefix, the buffers of old files, and a readout that repeats the embedding."""
        bare = {key.removeprefix(self.prefix): value for key, value in theirs.items() if not key.endswith(BUFFERS)}
        if "lm_head.weight" in bare:
            bare[self._head] = bare.pop("lm_head.weight")
        embedding = self.modules["wte"] + ".weight"
        if tied and self._head in bare and embedding in bare and not torch.equal(bare.pop(self._head), bare[embedding]):
            raise ValueError(f"{self._head} differs from {embedding} although tie_word_embeddings is true")
        return bare

    def _check_keys(self, expected: set[str], found: set[str]) -> None:
        for problem, keys in (("it lacks", expected - found), ("it has the unknown", found - expected)):
            if keys:
                some = ", ".join(sorted(keys)[:3]) + (", …" if len(keys) > 3 else "")
                raise ValueError(f"{problem} weights {some} ({len(keys)} in all); expected a {self.name} model")

    def _has_bias(self, module: str, settings: Settings) -> bool:
        said = self.biases.get(module, False)
        return bool(settings.get(*said)) if isinstance(said, tuple) else said

    def _is_transposed(self, name: str) -> bool:
        return self.transposed and name.startswith("blocks.") and not name.endswith(".bias")

    def _layout(self, gpt: GPT, settings: Settings) -> Iterator[tuple[str, list[str], list[int]]]:
        """Of every weight and bias: our name, its keys (none: it has no such thing), and the rows of each."""
        for path, module in gpt.named_modules():
            if not isinstance(getattr(module, "weight", None), Tensor):
                continue
            within = path.split(".", 2)[-1]  # without the layer
            layer = f"{self.layers}.{path.split('.')[1]}." if path.startswith("blocks.") else ""
            stems = [layer + stem for stem in self.modules.get(within, "").split()]
            rows = list(module.parts) if len(stems) > 1 else [len(module.weight)]
            yield f"{path}.weight", [f"{stem}.weight" for stem in stems], rows
            yield f"{path}.bias", [f"{stem}.bias" for stem in stems if self._has_bias(within, settings)], rows
