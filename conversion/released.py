"""Convert the weights that the paper's authors released (KEVVVV/xlm-swcm) to a checkpoint for Transformers."""

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from modeling_xlm_swcm import XLMSWCMConfig
from modeling_xlm_swcm.checkpoints.arguments import check_path
from modeling_xlm_swcm.checkpoints.encoder_tokenizers import check_tokenizer, load_encoder_tokenizer
from modeling_xlm_swcm.checkpoints.encoders import Encoder, check_config
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.families.xlm_roberta import FAMILY
from modeling_xlm_swcm.checkpoints.reading import StoredTensor, check_weights, equal, load_file, read_config
from modeling_xlm_swcm.checkpoints.writing import check_output
from modeling_xlm_swcm.released_xlm_swcm import ReleasedXLMSWCMConfig
from modeling_xlm_swcm.tokenization_xlm_swcm import language_tag

from .from_encoder import write_conversion
from .options import ConversionOptions
from .plan import (
    ConversionPlan,
    add_language_tags,
    check_shapes,
    count_parameters,
    describe_tensors,
    make_model_config,
)
from .report import ConversionReport


# Tensor of the release -> tensor of the model. {} is the layer.
ENCODER_MAP = {
    f"encoder.{name}": f"model.encoder.{name}" for name in FAMILY.map_weights("custom") if "lm_head" not in name
}
OUTPUT_MAP = {"decoder.last_linear.weight": "lm_head.weight", "decoder.last_linear.bias": "lm_head.bias"}

# Tensor of a released decoder layer -> tensor of a decoder layer. [q], [k] and [v] are the thirds of a tensor.
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

# Embeddings that the release stores a second and third time.
REPEATED_EMBEDDINGS = (
    r"(decoder\.)?embed_layer\.(?P<name>(word|position|token_type)_embeddings\.weight|LayerNorm\.(weight|bias))"
)

# Pattern for tensors of the release that are not copied -> reason.
DROPPED_RELEASED = {
    r"(encoder\.embeddings|(decoder\.)?embed_layer)\.(position_ids|token_type_ids)": "a buffer that the model creates",
    r"encoder\.pooler\..+": "used only for classification",
    REPEATED_EMBEDDINGS: "equal to encoder.embeddings",
}

RELEASED_EMBEDDINGS = "encoder.embeddings.word_embeddings.weight"


class Release(Encoder):
    """Config and tokenizer of an encoder, with the released tensors under their released names."""

    @property
    def word_embeddings(self) -> torch.Tensor | StoredTensor:
        """Word embeddings of the release."""
        return self.tensors[RELEASED_EMBEDDINGS]


def convert_released(
    path: str | PathLike,
    encoder: str | PathLike,
    output: str | PathLike,
    *,
    languages: list[str] | tuple[str, ...] = (),
    overwrite: bool = False,
) -> ConversionReport:
    """
    Convert the authors' released weights and write model, tokenizer and `conversion_report.json` to a folder.

    The model is a [`ReleasedXLMSWCMForConditionalGeneration`]. Its layers compute the same as the released layers.

    Args:
        path (`str` or `PathLike`):
            Weight file of the release. Pickled code in it is never run.
        encoder (`str` or `PathLike`):
            Hub id or folder of the encoder of the release, for config and tokenizer.
        output (`str` or `PathLike`):
            Folder to write.
        languages (`list[str]`, *optional*, defaults to `()`):
            Language codes of the tags in the release, in the order of their ids.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace `output` if it holds a model.

    Returns:
        [`ConversionReport`]: what was copied and dropped.

    Raises:
        ConversionError: if a tensor is missing, unexpected or of another shape. Also if weights, encoder and languages
            do not belong together, or if the output cannot be used.
    """
    for name, value in (("path", path), ("encoder", encoder), ("output", output)):
        check_path(name, value)
    path, output = Path(path), Path(output)
    check_output(output, overwrite, path, encoder)
    plan = plan_release_conversion(path, str(encoder), ConversionOptions(languages=languages).languages)
    return write_conversion(plan, output, overwrite)


def plan_release_conversion(path: Path, encoder: str, languages: Sequence[str]) -> ConversionPlan:
    """Plan the conversion of a release, and check everything that needs no memory for weights."""
    tensors = read_release(path)
    encoder_config = read_config(encoder)
    if check_config(encoder, encoder_config) is not FAMILY:
        raise ConversionError(f"{encoder} is not the encoder of the release. Pass the {FAMILY.name} encoder.")
    encoder_config = FAMILY.read_fields(encoder_config)
    encoder_tokenizer = load_encoder_tokenizer(encoder)
    check_tokenizer(encoder, encoder_config, encoder_tokenizer)
    source = Release(str(path), FAMILY, encoder_config, tensors, encoder_tokenizer)
    check_vocabulary(source, encoder_tokenizer, encoder, languages)

    tokenizer = add_language_tags(source, languages)
    config = make_model_config(
        source,
        tokenizer,
        ReleasedXLMSWCMConfig,
        decoder_blocks=find_decoder_blocks(tensors),
        dtype=source.word_embeddings.dtype,
    )
    plan = ConversionPlan(source, config, {"encoder": encoder, "languages": languages}, tokenizer)
    if tokenizer is not None:
        plan.language_ids = {code: tokenizer.get_lang_id(code) for code in languages}
    plan.parameters = count_parameters(config)
    plan.copied = plan_release_copies(config)
    claim_release_tensors(plan)
    check_shapes(plan, describe_tensors(config))
    return plan


