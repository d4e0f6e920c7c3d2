"""Every family of Hugging Face models that we hold, both ways: the same logits, the same greedy text; and refusals."""

import json
from dataclasses import replace

import pytest
import torch

from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.huggingface.choice import READ, WRITTEN, _structure, family_of, why_not_written
from gpt_lightning.model.huggingface.folder import export_gpt, import_gpt
from gpt_lightning.model.inference import prepare
from gpt_lightning.serve.text import TextGenerator
from tests.model.parity import CONTEXT, VOCAB, assert_same_logits, imported, our_gpt, shaken

transformers = pytest.importorskip("transformers")

ROTARY = {"positions": "rotary", "init_std": 0.15}
LLAMA = {**ROTARY, "norm": "rms", "mlp": "swiglu", "bias": False}
QWEN3 = {**LLAMA, "qk_norm": True}
BANDED = {"attention_pattern": ("dense", "banded"), "band_width": 7}
COMPLETEP = {"parametrization": "completep", "base_d_model": 8, "base_n_layers": 1, "base_d_head": 2}
UNTIED, GROUPED, UNBIASED = {"tie_embedding": False}, {"n_kv_heads": 2}, {"bias": False}

EXPORTED = [
    ("GPT-2", {"mlp": "gelu_erf", **UNTIED}),
    ("GPT-2", {"mlp": "relu2"}),
    ("GPT-Neo", BANDED),
    ("GPT-Neo", BANDED | UNTIED | UNBIASED | {"mlp": "gelu_erf", "d_ff": 24}),
    ("GPT-Neo", BANDED | COMPLETEP | {"attention_pattern": ("banded", "banded", "dense")}),
    ("Llama", LLAMA | UNTIED),
    ("Llama", LLAMA | GROUPED),
    ("Llama", LLAMA | {"bias": True, "mlp": "geglu", "d_ff": 24, "n_kv_heads": 1}),
    ("Llama", LLAMA | COMPLETEP | GROUPED),
    ("Qwen3", QWEN3 | GROUPED),
    ("Qwen3", QWEN3 | UNTIED | BANDED),
    ("Qwen3", QWEN3 | COMPLETEP),
    ("GPT-NeoX", ROTARY),
    ("GPT-NeoX", ROTARY | UNTIED | {"parallel": True, "mlp": "gelu_erf", "d_ff": 24}),
    ("GPT-NeoX", ROTARY | COMPLETEP | UNBIASED | {"parallel": True}),
    ("Mistral", LLAMA | UNTIED | GROUPED | {"attention_pattern": ("banded",), "band_width": 5}),
    ("Ministral", LLAMA | BANDED | GROUPED),
    ("Ministral", LLAMA | BANDED | UNTIED | COMPLETEP),
]


def assert_same_text(ours: GPT, theirs, tokenizer) -> None:
    ids = tokenizer.encode("the cat")
    special = {"eos_token_id": tokenizer.eot_id, "pad_token_id": tokenizer.eot_id}
    tokens = torch.tensor([ids])
    mask = torch.ones_like(tokens)
    written = theirs.generate(tokens, attention_mask=mask, max_new_tokens=30, do_sample=False, **special)
    text = TextGenerator(ours, tokenizer).generate("the cat", max_new_tokens=30, temperature=0)
    assert text == tokenizer.decode([i for i in written[0, len(ids) :].tolist() if i != tokenizer.eot_id]) != ""


@pytest.mark.parametrize(("family", "settings"), EXPORTED, ids=str)
def test_transformers_opens_what_we_write_and_we_read_it_again(family, settings, tokenizer, tokenizer_path, tmp_path):
    gpt, tolerance = our_gpt(**settings), 1e-4 if family == "GPT-Neo" else 1e-5
    assert export_gpt(gpt, tokenizer_path, tmp_path / "hf").split(" with ")[0] == family
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())  # no key missing, left over or of another shape
    assert_same_logits(gpt, theirs, tolerance)
    assert_same_text(gpt, theirs, tokenizer)
    back = imported(tmp_path / "hf")
    assert_same_logits(gpt, back, tolerance)
    plain = {"parametrization": "standard", "base_d_model": None, "base_n_layers": None, "base_d_head": None}
    written = replace(gpt.config, **plain, d_ff=gpt.config.inner_width)
    assert replace(back.config, bias=written.bias, d_ff=back.config.inner_width) == written


