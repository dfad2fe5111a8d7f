"""The weight map from an XLM-R encoder to XLM-SWCM, and the one function that applies and proves it.

Source: Su et al., ACL 2025 (arXiv 2502.10852). The interleaved layer map is DeltaLM's (Ma et al., 2021).
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import torch
from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMForConditionalGeneration, XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints.encoders import Encoder, check_rows, load_encoder, require_license
from modeling_xlm_swcm.checkpoints.errors import ConversionError, refused_config
from modeling_xlm_swcm.checkpoints.reading import StoredTensor, as_bytes, blocks, read_weights, return_freed_memory
from modeling_xlm_swcm.checkpoints.writing import check_output, whole_folder
from modeling_xlm_swcm.hub_xlm_swcm import without_paths
from modeling_xlm_swcm.modeling_xlm_swcm import CUSTOM_LAYER_SOURCES
from modeling_xlm_swcm.tokenization_xlm_swcm import language_tag

from .options import CHOICES, ConversionOptions, DecoderPlan
from .report import ConversionReport


logger = logging.get_logger(__name__)

# tensor of the encoder -> tensors of the model that are copies of it, but for what SILENT_SUBLAYERS takes out. The
# first {} is the encoder layer; behind "model.decoder.layers." it is the custom layer that it was chosen for.
WEIGHT_MAP = {
    "embeddings.word_embeddings.weight": ["model.encoder.embeddings.word_embeddings.weight"],
    "embeddings.position_embeddings.weight": ["model.encoder.embeddings.position_embeddings.weight"],
    "embeddings.token_type_embeddings.weight": ["model.encoder.embeddings.token_type_embeddings.weight"],
    "embeddings.LayerNorm.weight": ["model.encoder.embeddings.LayerNorm.weight"],
    "embeddings.LayerNorm.bias": ["model.encoder.embeddings.LayerNorm.bias"],
    "lm_head.bias": ["lm_head.bias"],
    "lm_head.dense.weight": ["lm_head_transform.dense.weight"],
    "lm_head.dense.bias": ["lm_head_transform.dense.bias"],
    "lm_head.layer_norm.weight": ["lm_head_transform.layer_norm.weight"],
    "lm_head.layer_norm.bias": ["lm_head_transform.layer_norm.bias"],
} | {
    f"encoder.layer.{{}}.{source}.{parameter}": [
        f"model.encoder.encoder.layer.{{}}.{source}.{parameter}",
        *(
            f"model.decoder.layers.{{}}.{copy}.{parameter}"
            for copy, of in CUSTOM_LAYER_SOURCES.items()
            if of == source
        ),
    ]
    for source in dict.fromkeys(CUSTOM_LAYER_SOURCES.values())
    for parameter in ("weight", "bias")
}

# sublayers that an encoder layer does not have, in the order in which they run: the module that makes the output of
# each, which a silent start sets to zero
SILENT_SUBLAYERS = {
    "custom": {"cross_attn": "out_proj", "ffn2": "fc2"},
    "normal": {"self_attn": "out_proj", "cross_attn": "out_proj", "ffn": "fc2"},
}

# tensors of the source that are left out on purpose, and why
DROPPED = {
    r"pooler\..+": "the pooler serves classification",
    r"embeddings\.(position_ids|token_type_ids)": "a buffer, made anew",
    r"lm_head\.(dense|layer_norm)\..+": "the masked-LM transform: for a silent start, if whole and the output is tied",
    r"lm_head\.decoder\.weight": "the output matrix is the word embeddings",
    r"lm_head\.decoder\.bias": "repeats lm_head.bias",
    r"(classifier|qa_outputs)\..+": "the head of another task",
}

# fields that an encoder's config and ours have in common
CONFIG_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size"),
    *("initializer_range", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id"),
)

WORD_EMBEDDINGS = "model.encoder.embeddings.word_embeddings.weight"
OUTPUT_BIAS = "lm_head.bias"


def from_encoder(
    encoder: str | PathLike | PreTrainedModel,
    *,
    revision: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options,
) -> tuple[XLMSWCMForConditionalGeneration, ConversionReport]:
    """
    Build an encoder-decoder from an XLM-R-shaped encoder, in memory.

    Args:
        encoder: Hub id, folder, or model (of type xlm-roberta, roberta or camembert, with or without a head). A model
            is copied, so that training the result leaves it as it is.
        revision: Hub revision of `encoder`.
        tokenizer: the encoder's tokenizer; loaded from `encoder` where that is a Hub id or folder.
        options: those of [`ConversionOptions`]: languages, normal_layer_interval, layer_map, decoder_init,
            normal_layers, weight_sharing, dtype, seed.

    Returns:
        The model, in evaluation mode, and a [`ConversionReport`], which also has the tokenizer.

    Raises:
        ConversionError: source or options do not describe an encoder that can be converted.
    """
    source, config, report = prepare(encoder, revision, tokenizer, ConversionOptions(**options))
    model = build(source, config, report)
    model.conversion_report = without_paths(report.to_dict())
    return model, report


def convert(
    encoder: str | PathLike,
    output: str | PathLike,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    license: str | None = None,
    **options,
) -> ConversionReport:
    """
    Convert an encoder and write model, tokenizer, generation config and `conversion_report.json` to a folder.

    The folder appears whole or not at all, after every copied tensor has been read back from it and compared.

    Args:
        encoder: Hub id or folder.
        output: the folder to write.
        revision: Hub revision of `encoder`.
        overwrite: replace `output` if it exists and is not empty.
        dry_run: do everything but write.
        license: of the encoder, for the model card; by default what the encoder's own card names.
        options: those of [`ConversionOptions`].

    Raises:
        ConversionError: source, options or output are not as they should be.
    """
    output = Path(output)
    check_output(output, overwrite, encoder)
    if license is not None:
        require_license(license, str(encoder))
    source, config, report = prepare(encoder, revision, None, ConversionOptions(**options))
    report.license = license or report.license
    if dry_run:
        build(source, config, report)
    else:
        write(source, config, report, output, overwrite)
    return report


def write(source: Encoder, config: XLMSWCMConfig, report: ConversionReport, output: Path, overwrite: bool):
    """What was prepared as a folder, its copies read back and proved."""
    size = report.parameters[config.weight_sharing] * config.dtype.itemsize
    with whole_folder(output, size, overwrite) as folder:
        report.tokenizer.save_pretrained(folder)
        report.tokenizer = source.tokenizer = None
        return_freed_memory()
        model = build(source, config, report)
        model.save_pretrained(folder)
        tied = model.all_tied_weights_keys
        del model
        (folder / "conversion_report.json").write_text(report.to_json(), encoding="utf-8")
        written = read_weights(str(folder))
        written |= {target: written[kept] for target, kept in tied.items() if kept in written}
        prove_copies(source, report, written)


def prepare(
    encoder: str | PathLike | PreTrainedModel,
    revision: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    options: ConversionOptions,
) -> tuple[Encoder, XLMSWCMConfig, ConversionReport]:
    """Everything that can go wrong before memory is taken: what is copied where, or why it cannot be."""
    source = load_encoder(encoder, revision, tokenizer)
    report = ConversionReport(source.name, revision, options.to_dict(), source.commit, source.license)
    report.tokenizer = add_language_tags(source, options.languages)
    report.language_ids = {code: report.tokenizer.get_lang_id(code) for code in options.languages}
    known = source.tokenizer.get_vocab() if source.tokenizer is not None else {}
    report.new_ids = [token_id for code, token_id in report.language_ids.items() if language_tag(code) not in known]

    plan = options.plan_decoder(source.config["num_hidden_layers"])
    config = make_config(
        source,
        report.tokenizer,
        normal_layer_interval=options.normal_layer_interval,
        decoder_blocks=["normal" if layers is None else "custom" for layers in plan],
        weight_sharing=options.weight_sharing,
        lm_head_transform=options.decoder_init == "silent" and has_transform(source),
        dtype=options.resolve_dtype(source.word_embeddings.dtype),
    )
    report.parameters = count_parameters(config)
    report.copied = plan_copies(source, config, plan if options.decoder_init != "random" else [])
    if options.decoder_init == "silent":
        silence(report, config.decoder_blocks)
    if OUTPUT_BIAS not in report.copied:
        report.new[OUTPUT_BIAS] = "zero"
    claim_tensors(source, report)
    check_shapes(source, config, report)
    return source, config, report


def build(source: Encoder, config: XLMSWCMConfig, report: ConversionReport) -> XLMSWCMForConditionalGeneration:
    """The model that was prepared, its copies proved."""
    state_dict = copy_tensors(source, config, report)
    initialise_tags(state_dict, config, report)
    model = load_model(config, state_dict, report)
    prove_copies(source, report, model.state_dict())
    return model


def add_language_tags(source: Encoder, languages: list[str]) -> XLMSWCMTokenizer | None:
    """The source's tokenizer with a tag for each language."""
    if source.tokenizer is None:
        if languages:
            raise ConversionError("languages need a tokenizer to put their tags in: give tokenizer=.")
        return None
    check_rows(source.name, source.tokenizer, source.word_embeddings.shape[0])
    try:
        return XLMSWCMTokenizer(
            tokenizer_object=source.tokenizer.backend_tokenizer,
            languages=languages,
            model_max_length=source.config["max_position_embeddings"] - source.config["pad_token_id"] - 1,
            extra_special_tokens=source.tokenizer.extra_special_tokens,
            **source.tokenizer.special_tokens_map,
        )
    except ValueError as error:
        raise ConversionError(str(error)) from error


