"""GPT-3 as published (Brown et al. 2020, arXiv 2005.14165, section 2.1): the page to read first.

A decoder-only transformer with learned positions, LayerNorm before each branch, tanh-GELU, biases everywhere,
a readout tied to the token embedding, and alternating dense and locally banded attention. All defaults are the
paper's 125M model; what else GPTConfig offers is chosen where a layer is made, so that `forward` stays as it is.

    tokens -> wte + wpe -> [x + attn(ln_1(x)); x + mlp(ln_2(x))] x n_layers -> ln_f -> wte^T -> logits

`forward` has one meaning, tokens to logits. Training takes `hidden_states` and `readout` instead, so that
the loss runs in chunks and the (B, T, V) logits never exist (model/loss.py).
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from gpt_lightning.model.attention import (
    CausalSelfAttention,
    KVCache,
    LayerCache,
    document_masks,
    masks_of,
)
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.facts import LOOK_UP, Facts, facts_of, unset_is_nan
from gpt_lightning.model.initialization import init_weights
from gpt_lightning.model.mlp import MLP
from gpt_lightning.model.norm import norm
from gpt_lightning.model.parametrization import parametrization
from gpt_lightning.model.readout import Readout, capped
from gpt_lightning.model.rotary import Rotary


class Block(nn.Module):
    """One layer: attention and MLP, each normalised before and added to the residual stream.

    shared: what all layers are given beside their input; nothing, or `first_values` for value_residual.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        numbers = parametrization(config)
        before, after = config.norm_place != "after", config.norm_place != "before"
        self.residual_multiplier = numbers.residual
        self.ln_1 = _norm_if(before, config)
        self.attn = CausalSelfAttention(config, numbers.attention_scale)
        self.ln_2 = _norm_if(before, config)
        self.mlp = MLP(config.d_model, config.inner_width, config.dropout, config.bias, config.mlp)
        self.post_ln_1, self.post_ln_2 = _norm_if(after, config), _norm_if(after, config)

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        mask: Tensor | BlockMask | None = None,
        cache: LayerCache | None = None,
        **shared: Tensor,
    ) -> Float[Tensor, "batch time d_model"]:
        attended = self.post_ln_1(self.attn(self.ln_1(x), mask, cache, **shared))
        x = torch.add(x, attended, alpha=self.residual_multiplier)
        return torch.add(x, self.post_ln_2(self.mlp(self.ln_2(x))), alpha=self.residual_multiplier)

    def parameter_facts(self) -> dict[str, Facts]:
        """The last norm of a branch, where there is one, joins the residual stream instead of the matrix before it."""
        facts: dict[str, Facts] = {}
        for branch, last in (("attn", "post_ln_1"), ("mlp", "post_ln_2")):
            after = facts_of(getattr(self, last))
            facts |= {f"{last}.{name}": replace(said, residual=True) for name, said in after.items()}
            within = facts_of(getattr(self, branch)) if after else {}
            facts |= {f"{branch}.{name}": replace(said, residual=False) for name, said in within.items()}
        return facts

    def first_values(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch kv_heads time d_head"]:
        """The values of this layer, were it the first, for `forward` of all layers (value_residual)."""
        return self.attn.values(self.ln_1(x))


class ParallelBlock(Block):
    """Attention and MLP side by side, both reading the layer's input, as in GPT-NeoX."""

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        mask: Tensor | BlockMask | None = None,
        cache: LayerCache | None = None,
        **shared: Tensor,
    ) -> Float[Tensor, "batch time d_model"]:
        attended = self.post_ln_1(self.attn(self.ln_1(x), mask, cache, **shared))
        return torch.add(x, attended + self.post_ln_2(self.mlp(self.ln_2(x))), alpha=self.residual_multiplier)


