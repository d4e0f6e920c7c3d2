"""NanoChat, which can be read and not written: what it lacks, and how it becomes our GPT.

    the embedding is normalised             our rows are normalised once and for all; the readout keeps its own
    norms have no weights                   ours are ones
    heads turn by minus theta               queries and keys with their halves swapped turn by theta
    queries, keys: turned, then normalised  turning keeps the length: normalised, then turned
    eps e, ours 1e-5                        normalising x with e is normalising c x with c^2 e = 1e-5: c times the
                                            embedding, all that is added to it, queries and keys

The way back would need rows of equal length in our embedding and norms of queries and keys without weights, which no
training keeps.
"""

from torch import Tensor

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.huggingface.family import ANY, Family, Settings, State
from gpt_lightning.model.huggingface.llama import LLAMA, SIZES, llama_fields
from gpt_lightning.model.norm import EPS


def unfold_nanochat(config: GPTConfig, state: State, settings: Settings) -> State:
    """The table above."""
    eps = settings.get("rms_norm_eps", 1e-6)
    c = (EPS / eps) ** 0.5
    embedding = state["wte.weight"]
    state["wte.weight"] = c * embedding * (embedding.square().mean(1, keepdim=True) + eps).rsqrt()
    for name, value in state.items():
        if name.endswith(("attn.proj.weight", "mlp.proj.weight")):
            state[name] = c * value
        elif name.endswith("attn.qkv.weight"):
            n = config.d_model + config.d_kv
            value[:n] = c * _halves_swapped(value[:n], config.d_head)
    return state


def _halves_swapped(rows: Tensor, d_head: int) -> Tensor:
    return rows.unflatten(0, (-1, 2, d_head // 2)).flip(1).flatten(0, 2)


NANOCHAT = Family(
    name="NanoChat",
    model_type="nanochat",
    architecture="NanoChatForCausalLM",
    prefix="model.",
    layers="layers",
    modules={
        "wte": "embed_tokens",
        "attn.qkv": LLAMA.modules["attn.qkv"],
        "attn.proj": "self_attn.o_proj",
        "mlp.fc": "mlp.fc1",
        "mlp.proj": "mlp.fc2",
        "lm_head": "lm_head",
    },
    fields=SIZES | {"logit_softcap": ("final_logit_softcapping", 15.0)},
    constants={"attention_bias": ((False,), False), "tie_word_embeddings": ((False,), False)},
    activation=("hidden_act", "relu2"),
    activations={"relu2": "relu2"},
    options={"positions": ("rotary",), "norm": ("rms",), "qk_norm": (True,), "n_kv_heads": ANY, "bias": (False,)},
    read=llama_fields,
    unfold=unfold_nanochat,
)
