"""Sizes, names and shared tensors of checkpoints, and equal models after loading."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import (
    HEAD_TRANSFORM,
    PREFIX_DECODERS,
    SHARINGS,
    Batch,
    assert_close,
    logits_of,
    random_tokens,
    tiny_model,
    tiny_modern_model,
)
from torch import nn
from transformers import AutoModel, AutoModelForSeq2SeqLM

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration, XLMSWCMModel


def tensors_of(folder: Path) -> Batch:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


class TestVocabularySize:
    @pytest.fixture(params=[True, False], ids=["one matrix", "two matrices"])
    def tied(self, request) -> bool:
        return request.param

    @pytest.mark.parametrize("size", [112, 60])
    def test_resizing_keeps_rows_bias_and_ties(self, tied, size, tmp_path):
        model = tiny_model(tie_word_embeddings=tied)
        tokens = {"input_ids": random_tokens(2, 6) % 50 + 4, "decoder_input_ids": random_tokens(2, 5) % 50 + 4}
        before = logits_of(model, **tokens)
        model.resize_token_embeddings(size)
        self.check_size(model, tied, size)
        after = logits_of(model, **tokens)
        kept = min(size, 99)
        assert_close(after[..., :kept], before[..., :kept])
        model.save_pretrained(tmp_path)
        loaded = XLMSWCMForConditionalGeneration.from_pretrained(tmp_path)
        self.check_size(loaded, tied, size)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        # Kernels of PyTorch 2.8 round differently for weights at another alignment in memory.
        assert_close(logits_of(loaded, **tokens), after)

    def check_size(self, model, tied, size):
        encoder, decoder = (part.embeddings.word_embeddings for part in (model.model.encoder, model.model.decoder))
        assert model.config.vocab_size == size
        assert encoder.weight.shape == model.lm_head.weight.shape == (size, 32)
        assert model.lm_head.bias.shape == (size,)
        assert encoder.num_embeddings == decoder.num_embeddings == model.lm_head.out_features == size
        assert decoder.weight is encoder.weight
        assert (model.lm_head.weight is encoder.weight) == tied

    def test_a_resized_model_trains(self, batch):
        model = tiny_model().train()
        model.resize_token_embeddings(112)
        labels = batch["labels"].clone()
        labels[:, 0] = 111
        loss = model(**batch | {"labels": labels}).loss
        loss.backward()
        assert loss.isfinite()
        assert model.lm_head.bias.grad[111] != 0
        assert model.get_input_embeddings().weight.grad[111].abs().max() > 0

    def test_new_input_embeddings_reach_encoder_and_decoder(self, model):
        embeddings = nn.Embedding(120, 32, padding_idx=1)
        model.set_input_embeddings(embeddings)
        assert model.get_input_embeddings() is model.get_decoder().get_input_embeddings() is embeddings
        assert model.model.encoder.embeddings.word_embeddings is embeddings
        assert model.model.decoder.embeddings.word_embeddings is embeddings


class TestSaving:
    @pytest.fixture(
        params=[*SHARINGS, *PREFIX_DECODERS, HEAD_TRANSFORM],
        ids=lambda options: "-".join(str(value) for value in options.values()),
    )
    def model(self, request) -> XLMSWCMForConditionalGeneration:
        return tiny_model(**request.param)

    def groups(self, model) -> set[frozenset[str]]:
        """Return the groups of state-dict names that share a tensor."""
        entries = sorted(model.state_dict().items(), key=lambda entry: entry[1].data_ptr())
        by_pointer = itertools.groupby(entries, key=lambda entry: entry[1].data_ptr())
        return {frozenset(name for name, _ in group) for _, group in by_pointer}

    def load(self, auto_class, folder, **options):
        model, info = auto_class.from_pretrained(folder, output_loading_info=True, **options)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), (
            info
        )
        return model

    def test_sharing_is_what_the_config_says(self, model):
        encoder, decoder = model.model.encoder, model.model.decoder
        for name, parameter in encoder.embeddings.named_parameters():
            assert decoder.embeddings.get_parameter(name) is parameter
        tied_head = model.lm_head.weight is encoder.embeddings.word_embeddings.weight
        assert tied_head == model.config.tie_word_embeddings
        layer = encoder.encoder.layer[2]
        if model.config.has_prefix_decoder:
            own = {name.split(".")[0] for name, _ in decoder.layers[2].named_parameters()}
            assert own == (set() if model.config.weight_sharing == "tied" else {"self_attn", "ffn"})
            return
        # Encoder layer 2 belongs to custom layer 2, which is decoder layer 3.
        pairs = [
            (decoder.layers[3].self_attn.k_proj.weight, layer.attention.self.key.weight),
            (decoder.layers[3].cross_attn.out_proj.bias, layer.attention.output.dense.bias),
            (decoder.layers[3].ffn1.fc1.weight, layer.intermediate.dense.weight),
            (decoder.layers[3].ffn2.layer_norm.weight, layer.output.LayerNorm.weight),
        ]
        assert [copy is original for copy, original in pairs] == 4 * [model.config.weight_sharing == "tied"]

    @pytest.mark.parametrize("shard", [None, "20KB"], ids=["one file", "shards"])
    def test_a_saved_model_comes_back_the_same(self, model, batch, tmp_path, shard):
        model.save_pretrained(tmp_path, **({} if shard is None else {"max_shard_size": shard}))
        assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (shard is not None)
        loaded = self.load(AutoModelForSeq2SeqLM, tmp_path)
        assert type(loaded) is XLMSWCMForConditionalGeneration
        assert self.groups(loaded) == self.groups(model)
        assert loaded.num_parameters() == model.num_parameters()
        assert torch.equal(logits_of(loaded, **batch), logits_of(model, **batch))

    def test_the_base_model_loads_from_the_same_files(self, model, source, target, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = self.load(AutoModel, tmp_path)
        assert type(loaded) is XLMSWCMModel
        assert self.groups(loaded) == self.groups(model.model)
        with torch.no_grad():
            actual = loaded(**source, decoder_input_ids=target).last_hidden_state
            assert torch.equal(actual, model.model(**source, decoder_input_ids=target).last_hidden_state)

    def test_a_file_holds_every_shared_tensor_once(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        assert sum(tensor.numel() for tensor in tensors_of(tmp_path).values()) == model.num_parameters()

    def test_a_head_on_a_saved_base_model_is_reported_as_new(self, model, tmp_path):
        model.model.save_pretrained(tmp_path)
        _, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
        head = {name for name in model.state_dict() if name.startswith("lm_head")}
        # The output matrix is the word embeddings or a copy of them.
        assert info["missing_keys"] == head - {"lm_head.weight"}
        assert not info["unexpected_keys"]

    @pytest.mark.parametrize("is_config", [False, True], ids=["keyword", "config"])
    @pytest.mark.parametrize("make_model", [tiny_model, tiny_modern_model])
    def test_an_output_matrix_that_a_file_lacks_is_a_copy_of_the_embeddings(
        self, make_model, is_config, batch, tmp_path
    ):
        model = make_model()
        model.save_pretrained(tmp_path)
        options = {"tie_word_embeddings": False}
        if is_config:
            options = {"config": type(model.config).from_pretrained(tmp_path, **options)}
        loaded = self.load(AutoModelForSeq2SeqLM, tmp_path, **options)
        assert loaded.lm_head.weight is not loaded.get_input_embeddings().weight
        assert torch.equal(logits_of(loaded, **batch), logits_of(model, **batch))
        # A trained output matrix comes back.
        loaded.lm_head.weight.data.add_(1)
        loaded.save_pretrained(tmp_path / "trained")
        trained = self.load(AutoModelForSeq2SeqLM, tmp_path / "trained")
        assert torch.equal(trained.lm_head.weight, loaded.lm_head.weight)

    def test_embeddings_on_disk_cannot_be_copied(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        devices = {"model": "disk", "lm_head": "cpu"}
        with pytest.raises(ValueError, match="word embeddings, because device_map keeps them on disk"):
            AutoModelForSeq2SeqLM.from_pretrained(
                tmp_path, tie_word_embeddings=False, device_map=devices, offload_folder=tmp_path / "offloaded"
            )

    @pytest.mark.parametrize("table", ["word_embeddings", "position_embeddings"])
    def test_embeddings_that_a_file_lacks_are_reported(self, model, tmp_path, table):
        model.save_pretrained(tmp_path)
        tensors = {name: tensor for name, tensor in tensors_of(tmp_path).items() if table not in name}
        tensors.pop("lm_head.weight", None)
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        _, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
        assert f"model.encoder.embeddings.{table}.weight" in info["missing_keys"]

    def test_a_layer_that_a_file_lacks_is_reported(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        lost = "model.encoder.encoder.layer.1.attention.self.query.weight"
        tensors = {name: tensor for name, tensor in tensors_of(tmp_path).items() if name != lost}
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        _, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
        assert lost in info["missing_keys"]

    def test_buffers_that_no_file_holds_are_right_after_loading(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).model
        for embeddings in (loaded.encoder.embeddings, loaded.decoder.embeddings):
            assert torch.equal(embeddings.position_ids, torch.arange(66)[None])
            assert torch.equal(embeddings.token_type_ids, torch.zeros(1, 66, dtype=torch.long))
            assert embeddings.word_embeddings.padding_idx == embeddings.padding_idx == 1

    def test_half_precision_comes_back_with_its_sharing(self, model, tmp_path):
        model.to(torch.bfloat16).save_pretrained(tmp_path)
        loaded = self.load(AutoModelForSeq2SeqLM, tmp_path)
        assert loaded.dtype == torch.bfloat16
        assert self.groups(loaded) == self.groups(model)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)


# Names of a model with one custom and one normal layer. Existing checkpoints depend on these names.
NAMES_AND_SHAPES = {
    "model.encoder.embeddings.word_embeddings.weight": (11, 4),
    "model.encoder.embeddings.token_type_embeddings.weight": (1, 4),
    "model.encoder.embeddings.LayerNorm.weight": (4,),
    "model.encoder.embeddings.LayerNorm.bias": (4,),
    "model.encoder.embeddings.position_embeddings.weight": (8, 4),
    "model.encoder.encoder.layer.0.attention.self.query.weight": (4, 4),
    "model.encoder.encoder.layer.0.attention.self.query.bias": (4,),
    "model.encoder.encoder.layer.0.attention.self.key.weight": (4, 4),
    "model.encoder.encoder.layer.0.attention.self.key.bias": (4,),
    "model.encoder.encoder.layer.0.attention.self.value.weight": (4, 4),
    "model.encoder.encoder.layer.0.attention.self.value.bias": (4,),
    "model.encoder.encoder.layer.0.attention.output.dense.weight": (4, 4),
    "model.encoder.encoder.layer.0.attention.output.dense.bias": (4,),
    "model.encoder.encoder.layer.0.attention.output.LayerNorm.weight": (4,),
    "model.encoder.encoder.layer.0.attention.output.LayerNorm.bias": (4,),
    "model.encoder.encoder.layer.0.intermediate.dense.weight": (6, 4),
    "model.encoder.encoder.layer.0.intermediate.dense.bias": (6,),
    "model.encoder.encoder.layer.0.output.dense.weight": (4, 6),
    "model.encoder.encoder.layer.0.output.dense.bias": (4,),
    "model.encoder.encoder.layer.0.output.LayerNorm.weight": (4,),
    "model.encoder.encoder.layer.0.output.LayerNorm.bias": (4,),
    "model.decoder.embeddings.word_embeddings.weight": (11, 4),
    "model.decoder.embeddings.token_type_embeddings.weight": (1, 4),
    "model.decoder.embeddings.LayerNorm.weight": (4,),
    "model.decoder.embeddings.LayerNorm.bias": (4,),
    "model.decoder.embeddings.position_embeddings.weight": (8, 4),
    "model.decoder.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.decoder.layers.0.self_attn.q_proj.bias": (4,),
    "model.decoder.layers.0.self_attn.k_proj.weight": (4, 4),
    "model.decoder.layers.0.self_attn.k_proj.bias": (4,),
    "model.decoder.layers.0.self_attn.v_proj.weight": (4, 4),
    "model.decoder.layers.0.self_attn.v_proj.bias": (4,),
    "model.decoder.layers.0.self_attn.out_proj.weight": (4, 4),
    "model.decoder.layers.0.self_attn.out_proj.bias": (4,),
    "model.decoder.layers.0.self_attn.layer_norm.weight": (4,),
    "model.decoder.layers.0.self_attn.layer_norm.bias": (4,),
    "model.decoder.layers.0.cross_attn.q_proj.weight": (4, 4),
    "model.decoder.layers.0.cross_attn.q_proj.bias": (4,),
    "model.decoder.layers.0.cross_attn.k_proj.weight": (4, 4),
    "model.decoder.layers.0.cross_attn.k_proj.bias": (4,),
    "model.decoder.layers.0.cross_attn.v_proj.weight": (4, 4),
    "model.decoder.layers.0.cross_attn.v_proj.bias": (4,),
    "model.decoder.layers.0.cross_attn.out_proj.weight": (4, 4),
    "model.decoder.layers.0.cross_attn.out_proj.bias": (4,),
    "model.decoder.layers.0.cross_attn.layer_norm.weight": (4,),
    "model.decoder.layers.0.cross_attn.layer_norm.bias": (4,),
    "model.decoder.layers.0.ffn1.fc1.weight": (6, 4),
    "model.decoder.layers.0.ffn1.fc1.bias": (6,),
    "model.decoder.layers.0.ffn1.fc2.weight": (4, 6),
    "model.decoder.layers.0.ffn1.fc2.bias": (4,),
    "model.decoder.layers.0.ffn1.layer_norm.weight": (4,),
    "model.decoder.layers.0.ffn1.layer_norm.bias": (4,),
    "model.decoder.layers.0.ffn2.fc1.weight": (6, 4),
    "model.decoder.layers.0.ffn2.fc1.bias": (6,),
    "model.decoder.layers.0.ffn2.fc2.weight": (4, 6),
    "model.decoder.layers.0.ffn2.fc2.bias": (4,),
    "model.decoder.layers.0.ffn2.layer_norm.weight": (4,),
    "model.decoder.layers.0.ffn2.layer_norm.bias": (4,),
    "model.decoder.layers.1.self_attn.q_proj.weight": (4, 4),
    "model.decoder.layers.1.self_attn.q_proj.bias": (4,),
    "model.decoder.layers.1.self_attn.k_proj.weight": (4, 4),
    "model.decoder.layers.1.self_attn.k_proj.bias": (4,),
    "model.decoder.layers.1.self_attn.v_proj.weight": (4, 4),
    "model.decoder.layers.1.self_attn.v_proj.bias": (4,),
    "model.decoder.layers.1.self_attn.out_proj.weight": (4, 4),
    "model.decoder.layers.1.self_attn.out_proj.bias": (4,),
    "model.decoder.layers.1.self_attn.layer_norm.weight": (4,),
    "model.decoder.layers.1.self_attn.layer_norm.bias": (4,),
    "model.decoder.layers.1.cross_attn.q_proj.weight": (4, 4),
    "model.decoder.layers.1.cross_attn.q_proj.bias": (4,),
    "model.decoder.layers.1.cross_attn.k_proj.weight": (4, 4),
    "model.decoder.layers.1.cross_attn.k_proj.bias": (4,),
    "model.decoder.layers.1.cross_attn.v_proj.weight": (4, 4),
    "model.decoder.layers.1.cross_attn.v_proj.bias": (4,),
    "model.decoder.layers.1.cross_attn.out_proj.weight": (4, 4),
    "model.decoder.layers.1.cross_attn.out_proj.bias": (4,),
    "model.decoder.layers.1.cross_attn.layer_norm.weight": (4,),
    "model.decoder.layers.1.cross_attn.layer_norm.bias": (4,),
    "model.decoder.layers.1.ffn.fc1.weight": (6, 4),
    "model.decoder.layers.1.ffn.fc1.bias": (6,),
    "model.decoder.layers.1.ffn.fc2.weight": (4, 6),
    "model.decoder.layers.1.ffn.fc2.bias": (4,),
    "model.decoder.layers.1.ffn.layer_norm.weight": (4,),
    "model.decoder.layers.1.ffn.layer_norm.bias": (4,),
    "lm_head_transform.dense.weight": (4, 4),
    "lm_head_transform.dense.bias": (4,),
    "lm_head_transform.layer_norm.weight": (4,),
    "lm_head_transform.layer_norm.bias": (4,),
    "lm_head.weight": (11, 4),
    "lm_head.bias": (11,),
}


class TestNames:
    @pytest.fixture(params=["init", "tied"])
    def model(self, request) -> XLMSWCMForConditionalGeneration:
        sizes = dict(
            vocab_size=11, hidden_size=4, num_attention_heads=2, intermediate_size=6, max_position_embeddings=8
        )
        blocks = dict(num_hidden_layers=1, decoder_blocks=["custom", "normal"])
        return tiny_model(weight_sharing=request.param, lm_head_transform=True, **sizes, **blocks)

    def shapes(self, tensors: Batch) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def test_the_state_dict_has_the_names_and_shapes_that_checkpoints_have(self, model):
        assert self.shapes(model.state_dict()) == NAMES_AND_SHAPES

    def test_a_file_leaves_out_what_is_shared(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        shared = ("model.decoder.embeddings.", "lm_head.weight")
        if model.config.weight_sharing == "tied":
            shared += ("model.decoder.layers.0.",)
        on_disk = {name: shape for name, shape in NAMES_AND_SHAPES.items() if not name.startswith(shared)}
        assert len(on_disk) == (52 if model.config.weight_sharing == "tied" else 84)
        assert self.shapes(tensors_of(tmp_path)) == on_disk
