import copy

import pytest
import torch
from support.models import PREFIX_DECODERS, Batch, learn, tiny_config, tiny_model, tiny_modern_config
from transformers import GenerationConfig
from transformers.cache_utils import DynamicLayer

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.compat_xlm_swcm import CACHE


TAGS = (4, 5, 6, 7)
START, PAD, END = 0, 1, 2


DECODERS = {
    "paper": tiny_config(),
    "prefix": tiny_config(**PREFIX_DECODERS[1]),
    "modern": tiny_modern_config(weight_sharing="tied"),
    "modern paper": tiny_modern_config(normal_layer_interval=2),
}


@pytest.fixture(scope="module", params=DECODERS)
def trained_model(request, pairs) -> XLMSWCMForConditionalGeneration:
    return learn(copy.deepcopy(DECODERS[request.param]), pairs)


@pytest.fixture
def model(trained_model) -> XLMSWCMForConditionalGeneration:
    """Return a copy of a model with outputs that depend on source, tag and position. Tests may change the copy."""
    return copy.deepcopy(trained_model)


@pytest.fixture
def source(pairs) -> Batch:
    """Return eight right-padded sources from the training data, and four new sources."""
    unseen = torch.randint(8, 99, (4, 9), generator=torch.Generator().manual_seed(8))
    input_ids = torch.cat([pairs["input_ids"], unseen])
    return {"input_ids": input_ids, "attention_mask": input_ids.ne(PAD).long()}


@pytest.fixture
def prompts(pairs) -> Batch:
    """Return left-padded prompts for the first four sources: the first tokens of their targets."""
    beginnings = torch.cat([torch.full((4, 1), START), pairs["labels"][:4, :4]], dim=1)
    rows = [beginnings[row, :length] for row, length in enumerate((5, 3, 2, 4))]
    decoder_input_ids = torch.stack([torch.cat([torch.full((5 - len(row),), PAD), row]) for row in rows])
    return {"decoder_input_ids": decoder_input_ids, "decoder_attention_mask": decoder_input_ids.ne(PAD).long()}


def rows_of(inputs: Batch, rows: slice) -> Batch:
    return {name: tensor[rows] for name, tensor in inputs.items()}


def write(model, inputs: Batch, **options):
    return model.generate(**inputs, **({"max_new_tokens": 10, "do_sample": False} | options))


def until_end(row: torch.Tensor) -> list[int]:
    """Return the tokens of a row without padding."""
    return [token for token in row.tolist() if token != PAD]


class TestCache:
    @pytest.mark.parametrize("beams", [1, 4])
    def test_a_cache_changes_nothing(self, model, source, beams):
        scored = dict(num_beams=beams, return_dict_in_generate=True, output_scores=True)
        cached, plain = (write(model, source, use_cache=use_cache, **scored) for use_cache in (True, False))
        assert torch.equal(cached.sequences, plain.sequences)
        assert len({tuple(row) for row in cached.sequences.tolist()}) > 6
        if beams > 1:
            torch.testing.assert_close(cached.sequences_scores, plain.sequences_scores, atol=1e-5, rtol=1e-5)

    def test_keys_and_values_of_the_source_are_computed_once_per_generation(self, model, source, monkeypatch):
        calls = {"cached": 0, "encoder": 0}

        def update(*arguments, **options):
            calls["cached"] += 1
            return original(*arguments, **options)

        original = DynamicLayer.update
        model.model.encoder.register_forward_hook(lambda *_: calls.__setitem__("encoder", calls["encoder"] + 1))
        monkeypatch.setattr(DynamicLayer, "update", update)
        steps, layers = write(model, source).shape[1] - 1, model.config.decoder_layers
        assert steps > 6
        # Each layer adds the source once, and the target at each step.
        assert calls == {"cached": layers + layers * steps, "encoder": 1}

    def test_a_static_cache_gives_the_greedy_tokens(self, model, source):
        assert torch.equal(write(model, source, cache_implementation="static"), write(model, source))

    def test_a_static_cache_gives_the_greedy_tokens_of_left_padded_prompts(self, model, source, prompts):
        inputs = rows_of(source, slice(4)) | prompts
        assert torch.equal(write(model, inputs, cache_implementation="static"), write(model, inputs))

    # Every backend gets the same graph. The backend eager runs it without compilation.
    @pytest.mark.parametrize(
        ("trained_model", "backend", "prompted"),
        [
            ("paper", "eager", False),
            ("prefix", "eager", True),
            ("modern", "eager", True),
            ("modern paper", "eager", True),
            pytest.param("paper", "inductor", False, marks=pytest.mark.slow),
            pytest.param("paper", "inductor", True, marks=pytest.mark.slow),
            pytest.param("prefix", "inductor", False, marks=pytest.mark.slow),
            pytest.param("prefix", "inductor", True, marks=pytest.mark.slow),
        ],
        indirect=["trained_model"],
    )
    def test_a_static_cache_compiles_whole_and_once(self, model, source, prompts, backend, prompted):
        inputs = rows_of(source, slice(4)) | (prompts if prompted else {})
        expected = write(model, inputs)
        torch.compiler.reset()
        model.forward = torch.compile(model.forward, fullgraph=True, backend=backend)
        assert torch.equal(write(model, inputs, cache_implementation="static"), expected)
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(write(model, inputs, cache_implementation="static"), expected)


