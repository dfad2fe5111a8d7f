"""The graph of a model with the layers of ModernBERT computes the logits of the model."""

import numpy as np
import pytest
import torch
from support.models import logits_of, random_tokens, tiny_modern_config, tiny_modern_model

from modeling_xlm_swcm.conversion import ConversionError
from modeling_xlm_swcm.export import export
from modeling_xlm_swcm.export.graph import write_graph
from modeling_xlm_swcm.export.modern_graph import ModernGraphBuilder
from modeling_xlm_swcm.export.xlm_swcm_search import Search


PAPER = {"normal_layer_interval": 2}
BIASES = {"norm_bias": True, "attention_bias": True}


@pytest.mark.parametrize(
    "options", [{"weight_sharing": "tied"}, BIASES, PAPER | {"weight_sharing": "tied"}, PAPER | BIASES], ids=str
)
def test_logits_are_equal_to_pytorch(tmp_path, options):
    """Compare sources with padding on both sides, and targets longer than the window with padding inside."""
    model = tiny_modern_model(**options)
    write_graph(ModernGraphBuilder(model, int8=False), tmp_path / "model.xml", tmp_path)
    search = Search(tmp_path / "model.xml", {"pad_token_id": 1}, threads=1)
    tokens, mask = random_tokens(2, 14), torch.ones(2, 14, dtype=torch.long)
    mask[0, :3] = mask[1, 9:] = 0
    search.read(tokens.numpy(), mask.numpy())
    # Each source has two rows, which change places in each step.
    source = {"input_ids": tokens.repeat_interleave(2, 0), "attention_mask": mask.repeat_interleave(2, 0)}
    swap, target = np.array([1, 0, 3, 2]), torch.empty(4, 0, dtype=torch.long)
    new_tokens = random_tokens(12, 4, seed=4)
    new_tokens[3:5, 0] = 1
    for place, new in enumerate(new_tokens):
        search.step(new.numpy(), place, swap, 1)
        target = torch.cat([target[swap], new[:, None]], dim=1)
        expected = logits_of(model, **source, decoder_input_ids=target)[:, -1]
        np.testing.assert_allclose(search._logits(), expected.numpy(), atol=1e-4)


def test_positions_that_depend_on_the_length_are_refused(tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    local = {"rope_type": "default", "rope_theta": 1e4}
    tiny_modern_config(rope_parameters={"full_attention": rope, "sliding_attention": local}).save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match="has rotary positions of type dynamic, which cannot be exported. Use"):
        export(tmp_path, tmp_path / "exported")
