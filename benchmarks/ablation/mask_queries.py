"""The prefix decoder with mask queries: each token is predicted from a `<mask>` token beside the last written token.

Sources: UniLM (Dong et al., 2019), s2s-ft (Bao et al., 2021).
"""

import torch
from transformers import AutoTokenizer

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.compat_xlm_swcm import CACHE
from modeling_xlm_swcm.decoder_xlm_swcm import XLMSWCMDecoder


class MaskQueryDecoder(XLMSWCMDecoder):
    """
    A prefix decoder that runs every token twice: as the token, and as a `<mask>` at the next position.

    A token reads the source and the tokens up to itself. A mask reads the same tokens and itself. No token reads a
    mask. The decoder returns the states of the masks. A target has at most `config.longest_input - 1` tokens, because
    the last mask needs a position too.
    """

    mask_token_id: int

    def _embed(self, input_ids, inputs_embeds, position_ids, *args):
        masks = torch.full_like(input_ids, self.mask_token_id)
        tokens = super()._embed(input_ids, None, position_ids, *args)
        return torch.cat([tokens, super()._embed(masks, None, position_ids + 1, *args)], dim=1)

    def _make_masks(self, attention_mask, encoder_attention_mask, hidden_states, *args):
        tokens, _ = hidden_states.chunk(2, dim=1)
        seen, _ = super()._make_masks(attention_mask, encoder_attention_mask, tokens, *args)
        itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=seen.device).expand(len(seen), 1, -1, -1)
        of_tokens = torch.cat([seen, torch.zeros_like(itself)], dim=-1)
        of_masks = torch.cat([seen, itself], dim=-1)
        return torch.cat([of_tokens, of_masks], dim=2), None

    def _final_norm(self, hidden_states, tied_modules):
        return super()._final_norm(hidden_states.chunk(2, dim=1)[1], tied_modules)

    def forward(self, *args, **kwargs):
        """Decode, and drop the keys and values of the masks from the cache."""
        outputs = super().forward(*args, **kwargs)
        if (cache := getattr(outputs, CACHE)) is not None:
            cache.self_attention_cache.crop(-outputs.last_hidden_state.shape[1])
        return outputs


def query_with_masks(model: XLMSWCMForConditionalGeneration, encoder: str) -> XLMSWCMForConditionalGeneration:
    """Replace the prefix decoder by a decoder with mask queries and the same weights."""
    decoder = MaskQueryDecoder(model.config)
    decoder.embeddings, decoder.layers = model.model.decoder.embeddings, model.model.decoder.layers
    decoder.mask_token_id = AutoTokenizer.from_pretrained(encoder).mask_token_id
    model.model.decoder = decoder
    return model