def make_config(
    source: Encoder, tokenizer: XLMSWCMTokenizer | None, config_class: type = XLMSWCMConfig, **decoder
) -> XLMSWCMConfig:
    """The source's sizes and special ids, with the fields that describe the decoder."""
    # as the source's own class reads a config without it; ours has XLM-R's value
    fields = {"layer_norm_eps": 1e-12}
    fields |= {name: source.config[name] for name in CONFIG_FIELDS if source.config.get(name) is not None}
    rows = source.word_embeddings.shape[0]
    if tokenizer is not None:
        fields |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        rows = max(rows, len(tokenizer))
    fields |= {"vocab_size": rows, "decoder_start_token_id": fields["bos_token_id"]}
    try:
        return config_class(**fields | decoder)
    except Exception as error:
        raise refused_config(source.name, error) from error


def has_transform(source: Encoder) -> bool:
    """Whether its masked-LM head can be had whole: an output matrix of its own has no place in the model."""
    whole = {name for name, targets in WEIGHT_MAP.items() if targets[0].startswith("lm_head_transform.")}
    return source.tensors.keys() >= whole and source.has_tied_output


def model_class(config: XLMSWCMConfig) -> type[XLMSWCMForConditionalGeneration]:
    return MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]


def count_parameters(config: XLMSWCMConfig) -> dict[str, int]:
    """Parameters with each kind of weight sharing that the decoder's blocks allow."""
    counts = {}
    for sharing in CHOICES["weight_sharing"]:
        if sharing == "init" or config.decoder_blocks.count("custom") == config.num_hidden_layers:
            transform = config.lm_head_transform and sharing == "init"  # a tied decoder does not start silent
            fields = {"weight_sharing": sharing, "lm_head_transform": transform}
            variant = type(config).from_dict(config.to_dict() | fields)
            with torch.device("meta"):
                counts[sharing] = model_class(config)(variant).num_parameters()
    return counts