def read_release(path: Path) -> dict[str, torch.Tensor | StoredTensor]:
    """Return the released tensors without their wrappers, with Q, K and V projections as separate tensors."""
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise ConversionError(f"{path} {problem}. Pass the weight file of the release.")
    content = load_file(path)
    for wrapper in ("model_state_dict", "state_dict"):
        if isinstance(content, dict) and wrapper in content:
            content = content[wrapper]
    weights = check_weights(path, content)
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    for name in (RELEASED_EMBEDDINGS, "decoder.layers.0.norm1.weight"):
        if name not in weights:
            raise ConversionError(
                f"{path} is not a released XLM-SWCM: it has no tensor {name}. Pass the weight file of the release."
            )
    tensors: dict[str, torch.Tensor | StoredTensor] = {}
    for name, tensor in weights.items():
        if name.endswith((".in_proj_weight", ".in_proj_bias")):
            # A tensor with fewer than three chunks leaves a missing tensor, which the plan reports.
            thirds = zip("qkv", tensor[:].chunk(3), strict=False)
            tensors |= {f"{name}[{part}]": third for part, third in thirds}
        else:
            tensors[name] = tensor
    return tensors


def check_vocabulary(source: Release, tokenizer: PreTrainedTokenizerBase, encoder: str, languages: Sequence[str]):
    """Check that the tokens of the encoder and the language tags fill the word embeddings of the release."""
    rows = source.word_embeddings.shape[0]
    tokens = len(tokenizer.get_vocab().keys() | {language_tag(code) for code in languages})
    # An encoder can have more rows than tokens.
    if not tokens <= rows <= max(tokens, source.config.get("vocab_size", 0)):
        raise ConversionError(
            f"{source.name} has {rows} word embeddings, but the tokenizer of {encoder} has {tokens} tokens with "
            f"{len(languages)} language tags. Pass the encoder of the release. Pass the languages of the release to "
            "`languages`, in the order of their ids."
        )


def find_decoder_blocks(tensors: dict[str, torch.Tensor | StoredTensor]) -> list[str]:
    """Return the kind of each decoder layer. Only normal layers have a single FFN."""
    layers = [int(layer[1]) for layer in map(re.compile(r"decoder\.layers\.(\d+)\.").match, tensors) if layer]
    is_normal = [f"decoder.layers.{index}.ffn.0.weight" in tensors for index in range(max(layers) + 1)]
    return ["released_normal" if normal else "released_custom" for normal in is_normal]


def plan_release_copies(config: XLMSWCMConfig) -> dict[str, str]:
    """Return the maps for all layers, as tensor of the model -> tensor of the release."""
    copies = {
        copy.format(index): name.format(index)
        for name, copy in ENCODER_MAP.items()
        for index in range(config.num_hidden_layers)
    }
    for index, block in enumerate(config.decoder_blocks or []):
        for name, copy in LAYER_MAPS[block].items():
            copies[f"model.decoder.layers.{index}.{copy}"] = f"decoder.layers.{index}.{name}"
    return copies | {copy: name for name, copy in OUTPUT_MAP.items()}


def claim_release_tensors(plan: ConversionPlan):
    """Check that every tensor of the release is copied or dropped for a known reason, and that none is missing."""
    source, copied = plan.source, set(plan.copied.values())
    if missing := [name for name in plan.copied.values() if name not in source.tensors]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConversionError(
            f"{source.name} lacks {missing[0]}{more}. Pass the complete weight file and the encoder of the release."
        )
    for name, tensor in source.tensors.items():
        if name in copied:
            continue
        pattern = next((pattern for pattern in DROPPED_RELEASED if re.fullmatch(pattern, name)), None)
        if pattern is None:
            raise ConversionError(
                f"{source.name} has an unknown tensor: {name}. Pass a released XLM-SWCM and an encoder with the same "
                "number of layers."
            )
        if repeated := re.fullmatch(REPEATED_EMBEDDINGS, name):
            original = f"encoder.embeddings.{repeated['name']}"
            if not equal(tensor, source.tensors[original]):
                raise ConversionError(
                    f"{name} of {source.name} is not equal to {original}. Encoder and decoder of an XLM-SWCM share "
                    "their embeddings. Pass a released XLM-SWCM."
                )
        plan.dropped[name] = DROPPED_RELEASED[pattern]
