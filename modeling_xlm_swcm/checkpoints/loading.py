"""Load model and tokenizer of a checkpoint and check that they are complete and belong together."""

from os import PathLike
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration, XLMSWCMTokenizer

from .encoder_tokenizers import check_rows
from .errors import ConversionError, describe_cause, is_out_of_memory, make_config_error
from .inspection import read_model_config
from .reading import check_dtypes, find_file, load_pretrained, read_tokenizer_config, read_weights
from .tokenizer_files import check_tokenizer_fields, check_tokenizer_file


def load_model(source: str | PathLike, **options) -> XLMSWCMForConditionalGeneration:
    """
    Load an XLM-SWCM model and check that its weights fit its config.

    Args:
        source (`str` or `PathLike`):
            Folder or Hub id.
        options (`dict`, *optional*):
            Keyword arguments of `AutoModelForSeq2SeqLM.from_pretrained`.

    Returns:
        [`XLMSWCMForConditionalGeneration`]: the model, in evaluation mode.

    Raises:
        ConversionError: if a file is damaged, or a tensor is missing, unexpected or of another shape.
    """
    check_files(str(source))
    verbosity = logging.get_verbosity()
    # Transformers only warns about missing tensors. This function raises an error instead.
    logging.set_verbosity_error()
    try:
        model, info = load_pretrained(
            AutoModelForSeq2SeqLM, source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    finally:
        logging.set_verbosity(verbosity)
    for kind, keys in info.items():
        if keys:
            key = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)[0]
            raise ConversionError(
                f"The weights in {source} do not fit its config: {kind.replace('_', ' ')}, for example {key}. Convert "
                "or download the checkpoint again."
            )
    try:
        # save_pretrained makes the same check, which is late after a training.
        model.config.validate()
    except StrictDataclassError as error:
        raise make_config_error(str(source), error) from error
    return model


def check_files(source: str):
    """Check config and weight files of a model before any memory is taken for them."""
    if find_file(source, "adapter_config.json"):
        raise ConversionError(
            f"{source} contains an adapter (adapter_config.json). Merge the adapter into its model with "
            "merge_and_unload. Save the model to a new folder."
        )
    config, weights = read_model_config(source), read_weights(source)
    layers = config.num_hidden_layers + len(config.decoder_blocks or [])
    if layers > len(weights):
        raise ConversionError(
            f"config.json of {source} describes {layers} layers, but the weights contain only {len(weights)} tensors. "
            "Check that weights and config.json belong together."
        )
    # Transformers reads quantised weights if the config describes the quantisation.
    if getattr(config, "quantization_config", None) is None:
        check_dtypes(source, weights)


def load_tokenizer(source: str | PathLike, vocab_size: int) -> XLMSWCMTokenizer:
    """
    Load the tokenizer of an XLM-SWCM model.

    Args:
        source (`str` or `PathLike`):
            Folder or Hub id.
        vocab_size (`int`):
            Number of word embeddings of the model.

    Returns:
        [`XLMSWCMTokenizer`]: the tokenizer.

    Raises:
        ConversionError: if a file is damaged, or the tokenizer has another class or more than `vocab_size` tokens.
    """
    check_tokenizer_fields(str(source), read_tokenizer_config(str(source)))
    check_tokenizer_file(str(source))
    tokenizer = load_pretrained(AutoTokenizer, source)
    if not isinstance(tokenizer, XLMSWCMTokenizer):
        raise ConversionError(
            f"The tokenizer in {source} is a {type(tokenizer).__name__}, not an XLMSWCMTokenizer. Copy the tokenizer "
            "files of the converted model."
        )
    check_rows(str(source), tokenizer, vocab_size)
    return tokenizer


@torch.no_grad()
def check_cache(model: XLMSWCMForConditionalGeneration, source: str):
    """
    Check on a short input that generation with a cache gives the same logits as the model without a cache.

    Args:
        model ([`XLMSWCMForConditionalGeneration`]):
            Model to check.
        source (`str`):
            Folder or Hub id of the model, for the error message.

    Raises:
        ConversionError: if the model cannot generate, or if the logits differ, because `generate` and `forward` do
            not fit together.
    """
    length = min(8, model.config.longest_input)
    tokens = torch.linspace(0, model.config.vocab_size - 1, length).long()
    source_ids = torch.stack([tokens, tokens.flip(0)])
    mask = torch.ones_like(source_ids)
    mask[1, length // 2 + 1 :] = 0
    padding = model.config.pad_token_id
    assert padding is not None
    source_ids = source_ids.masked_fill(mask == 0, padding)
    options: dict[str, Any] = dict(max_new_tokens=length, min_new_tokens=length, do_sample=False, use_cache=True)
    # A generated padding token would change the positions of the tokens after it.
    options |= dict(return_dict_in_generate=True, output_logits=True, suppress_tokens=[padding])
    own_settings, was_training = model.generation_config, model.training
    # The settings of the checkpoint may ask for something that this check cannot follow, such as stop strings.
    model.generation_config = GenerationConfig.from_model_config(model.config)
    try:
        output = model.eval().generate(source_ids, attention_mask=mask, **options)
        targets = output.sequences[:, :-1]
        plain = model(source_ids, attention_mask=mask, decoder_input_ids=targets, use_cache=False).logits.float()
        cached = torch.stack(output.logits, dim=1).float()
    # A wrong field of config.json can raise any error of the model.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ConversionError(
            f"The model of {source} cannot generate{describe_cause(error, ': {}')}. Correct its config.json, or "
            "convert it again."
        ) from error
    finally:
        model.generation_config = own_settings
        model.train(was_training)
    if not plain.isfinite().all():
        raise ConversionError(f"The weights of {source} give logits that are not finite. Use another checkpoint.")
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    if not torch.allclose(cached, plain, rtol=0, atol=tolerance * plain.std().item()):
        difference = (cached - plain).abs().max().item()
        raise ConversionError(
            f"Generation from {source} is wrong: with a cache, logits differ by {difference:.2g}. Install a "
            "supported version of Transformers."
        )
