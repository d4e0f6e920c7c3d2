"""GPT-3 as published (Brown et al. 2020, arXiv 2005.14165, section 2.1): the page to read first.

A decoder-only transformer with learned positions, LayerNorm before each branch, tanh-GELU, biases everywhere,
a readout tied to the token embedding, and alternating dense and locally banded attention. All defaults are the
paper's 125M model.

    tokens -> wte + wpe -> [x + attn(ln_1(x)); x + mlp(ln_2(x))] x n_layers -> ln_f -> wte^T -> logits

`forward` has one meaning, tokens to logits. Training takes `hidden_states` and `readout` instead, so that
the loss runs in chunks and the (B, T, V) logits never exist (model/loss.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from gpt_lightning.model.attention import CausalSelfAttention, KVCache, LayerCache, band_block_mask, visible
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.facts import LOOK_UP, Facts, facts_of, unset_is_nan
from gpt_lightning.model.linear import Linear, after_gelu
from gpt_lightning.model.parametrization import Role, parametrization
from gpt_lightning.model.readout import Readout


class MLP(nn.Module):
    """Two linear layers around GELU in its tanh form, as GPT-2 and GPT-3 have it."""

    def __init__(self, d_model: int, d_ff: int, dropout: float, bias: bool):
        super().__init__()
        self.fc = Linear(d_model, d_ff, bias)
        self.proj = Linear(d_ff, d_model, bias, residual=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        return self.dropout(after_gelu(self.proj, self.fc(x)))


class Block(nn.Module):
    """One layer: attention and MLP, each normalised before and added to the residual stream."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        numbers = parametrization(config)
        self.residual_multiplier = numbers.residual
        self.ln_1 = nn.LayerNorm(config.d_model, bias=config.bias)
        self.attn = CausalSelfAttention(
            config.d_model, config.n_heads, config.dropout, config.bias, numbers.attention_scale
        )
        self.ln_2 = nn.LayerNorm(config.d_model, bias=config.bias)
        self.mlp = MLP(config.d_model, config.d_ff or 4 * config.d_model, config.dropout, config.bias)

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        mask: Tensor | BlockMask | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        x = torch.add(x, self.attn(self.ln_1(x), mask, cache), alpha=self.residual_multiplier)
        return torch.add(x, self.mlp(self.ln_2(x)), alpha=self.residual_multiplier)