def their_config(model_type: str, **settings):
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "max_position_embeddings": CONTEXT, "initializer_range": 0.15}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    neo = {"num_layers": 3, "num_heads": 4, "attention_types": [[["global", "local"], 1], [["local"], 1]]}
    others = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "rms_norm_eps": 1e-5}
    grouped = others | {"num_key_value_heads": 4}
    families = {
        "gpt_neo": neo | {"window_size": 7},
        "gpt_neox": others | {"rotary_pct": 1.0},
        "qwen3": grouped | {"head_dim": 8},
        "mistral": grouped | {"sliding_window": 7},
        "ministral": grouped | {"sliding_window": 7, "head_dim": 8},
        "nanochat": others | {"rms_norm_eps": 1e-6},
    }
    values = {**sizes, **special, **families.get(model_type, others), **settings}
    return transformers.AutoConfig.for_model(model_type, **values)


def their_model(model_type: str, **settings):
    torch.manual_seed(0)
    config = their_config(model_type, **settings)
    return shaken(transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32))


KINDS = ["full_attention", "sliding_attention", "sliding_attention"]
IMPORTED = [
    ("gpt_neo", {}),
    ("gpt_neo", {"tie_word_embeddings": False, "activation_function": "gelu", "intermediate_size": 24}),
    ("llama", {"num_key_value_heads": 2}),
    ("llama", {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "attention_bias": True}),
    ("llama", {"mlp_bias": True, "num_key_value_heads": 1}),
    ("qwen3", {"num_key_value_heads": 2}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1, "attention_bias": True}),
    ("gpt_neox", {}),
    ("gpt_neox", {"tie_word_embeddings": True, "use_parallel_residual": False, "hidden_act": "gelu_new"}),
    ("gpt_neox", {"attention_bias": False, "hidden_act": "relu2"}),
    ("mistral", {"num_key_value_heads": 2}),
    ("mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    ("ministral", {"num_key_value_heads": 2, "layer_types": KINDS}),
    ("ministral", {"tie_word_embeddings": True}),
    ("nanochat", {}),
    ("nanochat", {"num_key_value_heads": 2, "final_logit_softcapping": None, "rms_norm_eps": 1e-5}),
]


@pytest.mark.parametrize(("model_type", "settings"), IMPORTED, ids=str)
def test_we_open_what_transformers_writes_and_compute_the_same(model_type, settings, tokenizer, tmp_path):
    theirs = their_model(model_type, **settings)
    theirs.save_pretrained(tmp_path)
    ours = imported(tmp_path)
    assert_same_logits(ours, theirs, 1e-4 if model_type == "gpt_neo" else 1e-5)
    assert_same_text(ours, theirs, tokenizer)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("qwen3", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
        ("qwen3", {"sliding_window": 7, "max_window_layers": 1}),
        ("ministral", {}),
    ],
    ids=str,
)
def test_files_from_before_layer_types_are_read_as_they_were_meant(model_type, settings, tmp_path):
    theirs = their_model(model_type, **settings)
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    kinds = ["banded" if kind == "sliding_attention" else "dense" for kind in written.pop("layer_types")]
    (tmp_path / "config.json").write_text(json.dumps(written))
    ours = imported(tmp_path)
    assert [width and "banded" or "dense" for width in ours.config.band_widths()] == kinds
    assert_same_logits(ours, theirs)


def test_an_activation_that_readers_might_not_look_for_is_said(tokenizer_path, tmp_path):
    said = {"swiglu": "Llama", "geglu": "Llama with hidden_act gelu_pytorch_tanh"}
    for mlp, written in said.items():
        assert export_gpt(our_gpt(**LLAMA | {"mlp": mlp}), tokenizer_path, tmp_path / mlp) == written


