"""From the weights that the paper's authors released (KEVVVV/xlm-swcm) to a checkpoint that Transformers loads."""

import re
from os import PathLike
from pathlib import Path

import torch

from modeling_xlm_swcm.checkpoints.encoders import Encoder, check_config, check_tokenizer, load_tokenizer
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.reading import StoredTensor, check_weights, equal, load_file, read_config
from modeling_xlm_swcm.checkpoints.writing import check_output
from modeling_xlm_swcm.released_xlm_swcm import ReleasedXLMSWCMConfig
from modeling_xlm_swcm.tokenization_xlm_swcm import language_tag

from .from_encoder import (
    WEIGHT_MAP,
    add_language_tags,
    check_shapes,
    count_parameters,
    make_config,
    write,
)
from .options import ConversionOptions
from .report import ConversionReport


# tensor of the release -> tensor of the model; {} is the layer
ENCODER_MAP = {f"encoder.{name}": f"model.encoder.{name}" for name in WEIGHT_MAP if "lm_head" not in name}
OUTPUT_MAP = {"decoder.last_linear.weight": "lm_head.weight", "decoder.last_linear.bias": "lm_head.bias"}

# the same within a decoder layer; [q], [k] and [v] are the thirds of a tensor
ATTENTION_MAP = {
    f"{attention}.{tensor}": f"{copy}.{target}"
    for attention, copy in {"self_attention": "self_attn", "cross_attention": "cross_attn"}.items()
    for tensor, target in {
        "in_proj_weight[q]": "q_proj.weight",
        "in_proj_weight[k]": "k_proj.weight",
        "in_proj_weight[v]": "v_proj.weight",
        "in_proj_bias[q]": "q_proj.bias",
        "in_proj_bias[k]": "k_proj.bias",
        "in_proj_bias[v]": "v_proj.bias",
        "out_proj.weight": "out_proj.weight",
        "out_proj.bias": "out_proj.bias",
    }.items()
}
LAYER_MAPS = {
    block: ATTENTION_MAP
    | {f"{module}.{kind}": f"{copy}.{kind}" for module, copy in modules.items() for kind in ("weight", "bias")}
    for block, modules in {
        "released_custom": {
            **{"ffn1.0": "ffn1.fc1", "ffn1.2": "ffn1.fc2", "ffn2.0": "ffn2.fc1", "ffn2.2": "ffn2.fc2"},
            **{"norm1": "norm1", "norm2": "norm2", "norm3": "norm3", "norm4": "norm4"},
        },
        "released_normal": {"ffn.0": "ffn.fc1", "ffn.2": "ffn.fc2", "norm1": "norm1", "norm2": "norm2"},
    }.items()
}

# tensors of the release that are left out on purpose, and why
REPEAT = r"(decoder\.)?embed_layer\.(?P<name>(word|position|token_type)_embeddings\.weight|LayerNorm\.(weight|bias))"
DROPPED = {
    r"(encoder\.embeddings|(decoder\.)?embed_layer)\.(position_ids|token_type_ids)": "a buffer, made anew",
    r"encoder\.pooler\..+": "the pooler serves classification",
    REPEAT: "equal to encoder.embeddings",
}

WORD_EMBEDDINGS = "encoder.embeddings.word_embeddings.weight"


class Release(Encoder):
    """Config and tokenizer of an encoder, and the released tensors by their own names, but for the thirds."""

    @property
    def word_embeddings(self) -> torch.Tensor | StoredTensor:
        return self.tensors[WORD_EMBEDDINGS]


def convert_released(
    path: str | PathLike,
    encoder: str | PathLike,
    output: str | PathLike,
    *,
    languages: list[str] | tuple[str, ...] = (),
    overwrite: bool = False,
) -> ConversionReport:
    """
    Write a folder with the model of a released file of weights, as [`convert`] does with that of an encoder.

    The model is a [`ReleasedXLMSWCMForConditionalGeneration`], whose layers compute what the released ones do.

    Args:
        path: the released file, a pickle of which nothing is run: a state dict, in a wrapper or not, of a model in
            `DataParallel` or not.
        encoder: Hub id or folder of the encoder that the release was made from, for config and tokenizer.
        output: the folder to write.
        languages: codes of the languages that the release has tags for, in the order of their ids.
        overwrite: replace `output` if it exists and is not empty.

    Raises:
        ConversionError: a tensor is missing, left over, of another shape, or not the repeat that it should be; file,
            encoder and languages do not belong together; or the output is not as it should be.
    """
    path, output = Path(path), Path(output)
    check_output(output, overwrite, path, encoder)
    source, config, report = prepare(path, str(encoder), ConversionOptions(languages=languages).languages)
    write(source, config, report, output, overwrite)
    return report