class GPT(nn.Module):
    """The whole model. Built with random weights, or without storage under `torch.device("meta")`.

    block: makes a layer from the config; your own takes what `Block.forward` takes and gives the same shape back.
    Raises ValueError naming the parameters that nobody has initialised, and for a block that cannot do what is asked.
    """

    def __init__(self, config: GPTConfig, block: Callable[[GPTConfig], nn.Module] = Block):
        super().__init__()
        self.config, self.block = config, block
        self.readout_multiplier = parametrization(config).readout
        self.flex_attention = False  # set by compile_blocks: FlexAttention is fast only when compiled
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.context_length, config.d_model) if config.positions == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        with unset_is_nan():
            self.blocks = nn.ModuleList([self.new_block() for _ in range(config.n_layers)])
        self.ln_f = norm(config.norm, config.d_model, config.bias)
        self.lm_head = None if config.tie_embedding else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.label_head = nn.Linear(config.d_model, config.n_labels, bias=False) if config.n_labels else None
        self.n_known_ids: int | None = None  # of tables of which only the rows after these are trained
        if not self.wte.weight.is_meta:
            init_weights(self, self.facts(), config)

    def new_block(self) -> nn.Module:
        """One more layer, as its constructor makes it."""
        block = self.block(self.config)
        if self.config.parallel and type(block) is Block:  # self.block may be a partial of it, as settings make one
            block = ParallelBlock(self.config)
        own, forward = type(block).__name__, (ParallelBlock if self.config.parallel else Block).forward
        built_in = isinstance(block, Block) and type(block).forward is forward
        for name in ("parallel", "value_residual"):
            if getattr(self.config, name) and not (built_in and isinstance(block.attn, CausalSelfAttention)):
                raise ValueError(f"{name} is for the built-in block; what {own} does is in its code")
        if self.config.positions == "rotary" and not any(isinstance(part, Rotary) for part in block.modules()):
            raise ValueError(
                f"positions rotary: {own} has no Rotary (model/rotary.py); take positions learned, or none"
            )
        return block

    def forward(
        self, tokens: Int[Tensor, "batch time"], cache: KVCache | None = None
    ) -> Float[Tensor, "batch time vocab"]:
        """Logits of the next token at every position."""
        return self.logits(self.hidden_states(tokens, cache))

    def hidden_states(
        self,
        tokens: Int[Tensor, "batch time"],
        cache: KVCache | None = None,
        positions: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """What the readout multiplies: the residual stream after the last norm, times the readout multiplier.

        Appends `tokens` to `cache` when one is given. positions: where each token stands in its own document, for rows
        of several; then no token sees another document. Not together with a cache.

        Raises ValueError when the tokens, with those in the cache, are more than context_length.
        """
        past, T = (cache.length if cache else 0), tokens.shape[1]
        if past + T > self.config.context_length:
            raise ValueError(f"{past + T} tokens do not fit context_length {self.config.context_length}")
        x = self.wte(tokens)
        if self.wpe is not None:
            x = x + self.wpe(_positions(past, T, cache, tokens.device) if positions is None else positions)
        x = self.dropout(x)
        widths, flex = self.config.band_widths(), self.flex_attention and tokens.device.type == "cuda"
        if positions is None:
            masks = masks_of(widths, T, cache, tokens.device, flex)
        else:
            masks = document_masks(widths, positions, flex)
        shared = self._shared(x)
        for i, (block, band_width) in enumerate(zip(self.blocks, widths, strict=True)):
            x = block(x, masks[band_width], cache.layers[i] if cache else None, **shared)
        if cache and any(layer.length != past + T for layer in cache.layers):
            raise ValueError(f"{type(self.blocks[0]).__name__} keeps nothing in its cache, which generation needs")
        x = self.ln_f(x)
        return x if self.readout_multiplier == 1 else x * self.readout_multiplier

    def logits(self, hidden_states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Scores of the next token, or of labels where there is a head for them, from `hidden_states`."""
        if self.label_head is not None:
            return self.label_head(hidden_states)
        lm_head = self.lm_head  # which generation replaces with faster ones
        scores = F.linear(hidden_states, self.wte.weight) if lm_head is None else lm_head(hidden_states)
        return capped(scores, self.config.logit_softcap)

    @property
    def readout(self) -> Readout:
        """What turns hidden states into logits; its matrix is the token embedding when tied, or the head for labels."""
        if self.label_head is not None:
            return Readout(self.label_head.weight)
        return Readout(self.wte.weight if self.lm_head is None else self.lm_head.weight, self.config.logit_softcap)

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

    def parameter_facts(self) -> dict[str, Facts]:
        """What no block knows of. A tied embedding is a look-up, and multiplies as the readout."""
        embedding = Facts("embedding") if self.lm_head is None else LOOK_UP
        own = {"wte.weight": embedding} if self.wpe is None else {"wte.weight": embedding, "wpe.weight": LOOK_UP}
        own |= {f"ln_f.{name}": replace(facts, role="final_vector") for name, facts in facts_of(self.ln_f).items()}
        heads = {"lm_head": self.lm_head, "label_head": self.label_head}
        own |= {f"{name}.weight": Facts("readout") for name, head in heads.items() if head is not None}
        if self.n_known_ids is not None:  # a vector's numbers: rows that are not trained must not decay either
            tables = own.keys() & {"wte.weight", "lm_head.weight"}
            own |= {name: replace(own[name], role="final_vector") for name in tables}
        return own

    def _shared(self, x: Tensor) -> dict[str, Tensor]:
        """What every block is given beside its input, mask and cache."""
        first = self.blocks[0]
        return (
            {"first_values": first.first_values(x)} if self.config.value_residual and isinstance(first, Block) else {}
        )


def _norm_if(wanted: bool, config: GPTConfig) -> nn.Module:
    return norm(config.norm, config.d_model, config.bias) if wanted else nn.Identity()


def _positions(past: int, n_tokens: int, cache: KVCache | None, device: torch.device) -> Tensor:
    """Of the next tokens, after padding where there is any."""
    positions = torch.arange(past, past + n_tokens, device=device)
    if cache is None or cache.n_padding is None:
        return positions
    return (positions - cache.n_padding[:, None]).clamp(min=0)