class TestSequences:
    def test_the_tag_that_is_forced_stands_behind_the_start_token_and_decides_what_follows(self, model, source):
        written = [write(model, source, forced_bos_token_id=tag) for tag in TAGS]
        for tag, sequences in zip(TAGS, written, strict=True):
            assert sequences[:, :2].tolist() == 12 * [[START, tag]]
        assert len({tuple(until_end(sequences[0, 2:])) for sequences in written}) == 4

    def test_the_tag_may_come_from_the_generation_config(self, model, source):
        model.generation_config.forced_bos_token_id = 6
        assert torch.equal(write(model, source), write(model, source, forced_bos_token_id=6))

    def test_sequences_end_with_the_end_token_and_padding(self, model, source):
        for row in write(model, source).tolist():
            tokens, padding = row[: row.index(END)], row[row.index(END) + 1 :]
            assert PAD not in tokens
            assert set(padding) <= {PAD}

    def test_beams_leave_the_keys_and_values_of_their_source_where_they_are(self, model, source, monkeypatch):
        reorder, places = model._reorder_cache, []

        def watch(cache, beams):
            cache = reorder(cache, beams)
            places.append([layer.keys.data_ptr() for layer in cache.cross_attention_cache.layers])
            return cache

        monkeypatch.setattr(model, "_reorder_cache", watch)
        write(model, source, num_beams=4)
        assert len(places) > 3 and all(place == places[0] for place in places)

    def test_a_source_that_is_too_long_is_refused_in_words(self, model, source):
        limit = model.config.longest_input
        long = torch.full((1, limit + 1), 5)
        with pytest.raises(
            ValueError, match=f"source has {limit + 1} tokens, but the model has only {limit} positions. Truncate"
        ):
            model.generate(long, max_new_tokens=2)
        model.generate(long[:, :limit], max_new_tokens=2)

    @pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str)
    def test_no_more_is_written_than_there_are_positions_for(self, model, source, options):
        limit = model.config.longest_input
        model.generation_config.eos_token_id = None
        longest = write(model, rows_of(source, slice(2)), max_new_tokens=limit, **options)
        assert longest.shape[1] == limit + 1
        cut = write(model, rows_of(source, slice(2)), max_new_tokens=limit + 30, **options)
        assert torch.equal(cut, longest)

    @pytest.mark.parametrize("stored", [{"max_length": 30}, {"max_new_tokens": 29}, {}], ids=str)
    @pytest.mark.parametrize(
        ("options", "tokens"),
        [
            (dict(max_new_tokens=5), 5),
            (dict(max_length=7), 6),
            (dict(generation_config=GenerationConfig(max_new_tokens=5)), 5),
            (dict(generation_config=GenerationConfig(max_length=7)), 6),
            ({}, None),
        ],
        ids=str,
    )
    def test_the_limit_of_a_call_replaces_the_stored_one_without_a_warning(
        self, model, source, stored, options, tokens, caplog
    ):
        model.generation_config = GenerationConfig(decoder_start_token_id=START, pad_token_id=PAD, **stored)
        if "generation_config" in options:
            options["generation_config"].decoder_start_token_id = START
        generated = model.generate(**rows_of(source, slice(2)), **options)
        # Transformers generates 20 tokens by default.
        assert generated.shape[1] - 1 == (tokens or (29 if stored else 20))
        assert caplog.records == []

    def test_two_limits_of_one_call_are_said(self, model, source, caplog):
        write(model, source, max_new_tokens=5, max_length=9)
        assert "`max_new_tokens` will take precedence" in caplog.text

    def test_beam_search_finds_no_less_probable_sequences_than_greedy_search(self, model, source):
        def score(sequences):
            labels = sequences[:, 1:].masked_fill(sequences[:, 1:] == PAD, -100)
            with torch.no_grad():
                logits = model(**source, labels=labels).logits
            taken = logits.log_softmax(-1).gather(2, labels.clamp(0)[..., None])[..., 0]
            return taken.masked_fill(labels == -100, 0).sum(1)

        # Without a length penalty the score is the sum of log-probabilities.
        found, greedy = write(model, source, num_beams=4, length_penalty=0.0), write(model, source)
        assert not torch.equal(found, greedy)
        assert score(found).sum() >= score(greedy).sum()

    def test_beams_that_are_returned_differ_and_are_in_order(self, model, source):
        options = dict(num_beams=4, num_return_sequences=3, return_dict_in_generate=True, output_scores=True)
        output = write(model, source, **options)
        scores = output.sequences_scores.view(12, 3)
        assert (scores.diff(dim=1) <= 0).all()
        for rows in output.sequences.view(12, 3, -1).tolist():
            assert len(set(map(tuple, rows))) == 3

    def test_sampling_repeats_with_its_seed_and_respects_the_tag(self, model, source):
        def sample(seed):
            torch.manual_seed(seed)
            return write(model, source, do_sample=True, temperature=2.0, forced_bos_token_id=5, min_new_tokens=10)

        first = sample(0)
        assert torch.equal(first, sample(0))
        assert not torch.equal(first, sample(1))
        assert first[:, 1].tolist() == 12 * [5]

    def test_the_scores_are_the_logits_of_the_written_sequence(self, model, source):
        output = write(model, source, return_dict_in_generate=True, output_scores=True, output_logits=True)
        with torch.no_grad():
            logits = model(**source, decoder_input_ids=output.sequences[:, :-1]).logits
        is_written = output.sequences[:, :-1] != PAD
        actual = torch.stack(output.logits, dim=1)
        torch.testing.assert_close(actual[is_written], logits[is_written], atol=1e-5, rtol=1e-5)
        assert len(output.scores) == output.sequences.shape[1] - 1

    @pytest.mark.parametrize("decoder", [{}, *PREFIX_DECODERS], ids=str)
    def test_attentions_are_given_for_every_step(self, source, decoder):
        model = tiny_model(attn_implementation="eager", **decoder)
        layers = model.config.decoder_layers
        recorded = dict(return_dict_in_generate=True, output_attentions=True, output_hidden_states=True)
        output = write(model, source, max_new_tokens=3, min_new_tokens=3, **recorded)
        assert len(output.cross_attentions) == len(output.decoder_attentions) == 3
        for step in range(3):
            assert [tuple(layer.shape) for layer in output.cross_attentions[step]] == layers * [(12, 4, 1, 9)]
            assert [tuple(layer.shape) for layer in output.decoder_attentions[step]] == layers * [(12, 4, 1, step + 1)]
            assert len(output.decoder_hidden_states[step]) == layers + 1
        assert len(output.encoder_hidden_states) == 5

    @pytest.mark.parametrize("decoder", PREFIX_DECODERS, ids=str)
    def test_without_eager_attention_no_step_has_attentions(self, source, decoder):
        output = write(tiny_model(**decoder), source, return_dict_in_generate=True, output_attentions=True)
        assert not any(output.decoder_attentions) and not any(output.cross_attentions)

    def test_the_encoders_output_may_be_given(self, model, source):
        encoder_outputs = model.get_encoder()(**source)
        given = write(model, {"attention_mask": source["attention_mask"]}, encoder_outputs=encoder_outputs)
        assert torch.equal(given, write(model, source))

    def test_the_encoders_output_may_be_given_twice(self, model, source):
        inputs = {"attention_mask": source["attention_mask"], "encoder_outputs": model.get_encoder()(**source)}
        for _ in range(2):
            assert torch.equal(write(model, inputs, num_beams=3), write(model, source, num_beams=3))

    def test_a_cache_of_an_earlier_call_is_continued(self, model, source):
        source, length = rows_of(source, slice(4)), dict(min_new_tokens=8, max_new_tokens=8)
        first = write(model, source, min_new_tokens=3, max_new_tokens=3, return_dict_in_generate=True)
        cache = {CACHE: getattr(first, CACHE)}
        second = write(
            model, source | {"decoder_input_ids": first.sequences}, min_new_tokens=5, max_new_tokens=5, **cache
        )
        assert torch.equal(second, write(model, source, **length))
        # The last token is not an input.
        assert cache[CACHE].get_seq_length() == 8

    def test_chunks_of_a_prompt_are_refused(self, model, source):
        with pytest.raises(ValueError, match="prefill_chunk_size does not work with an encoder-decoder"):
            write(model, source, prefill_chunk_size=2)