def test_bf16_weights_stay_bf16_unless_they_are_folded(tokenizer_path, tmp_path):
    for i, (settings, dtype) in enumerate([(LLAMA, torch.bfloat16), (ROTARY, torch.bfloat16), (BANDED, torch.float32)]):
        export_gpt(our_gpt(**settings).bfloat16(), tokenizer_path, tmp_path / str(i))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(i))
        assert theirs.dtype == dtype
        rounded = our_gpt(**settings)
        rounded.load_state_dict({name: value.bfloat16() for name, value in rounded.state_dict().items()})
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(i), dtype=torch.float32)
        assert_same_logits(rounded, theirs, 1e-4 if settings is BANDED else 1e-5)


def test_a_model_prepared_for_generation_is_not_exported(tokenizer_path, tmp_path):
    with pytest.raises(ValueError, match="prepared for generation"):
        export_gpt(prepare(our_gpt(**LLAMA)), tokenizer_path, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_config_json_speaks_to_new_and_to_old_readers(tokenizer, tokenizer_path, tmp_path):
    export_gpt(our_gpt(**LLAMA | GROUPED), tokenizer_path, tmp_path / "llama")
    export_gpt(our_gpt(**ROTARY), tokenizer_path, tmp_path / "neox")
    llama, neox = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("llama", "neox"))
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    assert llama["rope_parameters"] == rope and llama["rope_theta"] == neox["rotary_emb_base"] == 10000.0
    assert neox["rope_parameters"] == rope | {"partial_rotary_factor": 1.0} and neox["rotary_pct"] == 1.0
    assert (llama["head_dim"], llama["num_key_value_heads"], llama["intermediate_size"]) == (8, 2, 96)
    assert llama["dtype"] == llama["torch_dtype"] == "float32" and llama["eos_token_id"] == tokenizer.eot_id


@pytest.mark.parametrize(
    ("model_type", "setting", "message"),
    [
        ("llama", {"rope_theta": 5e5, "rope_parameters": None}, "rope_theta is 500000.0; expected 10000.0"),
        ("llama", {"rope_parameters": {"rope_theta": 5e5}}, "rope_theta is 500000.0; expected 10000.0"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_parameters has factor"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic"}}, "rope_type is 'dynamic'; expected 'default'"),
        ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0\.5; expected 1\.0"),
        ("llama", {"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06; expected 1e-05"),
        ("llama", {"hidden_size": None}, "hidden_size is None; expected a number"),
        ("llama", {"num_hidden_layers": "3"}, "num_hidden_layers is '3'; expected a number"),
        ("llama", {"rope_parameters": [1]}, "config.json: "),
        ("llama", {"head_dim": 16}, r"head_dim is 16; expected 8"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu' or"),
        ("gpt_neox", {"rope_parameters": None}, r"rotary_pct is 0\.25; expected 1\.0"),
        ("gpt_neox", {"rope_parameters": None, "rotary_pct": 1, "rotary_emb_base": 500}, "rotary_emb_base is 500"),
        ("gpt_neox", {"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06"),
        ("gpt_neo", {"attention_types": [[["global"], 2]]}, "number of layers in attention_types is 2; expected 3"),
        ("gpt_neo", {"attention_types": [[["global", "far", "local"], 1]]}, "attention_types is 'far'"),
        ("ministral", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types is 'chunked_attention'"),
        ("qwen3", {"layer_types": KINDS, "use_sliding_window": False}, "sliding_window is None; expected a number"),
        ("nanochat", {"attention_bias": True}, "attention_bias is True; expected False"),
        ("nanochat", {"tie_word_embeddings": True}, "tie_word_embeddings is True; expected False"),
        (
            "nanochat",
            {"model_type": "gemma2"},
            "model_type is 'gemma2'; only these can be imported: gpt2, gpt_neo, llama",
        ),
    ],
    ids=str,
)
def test_settings_that_we_cannot_hold_are_refused_by_key_and_value(model_type, setting, message, tmp_path):
    settings = json.loads(their_config(model_type).to_json_string(use_diff=False)) | setting
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        import_gpt(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"value_residual": True}, "no Hugging Face family has value_residual true; export needs value_residual false"),
        ({"logit_softcap": 15.0}, r"has logit_softcap 15\.0; export needs logit_softcap null"),
        ({"positions": "none"}, "has positions none; export needs positions learned or rotary"),
        (LLAMA | {"norm_place": "after"}, "has norm_place after; export needs norm_place before"),
        (LLAMA | {"norm_place": "both"}, "has norm_place both"),
        ({"norm": "rms"}, r"together; export needs norm layer instead of rms \(GPT-2, GPT-Neo\); considered"),
        ({"n_kv_heads": 2}, r"export needs n_kv_heads null instead of 2 \(GPT-2, GPT-Neo\)"),
        (
            QWEN3 | {"bias": True},
            r"needs qk_norm false instead of true \(Llama\), or bias false instead of true \(Qwen3\)",
        ),
        (
            ROTARY | BANDED,
            r'\(GPT-Neo\), or attention_pattern \["dense"\] instead of \["dense", "banded"\] \(GPT-NeoX\)',
        ),
        (
            LLAMA | {"mlp": "relu2"},
            r"mlp swiglu or geglu instead of relu2 \(Llama, Ministral\), or norm layer instead of rms \(GPT",
        ),
    ],
    ids=str,
)
def test_what_no_family_has_is_refused_by_option(settings, message, tokenizer_path, tmp_path):
    gpt = our_gpt(**settings)
    with pytest.raises(ValueError, match=message) as caught:
        export_gpt(gpt, tokenizer_path, tmp_path / "hf")
    assert "GPT-2, GPT-Neo, Llama, Qwen3, GPT-NeoX, Mistral, Ministral" in str(caught.value)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []
    assert why_not_written(gpt.config) == str(caught.value)