def plan_copies(source: Encoder, config: XLMSWCMConfig, plan: DecoderPlan) -> dict[str, str]:
    """WEIGHT_MAP written out: tensor of the model -> tensor of the source that it is a copy of."""
    copies = {}
    for name, targets in WEIGHT_MAP.items():
        for target in targets:
            if target == OUTPUT_BIAS and name not in source.tensors:
                continue
            if target.startswith("lm_head_transform.") and not config.lm_head_transform:
                continue
            if target.startswith("model.decoder."):
                half = 0 if ".self_attn." in target or ".ffn1." in target else 1
                chosen = [(index, layers[half]) for index, layers in enumerate(plan) if layers is not None]
            else:
                chosen = [(layer, layer) for layer in range(config.num_hidden_layers)]
            copies |= {target.format(index): name.format(layer) for index, layer in chosen}
    return copies


def silence(report: ConversionReport, decoder_blocks: list[str]):
    """Change what was planned so that the decoder starts as the encoder is."""
    copied, previous = report.copied, None
    for index, block in enumerate(decoder_blocks):
        layer = f"model.decoder.layers.{index}"
        if block == "custom":
            previous = f"{layer}.ffn1"
        for sublayer, output in SILENT_SUBLAYERS[block].items():
            for parameter in ("weight", "bias"):
                zero = f"{layer}.{sublayer}.{output}.{parameter}"
                copied.pop(zero, None)
                report.new[zero] = "zero"
                # what is normalised twice loses its scale: of a row of LayerNorms only the last may have one
                copied[f"{layer}.{sublayer}.layer_norm.{parameter}"] = copied.pop(f"{previous}.layer_norm.{parameter}")
            previous = f"{layer}.{sublayer}"


