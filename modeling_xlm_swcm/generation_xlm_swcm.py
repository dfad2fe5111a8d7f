"""Generation with XLM-SWCM: limits on length, left-padded prompts and beam search."""

import copy

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import EncoderDecoderCache
from transformers.utils import logging

from .compat_xlm_swcm import CACHE
from .positions_xlm_swcm import cached_length, check_length, position_ids_from_mask


logger = logging.get_logger(f"transformers.{__name__}")

LIMITS = {"max_length", "max_new_tokens"}


class XLMSWCMGenerationMixin(GenerationMixin):
    """Adapt `generate` to the positions and limits of the model."""

    # Whether the decoder makes the masks of a static cache. By default, `generate` makes them for the paper's decoder.
    makes_all_masks = False

    def _reorder_cache(self, cache: EncoderDecoderCache, beam_idx: torch.LongTensor) -> EncoderDecoderCache:
        # Beams of one source share its cross-attention cache, so only the self-attention cache is reordered.
        cache.self_attention_cache.reorder_cache(beam_idx)
        return cache

    def _prepare_text_encoder_decoder_kwargs_for_generation(self, inputs_tensor: torch.Tensor, **kwargs) -> dict:
        # `generate` calls the encoder directly, without the check of `XLMSWCMModel`.
        check_length("source", inputs_tensor.shape[1], self.config)
        return super()._prepare_text_encoder_decoder_kwargs_for_generation(inputs_tensor=inputs_tensor, **kwargs)

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs
    ) -> tuple[GenerationConfig, dict]:
        prepared, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        beams = prepared.num_beams
        if beams is not None and (not isinstance(beams, int) or beams < 1):
            raise ValueError(f"num_beams must be a whole number above 0 (got {beams!r}). Use 1 for greedy decoding.")
        if prepared.prefill_chunk_size is not None:
            # Transformers would apply the chunks of the target to the mask of the source.
            raise ValueError("prefill_chunk_size does not work with an encoder-decoder. Remove it.")
        # The limit of a call replaces the stored limit, also if one is max_length and the other is max_new_tokens.
        for settings in (kwargs, {} if generation_config is None else generation_config.to_dict()):
            given = {name for name in LIMITS if settings.get(name) is not None}
            for name in LIMITS - given if given else ():
                setattr(prepared, name, None)
            if given:
                break
        return prepared, model_kwargs

    def _prepare_generated_length(self, *args, **kwargs) -> GenerationConfig:
        generation_config = super()._prepare_generated_length(*args, **kwargs)
        # The last generated token is not an input, so it needs no position.
        longest = self.config.longest_input + 1
        if generation_config.max_length > longest:
            logger.warning_once(
                f"A target has at most {longest - 1} tokens. max_length also counts the start token, so it is reduced "
                f"to {longest}."
            )
            generation_config.max_length = longest
        return generation_config

    def _prepare_decoder_input_ids_for_generation(
        self,
        batch_size: int,
        model_input_name: str,
        model_kwargs: dict,
        decoder_start_token_id: torch.Tensor,
        device: torch.device | None = None,
    ) -> tuple[torch.LongTensor, dict]:
        # Transformers looks for the start token in the first column, which is padding in left-padded prompts.
        prompts, mask = model_kwargs.get("decoder_input_ids"), model_kwargs.get("decoder_attention_mask")
        if prompts is not None and mask is not None:
            first = mask.ne(0).int().argmax(dim=1, keepdim=True)
            # The start tokens have the shape () or (batch,).
            starts = decoder_start_token_id.to(prompts.device).reshape(-1, 1)
            if (prompts.gather(1, first) == starts).all():
                return model_kwargs.pop("decoder_input_ids"), model_kwargs
        input_ids, model_kwargs = super()._prepare_decoder_input_ids_for_generation(
            batch_size, model_input_name, model_kwargs, decoder_start_token_id, device
        )
        if mask is None and model_kwargs.get(CACHE) is not None:
            # Without a mask, Transformers would add the tokens in the cache of an earlier call again.
            model_kwargs["decoder_attention_mask"] = torch.ones_like(input_ids)
        return input_ids, model_kwargs

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, *args, decoder_attention_mask: torch.Tensor | None = None, **kwargs
    ) -> dict:
        """Return the inputs of a decoding step as in Transformers, with the positions of the target."""
        # With a static cache the mask becomes 4D, so the positions must be counted before.
        if decoder_attention_mask is not None and kwargs.get("decoder_position_ids") is None:
            kwargs["decoder_position_ids"] = position_ids_from_mask(
                decoder_attention_mask, self.config.padding_position
            )
        inputs = super().prepare_inputs_for_generation(
            input_ids, *args, decoder_attention_mask=decoder_attention_mask, **kwargs
        )
        if self.makes_all_masks or self.config.has_prefix_decoder:
            inputs["decoder_attention_mask"] = self._target_mask(decoder_attention_mask, inputs.get(CACHE))
        return inputs

    def _target_mask(self, mask: torch.Tensor | None, cache: EncoderDecoderCache | None) -> torch.Tensor | None:
        """Return the 2D mask of the target, with the length of a static cache, so that its shape stays the same."""
        if mask is None or cache is None or not cache.is_compileable:
            return mask
        return torch.nn.functional.pad(mask, (0, cached_length(cache, mask.shape[1]) - mask.shape[1]))

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, *args, **kwargs
    ) -> tuple[torch.LongTensor | None, dict]:
        # Transformers repeats rows in place, which would change the `encoder_outputs` of the caller.
        if kwargs.get("encoder_outputs") is not None:
            kwargs["encoder_outputs"] = copy.copy(kwargs["encoder_outputs"])
        # Transformers repeats the rows of tensors, but not of the tuple that a prefix decoder reads.
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, *args, **kwargs)
        outputs = kwargs.get("encoder_outputs")
        if expand_size > 1 and outputs is not None and outputs.get("hidden_states") is not None:
            outputs["hidden_states"] = tuple(
                states.repeat_interleave(expand_size, dim=0) for states in outputs["hidden_states"]
            )
        return input_ids, kwargs