def prepare(path: Path, encoder: str, languages: list[str]) -> tuple[Release, ReleasedXLMSWCMConfig, ConversionReport]:
    """Everything that can go wrong before memory is taken: what is copied where, or why it cannot be."""
    tensors = read_release(path)
    encoder_config = read_config(encoder)
    check_config(encoder, encoder_config)
    source = Release(str(path), encoder_config, tensors, load_tokenizer(encoder))
    check_tokenizer(encoder, encoder_config, source.tokenizer)
    check_vocabulary(source, encoder, languages)

    report = ConversionReport(source.name, None, {"encoder": encoder, "languages": languages})
    report.tokenizer = add_language_tags(source, languages)
    report.language_ids = {code: report.tokenizer.get_lang_id(code) for code in languages}
    config = make_config(
        source,
        report.tokenizer,
        ReleasedXLMSWCMConfig,
        decoder_blocks=find_blocks(tensors),
        dtype=source.word_embeddings.dtype,
    )
    report.parameters = count_parameters(config)
    report.copied = plan_copies(config)
    claim_tensors(source, report)
    check_shapes(source, config, report)
    return source, config, report


def read_release(path: Path) -> dict[str, torch.Tensor | StoredTensor]:
    """The released tensors without what training wrapped around them, projections in their thirds."""
    if not path.is_file():
        raise ConversionError(f"There is no file {path}; give the released file of weights.")
    content = load_file(path)
    for wrapper in ("model_state_dict", "state_dict"):
        if isinstance(content, dict) and wrapper in content:
            content = content[wrapper]
    weights = check_weights(path, content)
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    for name in (WORD_EMBEDDINGS, "decoder.layers.0.norm1.weight"):
        if name not in weights:
            raise ConversionError(f"{path} has no tensor named {name}, so it is not a released XLM-SWCM.")
    tensors = {}
    for name, tensor in weights.items():
        if name.endswith((".in_proj_weight", ".in_proj_bias")):
            thirds = zip("qkv", tensor[:].chunk(3), strict=False)  # too few are found missing
            tensors |= {f"{name}[{part}]": third for part, third in thirds}
        else:
            tensors[name] = tensor
    return tensors


def check_vocabulary(source: Release, encoder: str, languages: list[str]):
    rows = source.word_embeddings.shape[0]
    tokens = len(source.tokenizer.get_vocab().keys() | {language_tag(code) for code in languages})
    # an encoder may have spare rows
    if not tokens <= rows <= max(tokens, source.config.get("vocab_size", 0)):
        raise ConversionError(
            f"{source.name} has embeddings of {rows} words, and the tokenizer of {encoder} has {tokens} with "
            f"{len(languages)} language tags; give the encoder that the release was made from, and as --languages "
            "those that the release has tags for, in the order of their ids."
        )


def find_blocks(tensors: dict[str, torch.Tensor | StoredTensor]) -> list[str]:
    """The kinds of the decoder's layers: only normal ones have a single FFN."""
    layers = [int(layer[1]) for layer in map(re.compile(r"decoder\.layers\.(\d+)\.").match, tensors) if layer]
    is_normal = [f"decoder.layers.{index}.ffn.0.weight" in tensors for index in range(max(layers) + 1)]
    return ["released_normal" if normal else "released_custom" for normal in is_normal]


def plan_copies(config: ReleasedXLMSWCMConfig) -> dict[str, str]:
    """The maps written out: tensor of the model -> tensor of the release that it is a copy of."""
    copies = {
        copy.format(index): name.format(index)
        for name, copy in ENCODER_MAP.items()
        for index in range(config.num_hidden_layers)
    }
    for index, block in enumerate(config.decoder_blocks):
        for name, copy in LAYER_MAPS[block].items():
            copies[f"model.decoder.layers.{index}.{copy}"] = f"decoder.layers.{index}.{name}"
    return copies | {copy: name for name, copy in OUTPUT_MAP.items()}


def claim_tensors(source: Release, report: ConversionReport):
    """Every tensor of the release is copied, or left out for a reason that holds; no other is passed over."""
    copied = set(report.copied.values())
    if missing := [name for name in report.copied.values() if name not in source.tensors]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConversionError(f"{source.name} lacks {missing[0]}{more}, which the model needs.")
    for name, tensor in source.tensors.items():
        if name in copied:
            continue
        pattern = next((pattern for pattern in DROPPED if re.fullmatch(pattern, name)), None)
        if pattern is None:
            raise ConversionError(
                f"{source.name} has a tensor that no rule claims: {name}. It is not a released XLM-SWCM, or its "
                "encoder has fewer layers."
            )
        if pattern == REPEAT:
            original = f"encoder.embeddings.{re.fullmatch(REPEAT, name)['name']}"
            if not equal(tensor, source.tensors[original]):
                raise ConversionError(
                    f"{name} of {source.name} is not equal to {original}, and an XLM-SWCM has one set of embeddings "
                    "for encoder and decoder."
                )
        report.dropped[name] = DROPPED[pattern]