def test_every_option_is_looked_at_before_a_family_is_chosen():
    """A field that GPTConfig gains and no family knows must not be dropped without a word."""
    free = {"vocab_size", "context_length", "n_layers", "n_heads", "d_model", "d_ff", "dropout", "tie_embedding"}
    free |= {"init_std", "zero_init", "parametrization", "base_d_model", "base_n_layers", "base_d_head", "band_width"}
    asked = _structure(GPTConfig()).keys()
    assert asked | free == set(GPTConfig.__dataclass_fields__) and not asked & free
    assert all(family.options.keys() <= asked for family in READ.values())


def test_what_gpt_neos_queries_cannot_hold_is_refused(tokenizer_path, tmp_path):
    gpt = our_gpt(**BANDED)
    with torch.no_grad():
        gpt.blocks[1].attn.qkv.weight[1] = gpt.blocks[1].attn.qkv.weight[0] + 1e-6
    with pytest.raises(ValueError, match="bias on queries, and that of layer 1 .* train with bias false"):
        export_gpt(gpt, tokenizer_path, tmp_path / "hf")
    with torch.no_grad():
        gpt.blocks[1].attn.qkv.bias.zero_()
    assert export_gpt(gpt, tokenizer_path, tmp_path / "hf") == "GPT-Neo"


def test_a_band_as_wide_as_the_context_is_dense():
    wide = {"attention_pattern": ("dense", "banded"), "band_width": 2048}
    assert family_of(GPTConfig(**wide)).name == "GPT-2"
    assert family_of(GPTConfig(**wide, positions="rotary", norm="rms", mlp="swiglu")).name == "Llama"
    assert len({family.model_type for family in WRITTEN}) == len(WRITTEN)


def test_without_a_window_mistral_is_dense():
    settings = their_config("mistral", sliding_window=None).to_dict()
    assert READ["mistral"].config(settings).attention_pattern == ("dense",)
    assert READ["mistral"].config(settings | {"sliding_window": 7}).attention_pattern == ("banded",)
