"""Folders of Hugging Face in and out, with GPT-2 as the example: parity both ways, random models, no downloads."""

import json

import pytest
import safetensors.torch
import torch

from gpt_lightning.model.huggingface.folder import export_gpt, import_gpt
from gpt_lightning.serve.text import TextGenerator
from gpt_lightning.serve.text import load as load_generator
from tests.model.parity import TEXT, VOCAB, assert_same_logits, imported, our_gpt, shaken

transformers = pytest.importorskip("transformers")


def their_gpt2(**settings):
    torch.manual_seed(0)
    values = {"vocab_size": VOCAB, "n_positions": 48, "n_layer": 3, "n_head": 4, "n_embd": 32, "initializer_range": 0.3}
    return shaken(transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**values, **settings})))


EXPORTED = [
    {},
    {"d_ff": 24},
    {"bias": False},
    {"tie_embedding": False},
    {"attention_pattern": ("dense", "banded"), "band_width": 48},
    {"parametrization": "mup", "base_d_model": 16, "base_d_head": 4},
    {"parametrization": "completep", "base_d_model": 8, "base_n_layers": 1, "tie_embedding": False},
    {"parametrization": "completep", "base_d_model": 16, "base_n_layers": 1, "bias": False},
]


@pytest.mark.parametrize("settings", EXPORTED, ids=str)
def test_transformers_opens_what_we_write_and_computes_the_same(settings, tokenizer, tokenizer_path, tmp_path):
    gpt = our_gpt(**settings)
    export_gpt(gpt, tokenizer_path, tmp_path / "hf")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())  # no key missing, left over or of another shape
    assert_same_logits(gpt, theirs)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = their_tokenizer("the cat", return_tensors="pt")
    written = theirs.generate(**ids, max_new_tokens=30, do_sample=False)[0, ids.input_ids.shape[1] :]
    ours = TextGenerator(gpt, tokenizer).generate("the cat", max_new_tokens=30, temperature=0)
    assert ours == their_tokenizer.decode(written, skip_special_tokens=True) != ""


IMPORTED = [
    {},
    {"n_inner": 20},
    {"tie_word_embeddings": False},
    {"activation_function": "gelu_pytorch_tanh"},
    {"activation_function": "gelu"},
]


@pytest.mark.parametrize("settings", IMPORTED, ids=str)
def test_we_open_what_transformers_writes_and_compute_the_same(settings, tmp_path):
    theirs = their_gpt2(**settings)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(imported(tmp_path), theirs)


def test_shards_bare_names_and_pytorch_files_are_read_too(tmp_path):
    theirs = their_gpt2()
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert_same_logits(imported(tmp_path / "shards"), theirs)
    theirs.transformer.save_pretrained(tmp_path / "bare")  # no "transformer." in its keys, as on the hub
    assert_same_logits(imported(tmp_path / "bare"), theirs)
    state = theirs.state_dict() | {"transformer.h.0.attn.bias": torch.ones(1, 1, 48, 48)}  # as old files have it
    (tmp_path / "old").mkdir()
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    theirs.config.save_pretrained(tmp_path / "old")
    assert_same_logits(imported(tmp_path / "old"), theirs)


def test_out_and_in_again_gives_the_same_bits(tokenizer_path, tmp_path):
    gpt = our_gpt()
    export_gpt(gpt, tokenizer_path, tmp_path / "hf")
    back = imported(tmp_path / "hf")
    assert back.config == gpt.config
    for name, value in gpt.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_both_tokenizers_give_the_same_ids_and_text(tokenizer, tokenizer_path, tmp_path):
    export_gpt(our_gpt(), tokenizer_path, tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in (TEXT, "", " a  b\n\n\tc ", "zażółć 🏳️‍🌈 \x00 don't", "1 , 2 . n't"):
        assert theirs(text).input_ids == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    special = (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id)
    assert special == (tokenizer.eot_id,) * 3 and theirs.model_max_length == 48
    assert len(theirs) == tokenizer.vocab_size


def test_the_exported_folder_generates_as_the_model_does(tokenizer, tokenizer_path, tmp_path):
    gpt = our_gpt()
    export_gpt(gpt, tokenizer_path, tmp_path / "hf")
    from_folder = load_generator(tmp_path / "hf").generate(["the", "naïve 東"], max_new_tokens=60, seed=3)
    assert from_folder == TextGenerator(gpt, tokenizer).generate(["the", "naïve 東"], max_new_tokens=60, seed=3)


def test_a_folder_that_is_not_empty_is_left_alone(tokenizer_path, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        export_gpt(our_gpt(), tokenizer_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_a_failed_export_leaves_nothing(tokenizer_path, tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError):
        export_gpt(our_gpt(), tokenizer_path, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def change_weights(folder, change) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    change(weights)
    safetensors.torch.save_file(weights, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("transformer.h.1.mlp.c_fc.bias"), r"lacks weights h\.1\.mlp\.c_fc\.bias"),
        (lambda w: w.update({"transformer.h.9.extra": torch.ones(1)}), r"has the unknown weights h\.9\.extra"),
        (lambda w: w.update({"lm_head.weight": torch.ones(VOCAB, 32)}), "lm_head.weight differs from wte.weight"),
        (lambda w: w.update({"transformer.wpe.weight": torch.ones(9, 32)}), r"wpe\.weight has shape \(9, 32\)"),
    ],
    ids=["missing", "left over", "untied", "shape"],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, message, tmp_path):
    their_gpt2().save_pretrained(tmp_path)
    change_weights(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        import_gpt(tmp_path)


def test_an_equal_readout_is_accepted_and_dropped(tmp_path):
    theirs = their_gpt2()
    theirs.save_pretrained(tmp_path)
    change_weights(tmp_path, lambda w: w.update({"lm_head.weight": w["transformer.wte.weight"].clone()}))
    assert "lm_head.weight" not in import_gpt(tmp_path)[1]
    assert_same_logits(imported(tmp_path), theirs)


@pytest.mark.parametrize(
    "setting",
    [
        {"activation_function": "relu"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"layer_norm_epsilon": 1e-6},
        {"add_cross_attention": True},
        {"model_type": "bloom"},
    ],
    ids=str,
)
def test_models_that_our_gpt_cannot_be_are_refused_by_the_setting(setting, tmp_path):
    their_gpt2().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(ValueError, match=next(iter(setting))):
        import_gpt(tmp_path)


class Attack:
    def __reduce__(self):
        return print, ("code was run",)


def test_a_malicious_pickle_is_not_run(tmp_path, capsys):
    their_gpt2().config.save_pretrained(tmp_path)
    torch.save({"wte.weight": Attack()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin is not a file of tensors alone"):
        import_gpt(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_folder_without_weights_says_what_it_lacks(tmp_path):
    with pytest.raises(ValueError, match="config.json"):
        import_gpt(tmp_path)
    their_gpt2().config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights; expected model\.safetensors"):
        import_gpt(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        import_gpt(tmp_path)
