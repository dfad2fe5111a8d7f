"""The plan of a conversion, made from the description of the encoder's family.

Source: Su et al., ACL 2025 (arXiv 2502.10852). The interleaved layer map is from DeltaLM (Ma et al., 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike

import tokenizers
import torch
from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMForConditionalGeneration, XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints.encoder_tokenizers import check_ids, check_rows, find_unreadable_names
from modeling_xlm_swcm.checkpoints.encoders import Encoder, load_encoder
from modeling_xlm_swcm.checkpoints.errors import ConversionError, make_config_error
from modeling_xlm_swcm.checkpoints.word_pieces import find_losses, make_backend
from modeling_xlm_swcm.tokenization_xlm_swcm import language_tag

from .options import CHOICES, ConversionOptions, DecoderPlan


logger = logging.get_logger(__name__)

OUTPUT_BIAS = "lm_head.bias"
# Initial values of the transform for an encoder that has none.
NEW_TRANSFORM = {
    "lm_head_transform.dense.weight": "identity",
    "lm_head_transform.dense.bias": "zero",
    "lm_head_transform.layer_norm.weight": "one",
    "lm_head_transform.layer_norm.bias": "zero",
}


@dataclass
class ConversionPlan:
    """
    Plan of a conversion: how to copy, initialise or drop each tensor.

    Attributes:
        source ([`Encoder`]):
            Encoder with its tensors.
        config ([`XLMSWCMConfig`]):
            Config of the model.
        options (`dict`):
            Options of the conversion with their defaults.
        tokenizer ([`XLMSWCMTokenizer`] or `None`):
            Tokenizer of the encoder with the language tags.
        revision (`str` or `None`):
            Hub revision of the encoder.
        language_ids (`dict[str, int]`):
            Id of the tag of each language.
        new_ids (`list[int]`):
            Ids of the tags that the tokenizer of the encoder does not have.
        parameters (`dict[str, int]`):
            Number of parameters of the model for each kind of weight sharing.
        copied (`dict[str, str]`):
            For each copied tensor of the model, the tensor of the source.
        new (`dict[str, str]`):
            For each new tensor of the model, how it is initialised. Tensors with random weights are added when the
            model is built.
        new_rows (`dict[str, str]`):
            For each copied tensor with rows for new language tags, how these rows are initialised.
        dropped (`dict[str, str]`):
            For each tensor of the source that is not copied, the reason.
        not_finite (`list[str]`):
            Tensors of the source that hold NaN or infinity. They are found during the copy.
        notes (`list[str]`):
            Sentences about information that the tokenizer of the source loses.
    """

    source: Encoder
    config: XLMSWCMConfig
    options: dict
    tokenizer: XLMSWCMTokenizer | None
    revision: str | None = None
    language_ids: dict[str, int] = field(default_factory=dict)
    new_ids: list[int] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    copied: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    new_rows: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def vocabulary_tensors(self) -> tuple[str, str]:
        """Tensors of the model with a row per token: word embeddings and output bias."""
        return self.source.family.model_embeddings, OUTPUT_BIAS

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the model."""
        assert isinstance(self.config.dtype, torch.dtype)
        return self.config.dtype


def plan_encoder_conversion(
    encoder: str | PathLike | PreTrainedModel,
    revision: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    options: ConversionOptions,
) -> ConversionPlan:
    """Plan the conversion of an encoder, and check everything that needs no memory for weights."""
    source = load_encoder(encoder, revision, tokenizer)
    tokenizer = add_language_tags(source, options.languages)
    layers = options.plan_decoder(source.config["num_hidden_layers"])
    config = make_model_config(
        source,
        tokenizer,
        source.family.config_class,
        normal_layer_interval=options.normal_layer_interval,
        decoder_blocks=decoder_blocks(options, layers),
        weight_sharing=options.weight_sharing,
        lm_head_transform=uses_transform(options),
        dtype=options.resolve_dtype(source.word_embeddings.dtype),
        **(source.family.decoder_fields(source.config, layers) if options.decoder == "paper" else {}),
    )
    plan = ConversionPlan(source, config, options.to_dict(), tokenizer, revision)
    if tokenizer is not None:
        plan.language_ids = {code: tokenizer.get_lang_id(code) for code in options.languages}
        plan.notes = find_losses(tokenizer.backend_tokenizer)
        warn_of_unreadable_languages(source.name, tokenizer, options.languages)
    known = source.tokenizer.get_vocab() if source.tokenizer is not None else {}
    plan.new_ids = [token_id for code, token_id in plan.language_ids.items() if language_tag(code) not in known]
    plan.parameters = count_parameters(config)
    expected = describe_tensors(config)
    plan.copied = plan_encoder_copies(source, config, layers if options.decoder_init != "random" else [], expected)
    if options.decoder_init == "silent":
        plan_silent_start(plan, expected)
    if OUTPUT_BIAS not in plan.copied:
        plan.new[OUTPUT_BIAS] = "zero"
    if config.lm_head_transform and plan.copied.keys().isdisjoint(NEW_TRANSFORM):
        # The states of an encoder without a masked-LM head are too small for logits. The new LayerNorm scales them.
        plan.new |= {name: how for name, how in NEW_TRANSFORM.items() if name in expected}
    claim_encoder_tensors(plan)
    check_shapes(plan, expected)
    return plan