def claim_tensors(source: Encoder, report: ConversionReport):
    """Every tensor of the source is copied, or left out for a reason that is known; no other is passed over."""
    copied = set(report.copied.values())
    for name in source.tensors:
        if name in copied:
            continue
        reason = next((why for pattern, why in DROPPED.items() if re.fullmatch(pattern, name)), None)
        if reason is None:
            raise ConversionError(
                f"{source.name} has a tensor that no rule claims: {name}. Its config.json does not describe it, or "
                "it is not a plain XLM-R encoder."
            )
        report.dropped[name] = reason
    missing = [name for name in dict.fromkeys(report.copied.values()) if name not in source.tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConversionError(f"The weights of {source.name} lack {missing[0]}{more}, which its config.json promises.")


def check_shapes(source: Encoder, config: XLMSWCMConfig, report: ConversionReport):
    with torch.device("meta"):
        expected = model_class(config)(config).state_dict()
    for target, name in report.copied.items():
        shape, wanted = list(source.tensors[name].shape), list(expected[target].shape)
        if target in (WORD_EMBEDDINGS, OUTPUT_BIAS):
            wanted[0] = source.word_embeddings.shape[0]
        if shape != wanted:
            raise ConversionError(
                f"{name} of {source.name} has shape {shape}; the encoder's config.json makes it {wanted}."
            )


def copies_by_source(report: ConversionReport, progress: str) -> Iterator[tuple[str, list[str]]]:
    targets = defaultdict(list)
    for target, name in report.copied.items():
        targets[name].append(target)
    yield from logging.tqdm(targets.items(), desc=progress, unit="tensor")


def copy_tensors(source: Encoder, config: XLMSWCMConfig, report: ConversionReport) -> dict[str, torch.Tensor]:
    """A state dict in which every tensor has memory of its own."""
    state_dict = {}
    for name, targets in copies_by_source(report, "Copying"):
        if config.weight_sharing == "tied":
            targets = [target for target in targets if not target.startswith("model.decoder.")]
        for target in targets:
            rows, *columns = source.tensors[name].shape
            rows = config.vocab_size if target in (WORD_EMBEDDINGS, OUTPUT_BIAS) else rows
            state_dict[target] = torch.empty(rows, *columns, dtype=config.dtype)
        for rows, block in blocks(source.tensors[name]):
            if name not in report.not_finite and not all(extreme.isfinite() for extreme in block.aminmax()):
                report.not_finite.append(name)
                logger.warning(f"{name} of {source.name} holds NaN or infinity, which is copied as it is.")
            for target in targets:
                state_dict[target][rows] = block
    return state_dict


def initialise_tags(state_dict: dict[str, torch.Tensor], config: XLMSWCMConfig, report: ConversionReport):
    """Tags start at the mean of the other rows; in the embedding with noise, so that no two are alike."""
    if not report.new_ids:
        return
    generator = torch.Generator().manual_seed(report.options["seed"])
    for target in (WORD_EMBEDDINGS, OUTPUT_BIAS):
        if target not in state_dict:
            continue
        tensor = state_dict[target]
        tokens = tensor[: min(report.new_ids)]  # rows behind them have none
        mean = sum(block.double().sum(0) for _, block in blocks(tokens)) / len(tokens)
        start = mean.expand(len(report.new_ids), *tensor.shape[1:]).float()
        if target == WORD_EMBEDDINGS:
            start = start + config.initializer_range * torch.randn(start.shape, generator=generator)
        tensor[report.new_ids] = start.to(tensor.dtype)
        report.new[f"{target} (rows of the language tags)"] = "mean of the other rows" + (
            " plus noise" if target == WORD_EMBEDDINGS else ""
        )


def load_model(
    config: XLMSWCMConfig, state_dict: dict[str, torch.Tensor], report: ConversionReport
) -> XLMSWCMForConditionalGeneration:
    """The model around `state_dict`, with fresh weights where it has none."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # or what is new would be reported as missing
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(report.options.get("seed", 0))  # a release leaves nothing to chance
            model, info = model_class(config).from_pretrained(
                None, config=config, state_dict=state_dict, dtype=config.dtype, output_loading_info=True
            )
    finally:
        logging.set_verbosity(verbosity)
    wrong = {*info["unexpected_keys"], *info["mismatched_keys"], *(info["missing_keys"] & state_dict.keys())}
    if wrong:
        raise RuntimeError(f"Copied tensors did not reach the model: {wrong}")
    fresh = [name for name in model.state_dict() if name in info["missing_keys"]]
    report.new |= {name: report.new.get(name, "fresh") for name in fresh}
    for name, how in report.new.items():
        if how == "zero":
            model.get_parameter(name).data.zero_()
    model.generation_config.max_length = config.longest_input
    return model


def prove_copies(source: Encoder, report: ConversionReport, tensors: dict[str, torch.Tensor | StoredTensor]):
    """Compare every copy with its source bit by bit (after the cast, where another dtype was asked for)."""
    for name, targets in copies_by_source(report, "Comparing"):
        for rows, block in blocks(source.tensors[name]):
            for target in targets:
                copy = tensors[target][rows]
                expected = block.to(copy.device, copy.dtype)
                if target in (WORD_EMBEDDINGS, OUTPUT_BIAS):
                    # a tag may stand in a row that the source had to spare
                    kept = [row not in report.new_ids for row in range(rows.start, rows.stop)]
                    copy, expected = copy[kept], expected[kept]
                if not torch.equal(as_bytes(copy), as_bytes(expected)):
                    raise RuntimeError(f"{target} is not bit-equal to {name} of {source.name}.")