class TestPadding:
    @pytest.mark.parametrize("beams", [1, 4])
    def test_a_left_padded_prompt_is_continued_as_it_is_alone(self, model, source, prompts, beams):
        together = write(model, rows_of(source, slice(4)) | prompts, num_beams=beams)
        for row in range(4):
            prompt = prompts["decoder_input_ids"][row]
            inputs = rows_of(source, slice(row, row + 1)) | {"decoder_input_ids": prompt[prompt != PAD][None]}
            alone = write(model, inputs, num_beams=beams)
            assert until_end(together[row]) == until_end(alone[0])
            assert len(until_end(alone[0])) > len(until_end(prompt))

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("beams", [1, 4])
    def test_a_padded_source_gives_what_it_gives_alone(self, model, source, side, beams):
        if side == "left":
            padding_first = source["attention_mask"].sort(dim=1, stable=True).indices
            source = {name: rows.gather(1, padding_first) for name, rows in source.items()}
            assert source["input_ids"][3, :3].tolist() == 3 * [PAD]
        together = write(model, source, num_beams=beams)
        for row in range(12):
            tokens = source["input_ids"][row]
            alone = write(model, {"input_ids": tokens[tokens != PAD][None]}, num_beams=beams)
            assert until_end(together[row]) == until_end(alone[0])


