"""The score of a text is the mean log probability that the model gives to its tokens, however they were searched."""

import pytest
import torch
from support.models import assert_close

from modeling_xlm_swcm import scores_xlm_swcm
from modeling_xlm_swcm.scores_xlm_swcm import score_sequences
from modeling_xlm_swcm.sentences_xlm_swcm import Output, join_outputs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0, "repetition_penalty": 1.5},
        {"do_sample": True, "num_return_sequences": 2, "temperature": 2.0, "forced_bos_token_id": None},
    ],
    ids=["greedy", "beams", "sampling"],
)
def test_scores_are_equal_to_the_logits_of_the_search(trained_model, pairs, monkeypatch, options):
    inputs = {name: pairs[name] for name in ("input_ids", "attention_mask")}
    options = {"forced_bos_token_id": 5, "max_new_tokens": 9} | options
    torch.manual_seed(0)
    outputs = trained_model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
    expected = trained_model.compute_transition_scores(
        outputs.sequences, outputs.logits, outputs.get("beam_indices"), normalize_logits=True
    )
    is_forced = options["forced_bos_token_id"] is not None
    sequences = outputs.sequences.unflatten(0, (8, -1))
    tokens = sequences[:, :, 1 + is_forced :]
    counts = (tokens != 1).sum(-1)
    # Texts have different lengths.
    assert len(counts.unique()) > 1
    means = (expected[:, is_forced:] * (tokens != 1).flatten(0, 1)).sum(-1).view_as(counts) / counts
    for max_logits in (1, 3000, 2**25):
        monkeypatch.setattr(scores_xlm_swcm, "MAX_LOGITS", max_logits)
        scores, num_tokens = score_sequences(trained_model, inputs, sequences, torch.tensor([2]), is_forced)
        assert_close(scores, means)
        assert torch.equal(num_tokens, counts)


def test_a_text_has_the_mean_over_the_tokens_of_its_sentences():
    documents = [["", "a.", " ", "b.", "\n"], ["***"], ["", "c", ""]]
    outputs = [Output("A.", -1.0, 3), Output("B.", -2.0, 1), Output("C")]
    assert join_outputs(documents, outputs) == [("A. B.\n", -1.25, 4), ("***", None, 0), ("C", None, 0)]