class GPT(nn.Module):
    """The whole model. Built with random weights, or without storage under `torch.device("meta")`.

    block: makes a layer from the config; your own takes what `Block.forward` takes and gives the same shape back.
    Raises ValueError naming the parameters that nobody has initialised.
    """

    def __init__(self, config: GPTConfig, block: Callable[[GPTConfig], nn.Module] = Block):
        super().__init__()
        self.config, self.block = config, block
        self.readout_multiplier = parametrization(config).readout
        self.flex_attention = False  # set by compile_blocks: FlexAttention is fast only when compiled
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.context_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        with unset_is_nan():
            self.blocks = nn.ModuleList([block(config) for _ in range(config.n_layers)])
        self.ln_f = nn.LayerNorm(config.d_model, bias=config.bias)
        self.lm_head = None if config.tie_embedding else nn.Linear(config.d_model, config.vocab_size, bias=False)
        if not self.wte.weight.is_meta:
            init_weights(self, self.facts(), config, seeded_generator())

    def forward(
        self, tokens: Int[Tensor, "batch time"], cache: KVCache | None = None
    ) -> Float[Tensor, "batch time vocab"]:
        """Logits of the next token at every position."""
        return self.logits(self.hidden_states(tokens, cache))

    def hidden_states(
        self, tokens: Int[Tensor, "batch time"], cache: KVCache | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """What the readout multiplies: the residual stream after the last LayerNorm, times the readout multiplier.

        Appends `tokens` to `cache` when one is given.

        Raises ValueError when the tokens, with those in the cache, are more than context_length.
        """
        past, T = (cache.length if cache else 0), tokens.shape[1]
        if past + T > self.config.context_length:
            raise ValueError(f"{past + T} tokens do not fit context_length {self.config.context_length}")
        positions = torch.arange(past, past + T, device=tokens.device)
        if cache and cache.n_padding is not None:
            positions = (positions - cache.n_padding[:, None]).clamp(min=0)
        x = self.dropout(self.wte(tokens) + self.wpe(positions))
        masks = self._masks(T, cache, tokens.device)
        for i, (block, band_width) in enumerate(zip(self.blocks, self.config.band_widths(), strict=True)):
            x = block(x, masks[band_width], cache.layers[i] if cache else None)
        x = self.ln_f(x)
        return x if self.readout_multiplier == 1 else x * self.readout_multiplier

    def logits(self, hidden_states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Scores of the next token, from `hidden_states`."""
        return F.linear(hidden_states, self.wte.weight) if self.lm_head is None else self.lm_head(hidden_states)

    @property
    def readout(self) -> Readout:
        """What turns hidden states into logits; its matrix is the token embedding when tied."""
        return Readout(self.wte.weight if self.lm_head is None else self.lm_head.weight)

    def new_cache(self, n_padding: Int[Tensor, " batch"] | None = None) -> KVCache:
        """An empty key-value cache for `hidden_states` and `forward`."""
        return KVCache(self.config.band_widths(), self.config.context_length, n_padding)

    def compile_blocks(self) -> None:
        """Compile each block in place: one compilation serves all layers and parameter names stay clean."""
        self.flex_attention = self.config.dropout == 0  # FlexAttention has no dropout
        for block in self.blocks:
            block.compile()

    def facts(self) -> dict[str, Facts]:
        """The facts of every parameter by name."""
        return facts_of(self)

    def roles(self) -> dict[str, Role]:
        """Role of every parameter by name."""
        return {name: facts.role for name, facts in self.facts().items()}

    def parameter_facts(self) -> dict[str, Facts]:
        """What stands outside the blocks. A tied embedding is a look-up, and multiplies as the readout."""
        embedding = Facts("embedding") if self.lm_head is None else LOOK_UP
        own = {"wte.weight": embedding, "wpe.weight": LOOK_UP}
        own |= {f"ln_f.{name}": replace(facts, role="final_vector") for name, facts in facts_of(self.ln_f).items()}
        return own if self.lm_head is None else {**own, "lm_head.weight": Facts("readout")}

    def _masks(
        self, n_queries: int, cache: KVCache | None, device: torch.device
    ) -> dict[int | None, Tensor | BlockMask | None]:
        """One mask per kind of layer (None: dense); None where plain causal attention gives the same."""
        past, n_padding = (cache.length, cache.n_padding) if cache else (0, None)
        masks: dict[int | None, Tensor | BlockMask | None] = {}
        for band_width in set(self.config.band_widths()):
            kept = past if band_width is None else min(past, band_width - 1)
            n_keys = kept + n_queries
            whole = band_width is None or band_width >= n_keys  # no key lies outside the band
            if n_padding is not None:
                padding = (n_padding - (past - kept)).clamp(min=0)
                masks[band_width] = visible(n_queries, n_keys, band_width, padding, device)
            elif whole and (n_queries == 1 or n_queries == n_keys):
                masks[band_width] = None
            elif self.flex_attention and device.type == "cuda" and cache is None and band_width is not None:
                masks[band_width] = band_block_mask(n_queries, band_width, device)
            else:
                masks[band_width] = visible(n_queries, n_keys, band_width, None, device)
        return masks


def seeded_generator() -> torch.Generator:
    """Random numbers for the initial weights: they follow from torch's seed, not from what was drawn before."""
    return torch.Generator().manual_seed(torch.initial_seed())


def init_weights(
    module: nn.Module, facts: Mapping[str, Facts], config: GPTConfig, generator: torch.Generator, prefix: str = ""
) -> None:
    """GPT-2's initialisation (Radford et al. 2019, section 2.3), for the whole model or the part named `prefix`.

    facts                                 distribution   std; each x its init_std in model/parametrization.py
    embedding, hidden, readout            normal         init_std
    those that are residual               normal         init_std x residual_init; 1 / sqrt(2 n_layers) in GPT-2
    vector: biases; norms' weights        constant       0; 1
    std None                              what its module's constructor gave it

    facts: of the whole model. Raises ValueError naming what is left without a value.
    """
    numbers = parametrization(config)
    own = dict(module.named_buffers())
    for name, parameter in module.named_parameters():
        fact = facts[prefix + name]
        if fact.std is None:
            own[name] = parameter
        else:
            std = fact.std * config.init_std * numbers.roles[fact.role].init_std
            std = std * numbers.residual_init if fact.residual else std
            if std:
                nn.init.normal_(parameter, fact.mean, std, generator=generator)
            else:
                nn.init.constant_(parameter, fact.mean)
    unset = [prefix + name for name, value in own.items() if value.isnan().any()]
    if unset:
        raise ValueError(
            f"nobody initialised {', '.join(unset)}; give it values in its module's constructor, or a std in "
            "parameter_facts"
        )