class TestAssistedDecoding:
    @pytest.fixture(params=["random", "itself"])
    def assistant(self, request, model) -> XLMSWCMForConditionalGeneration:
        """Return a smaller model with almost no correct proposals, and a model with only correct proposals."""
        if request.param == "itself":
            return copy.deepcopy(model)
        torch.manual_seed(1)
        return XLMSWCMForConditionalGeneration(tiny_config(num_hidden_layers=2, initializer_range=0.3)).eval()

    @pytest.mark.parametrize("tag", [None, 5])
    def test_an_assistant_changes_no_token(self, model, source, assistant, tag):
        # Transformers supports assisted generation only for a batch of one.
        for row in range(6, 10):
            inputs = rows_of(source, slice(row, row + 1))
            assisted = write(model, inputs, assistant_model=assistant, forced_bos_token_id=tag)
            assert torch.equal(assisted, write(model, inputs, forced_bos_token_id=tag))

    def test_a_good_assistant_saves_steps_of_the_model(self, model, source):
        inputs, assistant, steps = rows_of(source, slice(1)), copy.deepcopy(model), []
        model.model.decoder.register_forward_hook(lambda *_: steps.append(1))
        plain = write(model, inputs)
        alone = len(steps)
        assert torch.equal(write(model, inputs, assistant_model=assistant), plain)
        assert len(steps) - alone < alone == plain.shape[1] - 1


def test_prompts_that_are_all_left_padded_give_what_they_give_unpadded(model, source):
    prompt = torch.tensor([[0, 5, 9]])
    one = {name: tensor[:1] for name, tensor in source.items()}
    plain = model.generate(**one, decoder_input_ids=prompt, max_new_tokens=6, do_sample=False)
    padded = model.generate(
        **one,
        decoder_input_ids=torch.tensor([[1, 1, 0, 5, 9]]),
        decoder_attention_mask=torch.tensor([[0, 0, 1, 1, 1]]),
        max_new_tokens=6,
        do_sample=False,
    )
    assert padded[0, 2:].tolist() == plain[0].tolist()