def decoder_blocks(options: ConversionOptions, layers: DecoderPlan) -> list[str]:
    """Return the kind of each decoder layer."""
    copied = "prefix" if options.decoder == "prefix" else "custom"
    return ["normal" if sources is None else copied for sources in layers]


def uses_transform(options: ConversionOptions) -> bool:
    """Return True if the model has a transform before the output projection. The paper's start has none."""
    return options.decoder_init == "silent" or options.decoder == "prefix"


def add_language_tags(source: Encoder, languages: Sequence[str]) -> XLMSWCMTokenizer | None:
    """Return the tokenizer of the source with a tag for each language."""
    if source.tokenizer is None:
        if languages:
            raise ConversionError("`languages` needs a tokenizer. Pass the tokenizer of the encoder as `tokenizer`.")
        return None
    check_rows(source.name, source.tokenizer, source.word_embeddings.shape[0])
    if languages:
        check_ids(source.name, max(source.tokenizer.get_vocab().values()), len(source.tokenizer))
    try:
        return XLMSWCMTokenizer(
            tokenizer_object=make_backend(source.tokenizer.backend_tokenizer),
            languages=languages,
            model_max_length=source.tokenizer.model_max_length,
            extra_special_tokens=source.tokenizer.extra_special_tokens,
            **source.tokenizer.special_tokens_map,
        )
    except ValueError as error:
        raise ConversionError(str(error)) from error


def warn_of_unreadable_languages(name: str, tokenizer: XLMSWCMTokenizer, languages: Sequence[str]):
    """Warn of languages whose native name has characters that the tokenizer of an encoder does not know."""
    is_bpe = isinstance(tokenizer.backend_tokenizer.model, tokenizers.models.BPE)
    advice = "Use another encoder." if is_bpe else "Add tokens with xlm-swcm vocab extend."
    for code, (language, unknown) in find_unreadable_names(tokenizer, languages).items():
        logger.warning(
            f'The tokenizer of {name} cannot read "{unknown}" in "{language}", the name of the language {code}. The '
            f"model cannot generate these characters. {advice}"
        )


def make_model_config(
    source: Encoder, tokenizer: XLMSWCMTokenizer | None, config_class: type[XLMSWCMConfig], **decoder
) -> XLMSWCMConfig:
    """Return a config with the sizes and special ids of the source and the given fields of the decoder."""
    names = source.family.config_fields
    fields = {name: source.config[name] for name in names if source.config.get(name) is not None}
    rows = source.word_embeddings.shape[0]
    if tokenizer is not None:
        fields |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        rows = max(rows, len(tokenizer))
    if "bos_token_id" not in fields:
        raise ConversionError(
            f"config.json of {source.name} has no bos_token_id. Pass the tokenizer of the encoder as `tokenizer`."
        )
    fields |= {"vocab_size": rows, "decoder_start_token_id": fields["bos_token_id"]}
    try:
        config = config_class(**fields | decoder)
    except Exception as error:
        raise make_config_error(source.name, error) from error
    if tokenizer is not None:
        tokenizer.model_max_length = min(config.longest_input, tokenizer.model_max_length)
    return config


def has_transform(source: Encoder, expected: dict[str, torch.Tensor]) -> bool:
    """Return True if the source has a complete masked-LM head, with GELU and the word embeddings as output matrix."""
    transform = {name for name, target in source.family.head.tensors.items() if target in expected}
    is_gelu = not source.family.head.uses_hidden_act or source.config.get("hidden_act", "gelu") == "gelu"
    return is_gelu and source.tensors.keys() >= transform and source.has_tied_output


def get_model_class(config: XLMSWCMConfig) -> type[XLMSWCMForConditionalGeneration]:
    """Return the model class for a config."""
    # Transformers annotates the values of its mappings as pairs.
    return MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]  # type: ignore[return-value]


