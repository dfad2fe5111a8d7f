"""benchmarks/ablation: how each decoder starts."""

import pytest
import torch
from decoders import VARIANTS, build, custom_layers
from support.encoders import edit_tensors

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.conversion import ConversionError


@pytest.fixture
def start(encoder_folder):
    return lambda name, languages=("zh", "bo"): build(name, str(encoder_folder), list(languages), seed=3)


def normal_layers(model) -> list[torch.nn.Module]:
    blocks = zip(model.config.decoder_blocks, model.model.decoder.layers, strict=True)
    return [layer for block, layer in blocks if block == "normal"]


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def is_zero(linear: torch.nn.Linear) -> bool:
    return not linear.weight.any() and not linear.bias.any()


class TestStarts:
    @pytest.mark.parametrize("name", [name for name in VARIANTS if name != "x6"])
    def test_every_decoder_learns_and_starts_alike_with_the_same_seed(self, start, name):
        model = start(name).model.train()
        again = start(name).model.state_dict()
        assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())
        labels = torch.tensor([[9, 20, 21, 2]])
        loss = model(input_ids=torch.tensor([[0, 9, 30, 31, 2]]), labels=labels).loss
        loss.backward()
        without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
        frozen = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
        # In a copied prefix decoder, nothing reads the output of the last encoder layer.
        unread = "encoder.layer.3." if name in ("prefix-init", "prefix-random") else None
        assert loss.isfinite() and without == frozen and bool(frozen) == bool(unread)
        assert all(unread in key for key in frozen)
        assert isinstance(model, XLMSWCMForConditionalGeneration) or not VARIANTS[name].pretrainable

    @pytest.mark.parametrize(
        ("name", "blocks"),
        [("x1", "cncncnc"), ("x2", "ccncc"), ("x3", "cccnc"), ("base-a", "cccc"), ("base-b", "ccccc")]
        + [("tied", "cccnc"), ("interleaved", "cc"), ("random", "cccnc"), ("random-short", "cc")]
        + [("random-plain", "nnnn"), ("default", "cccnc")]
        + [(f"prefix-{start}", "pppp") for start in ("tied", "init", "random")],
    )
    def test_the_layers(self, start, name, blocks):
        assert "".join(block[0] for block in start(name).model.config.decoder_blocks) == blocks

    def test_random_decoders_have_the_encoder_and_nothing_else_of_it(self, start):
        shared = start("x3").model
        for name in ("random", "random-short", "random-plain"):
            model = start(name).model
            assert equal(model.model.encoder, shared.model.encoder)
            assert torch.equal(model.lm_head.bias, shared.lm_head.bias)
            assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
            encoder = {tensor.sum().item() for tensor in model.model.encoder.state_dict().values()}
            weights = [p for p in model.model.decoder.layers.parameters() if p.ndim == 2]
            assert weights and not [weight for weight in weights if weight.sum().item() in encoder]

    def test_a_tied_decoder_has_the_encoders_tensors(self, start):
        model = start("tied").model
        query = model.model.encoder.encoder.layer[1].attention.self.query.weight
        assert model.model.decoder.layers[1].self_attn.q_proj.weight is query
        assert model.model.decoder.layers[1].cross_attn.q_proj.weight is query

    def test_prefix_decoders_start_as_the_encoder_or_at_random(self, start):
        tied, copied, random = (start(f"prefix-{name}").model for name in ("tied", "init", "random"))
        query = lambda model: model.model.encoder.encoder.layer[1].attention.self.query  # noqa: E731
        assert not list(tied.model.decoder.layers.parameters())
        assert equal(copied.model.decoder.layers[1].self_attn.q_proj, query(copied))
        assert equal(query(random), query(copied))
        new = random.model.decoder.layers[1].self_attn.q_proj.weight
        assert new.std() < 0.1 < query(random).weight.std()
        assert equal(tied.lm_head_transform, copied.lm_head_transform)
        is_identity = lambda model: torch.equal(model.lm_head_transform.dense.weight, torch.eye(32))  # noqa: E731
        assert is_identity(random) and not is_identity(copied)

    @torch.no_grad()
    def test_positions_of_the_target_can_continue_those_of_the_source(self, start):
        continued, tied = (start(f"prefix-{name}").model for name in ("continued", "tied"))
        tokens = {
            "input_ids": torch.tensor([[0, 9, 2], [0, 2, 1]]),
            "decoder_input_ids": torch.tensor([[0, 7], [0, 8]]),
        }
        tokens["attention_mask"] = tokens["input_ids"].ne(1).long()
        places = {}
        for name, model in (("continued", continued), ("tied", tied)):
            keep = lambda module, args, kwargs, name=name: places.update({name: kwargs["position_ids"].tolist()})  # noqa: E731
            model.model.decoder.embeddings.register_forward_pre_hook(keep, with_kwargs=True)
            model(**tokens)
        assert places == {"tied": [[2, 3], [2, 3]], "continued": [[5, 6], [4, 5]]}
        assert (
            continued.generate(tokens["input_ids"], attention_mask=tokens["attention_mask"], max_new_tokens=3).shape[1]
            > 1
        )

    def test_the_default_needs_no_masked_lm_head(self, start, own_encoder):
        assert equal(start("default").model, start("silent-head").model)
        edit_tensors(own_encoder, lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.dense.weight"})
        model = build("default", str(own_encoder), ["zh", "bo"], seed=0).model
        assert torch.equal(model.lm_head_transform.dense.weight, torch.eye(32))
        assert is_zero(model.model.decoder.layers[0].cross_attn.out_proj)

    def test_cross_attention_at_zero(self, start):
        model, shared = start("zero-cross").model, start("x3").model
        for layer, unchanged in zip(model.model.decoder.layers, shared.model.decoder.layers, strict=True):
            assert is_zero(layer.cross_attn.out_proj) and not is_zero(unchanged.cross_attn.out_proj)
            assert equal(layer.self_attn, unchanged.self_attn)
            assert equal(layer.cross_attn.layer_norm, unchanged.cross_attn.layer_norm)

    @pytest.mark.parametrize(("name", "sources"), [("cross-last", [3, 3, 3, 3]), ("cross-next", [1, 2, 3, 3])])
    def test_cross_attention_of_another_layer(self, start, name, sources):
        layers, shared = custom_layers(start(name).model), custom_layers(start("x3").model)
        assert all(
            equal(layer.self_attn, unchanged.self_attn) for layer, unchanged in zip(layers, shared, strict=True)
        )
        for layer, source in zip(layers, sources, strict=True):
            assert equal(layer.cross_attn, shared[source].cross_attn)

    def test_fresh_cross_attention(self, start):
        for layer in custom_layers(start("cross-fresh").model):
            assert not equal(layer.cross_attn, layer.self_attn) and equal(layer.ffn1, layer.ffn2)
            assert layer.cross_attn.k_proj.weight.std() < 0.1 < layer.self_attn.k_proj.weight.std()
            assert (layer.cross_attn.layer_norm.weight == 1).all()

    def test_the_transform_can_be_had_alone_and_left_out(self, start):
        both, transform, silent = (start(name).model for name in ("silent-head", "head-transform", "silent-fresh"))
        assert equal(transform.lm_head_transform, both.lm_head_transform) and silent.lm_head_transform is None
        assert equal(transform.model.decoder, start("x3").model.model.decoder)
        assert equal(silent.model.decoder, both.model.decoder)
        assert [model.config.lm_head_transform for model in (both, transform, silent)] == [True, True, False]

    @pytest.mark.parametrize("name", ["silent-head", "silent-fresh", "head-transform"])
    def test_a_masked_lm_head_that_is_not_there_is_named(self, own_encoder, name):
        edit_tensors(own_encoder, lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.dense.weight"})
        with pytest.raises(ConversionError, match="no( complete)? masked-LM head"):
            build(name, str(own_encoder), ["zh", "bo"], seed=0)

    def test_slow_copies_are_those_that_the_decoder_starts_with(self, start):
        copied = start("silent-slow").copied
        assert "model.decoder.layers.0.self_attn.q_proj.weight" in copied
        assert not [name for name in copied if "cross_attn.out_proj" in name or "transform" in name]

    def test_released_layers_copy_the_encoder_and_their_output_matrix_is_new(self, start):
        released, shared = start("released").model, start("x3").model
        for layer, copy in zip(custom_layers(shared), released.model.decoder.layers, strict=False):
            assert equal(layer.ffn2.fc1, copy.ffn2.fc1) and equal(layer.cross_attn.layer_norm, copy.norm3)
            assert equal(layer.self_attn.q_proj, copy.self_attn.q_proj)
            break
        assert not equal(released.lm_head, shared.lm_head)
        assert [block[9] for block in released.config.decoder_blocks] == list("cccnc")

    def test_mbart_has_the_size_of_the_encoder_and_starts_with_the_tag(self, start):
        mbart = start("mbart").model
        assert mbart.get_input_embeddings().weight.shape == start("x3").model.get_input_embeddings().weight.shape
        assert len(mbart.model.decoder.layers) == 4
        labels = torch.tensor([[9, 20, 2, -100]])
        first = mbart.config.decoder_start_token_id
        assert mbart.prepare_decoder_input_ids_from_labels(labels).tolist() == [[first, 9, 20, 2]]

    def test_warm_start_has_the_encoder_twice_with_fresh_cross_attention(self, start):
        warm, shared = start("warm-start").model, start("x3").model
        assert equal(warm.encoder.encoder, shared.model.encoder.encoder)
        for layer, copy in zip(warm.encoder.encoder.layer, warm.decoder.roberta.encoder.layer, strict=True):
            assert equal(layer.attention, copy.attention) and equal(layer.output, copy.output)
            assert copy.crossattention.self.query.weight.std() < 0.1
        words = shared.get_input_embeddings().weight
        for half in (warm.encoder, warm.decoder):
            assert torch.equal(half.get_input_embeddings().weight, words)
        assert torch.equal(warm.decoder.lm_head.bias, shared.lm_head.bias)