def count_parameters(config: XLMSWCMConfig) -> dict[str, int]:
    """Return the number of parameters for each kind of weight sharing that the decoder layers allow."""
    counts, blocks = {}, config.decoder_blocks or []
    for sharing in CHOICES["weight_sharing"]:
        if sharing == "init" or blocks.count("custom") + blocks.count("prefix") == config.num_hidden_layers:
            # A tied decoder of the paper cannot start silent, so it has no transform.
            transform = config.lm_head_transform and (sharing == "init" or config.has_prefix_decoder)
            fields = {"weight_sharing": sharing, "lm_head_transform": transform}
            variant = type(config).from_dict(config.to_dict() | fields)
            with torch.device("meta"):
                counts[sharing] = get_model_class(config)(variant).num_parameters()
    return counts


def plan_encoder_copies(
    source: Encoder, config: XLMSWCMConfig, layers: DecoderPlan, expected: dict[str, torch.Tensor]
) -> dict[str, str]:
    """Return the weight map for all layers, as tensor of the model -> tensor of the source."""
    copies: dict[str, str] = {}
    # A decoder that starts at random copies no transform.
    copies_transform = config.lm_head_transform and bool(layers) and has_transform(source, expected)
    if config.has_prefix_decoder and config.weight_sharing == "tied":
        # The decoder calls the modules of the encoder, so no tensor is copied to it.
        layers = []
    weight_map = source.family.map_weights("prefix" if config.has_prefix_decoder else "custom")
    for name, targets in weight_map.items():
        for target in targets:
            if target == OUTPUT_BIAS and name not in source.tensors:
                continue
            if target.startswith("lm_head_transform.") and not copies_transform:
                continue
            if target.startswith("model.decoder."):
                half = 0 if ".self_attn." in target or ".ffn1." in target else 1
                chosen = [(index, sources[half]) for index, sources in enumerate(layers) if sources is not None]
            else:
                chosen = [(layer, layer) for layer in range(config.num_hidden_layers)]
            copies |= {target.format(index): name.format(layer) for index, layer in chosen}
    # Layers can lack tensors of the map, for example biases.
    substitutes = source.family.substitutes
    return {target: substitutes.get(name, name) for target, name in copies.items() if target in expected}


def plan_silent_start(plan: ConversionPlan, expected: dict[str, torch.Tensor]):
    """Change a plan so that the untrained decoder computes the output of the encoder."""
    copied, previous, family = plan.copied, None, plan.source.family
    for index, block in enumerate(plan.config.decoder_blocks or []):
        layer = f"model.decoder.layers.{index}"
        if block == "custom":
            previous = f"{layer}.ffn1"
        for sublayer, output in family.silent_sublayers[block].items():
            for parameter in ("weight", "bias"):
                zero = f"{layer}.{sublayer}.{output}.{parameter}"
                if zero in expected:
                    copied.pop(zero, None)
                    plan.new[zero] = "zero"
                if not family.has_norms_after:
                    continue
                # A second LayerNorm undoes the scale of the first, so only the last LayerNorm gets the copied scale.
                copied[f"{layer}.{sublayer}.layer_norm.{parameter}"] = copied.pop(f"{previous}.layer_norm.{parameter}")
            previous = f"{layer}.{sublayer}"


def claim_encoder_tensors(plan: ConversionPlan):
    """Check that every tensor of the source is copied or dropped for a known reason, and that none is missing."""
    source, copied = plan.source, set(plan.copied.values())
    for name in source.tensors:
        if name in copied:
            continue
        reason = source.family.find_dropped(name)
        if reason is None:
            raise ConversionError(
                f"{source.name} has an unknown tensor: {name}. Check that its config.json describes its weights. "
                f"Only plain {source.family.name} encoders can be converted."
            )
        plan.dropped[name] = reason
    missing = [name for name in dict.fromkeys(plan.copied.values()) if name not in source.tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConversionError(
            f"The weights of {source.name} lack {missing[0]}{more}. Check that its config.json describes its weights."
        )


def describe_tensors(config: XLMSWCMConfig) -> dict[str, torch.Tensor]:
    """Return the tensors of a model by name, without memory."""
    with torch.device("meta"):
        return get_model_class(config)(config).state_dict()


def check_shapes(plan: ConversionPlan, expected: dict[str, torch.Tensor]):
    """Check that every copied tensor has the shape that the config gives it."""
    for target, name in plan.copied.items():
        shape, wanted = list(plan.source.tensors[name].shape), list(expected[target].shape)
        if target in plan.vocabulary_tensors:
            wanted[0] = plan.source.word_embeddings.shape[0]
        if shape != wanted:
            raise ConversionError(
                f"{name} of {plan.source.name} has shape {shape}, but the config.json of the encoder describes shape "
                f"{wanted}. Check that weights and config.json belong together."
            )
