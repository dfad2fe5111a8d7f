"""Convert an encoder to XLM-SWCM, and compare every copied tensor with its source."""

from collections import defaultdict
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.checkpoints.arguments import check_path
from modeling_xlm_swcm.checkpoints.encoders import require_license
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.reading import (
    StoredTensor,
    as_bytes,
    blocks,
    check_memory,
    measure_rows,
    read_weights,
    return_freed_memory,
)
from modeling_xlm_swcm.checkpoints.writing import check_output, whole_folder
from modeling_xlm_swcm.hub_xlm_swcm import REPORT, without_paths

from .options import ConversionOptions
from .plan import ConversionPlan, get_model_class, plan_encoder_conversion
from .report import ConversionReport


logger = logging.get_logger(__name__)

# Initial values of new tensors that are not random.
NEW_VALUES = {"zero": nn.init.zeros_, "one": nn.init.ones_, "identity": nn.init.eye_}


def from_encoder(
    encoder: str | PathLike | PreTrainedModel,
    *,
    revision: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options,
) -> tuple[XLMSWCMForConditionalGeneration, ConversionReport]:
    """
    Convert an encoder to an encoder-decoder model in memory.

    Args:
        encoder (`str`, `PathLike` or [`PreTrainedModel`]):
            Hub id, folder or model of a supported family, for example XLM-R or BERT, with or without a head. A model
            is copied, so training the result does not change it.
        revision (`str`, *optional*):
            Branch, tag or commit of `encoder` on the Hub. Default: the main branch.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer of the encoder. Default: the tokenizer in `encoder`, if that is a Hub id or folder.
        options (`dict`, *optional*):
            Keyword arguments of [`ConversionOptions`]: `languages`, `decoder`, `normal_layer_interval`, `layer_map`,
            `decoder_init`, `normal_layers`, `weight_sharing`, `dtype` and `seed`.

    Returns:
        `tuple`: the model ([`XLMSWCMForConditionalGeneration`]), in evaluation mode, and the [`ConversionReport`]. The
        report has the tokenizer with the language tags as `report.tokenizer`.

    Raises:
        ConversionError: if the encoder or an option cannot be used.
    """
    plan = plan_encoder_conversion(encoder, revision, tokenizer, ConversionOptions(**options))
    model = build_model(plan)
    report = ConversionReport.from_plan(plan)
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

    Every copied tensor is read back from the folder and compared with its source. If the conversion fails, no folder
    is written.

    Args:
        encoder (`str` or `PathLike`):
            Hub id or folder of the encoder.
        output (`str` or `PathLike`):
            Folder to write.
        revision (`str`, *optional*):
            Branch, tag or commit of `encoder` on the Hub. Default: the main branch.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace `output` if it holds a model.
        dry_run (`bool`, *optional*, defaults to `False`):
            Do everything except write.
        license (`str`, *optional*):
            Licence of the encoder, for the model card. Default: the licence in the encoder's model card.
        options (`dict`, *optional*):
            Keyword arguments of [`ConversionOptions`].

    Returns:
        [`ConversionReport`]: what was copied, new and dropped.

    Raises:
        ConversionError: if the encoder, an option or the output cannot be used.
    """
    check_path("encoder", encoder)
    check_path("output", output)
    output = Path(output)
    check_output(output, overwrite, encoder)
    if license is not None:
        require_license(license, str(encoder))
    plan = plan_encoder_conversion(encoder, revision, None, ConversionOptions(**options))
    # The encoder can be in a subfolder of a Sentence Transformers model.
    check_output(output, overwrite, plan.source.name)
    if not dry_run:
        return write_conversion(plan, output, overwrite, license)
    build_model(plan)
    return ConversionReport.from_plan(plan, license)


def write_conversion(
    plan: ConversionPlan, output: Path, overwrite: bool, license: str | None = None
) -> ConversionReport:
    """Carry out a plan, write the folder, and compare the written copies with their source."""
    size = plan.parameters[plan.config.weight_sharing] * plan.dtype.itemsize
    with whole_folder(output, size, overwrite) as folder:
        if plan.tokenizer is not None:
            plan.tokenizer.save_pretrained(folder)
        plan.tokenizer = plan.source.tokenizer = None
        return_freed_memory()
        model = build_model(plan)
        model.save_pretrained(folder)
        tied = model.all_tied_weights_keys
        del model
        report = ConversionReport.from_plan(plan, license)
        (folder / REPORT).write_text(report.to_json(), encoding="utf-8")
        written = read_weights(str(folder))
        written |= {target: written[kept] for target, kept in tied.items() if kept in written}
        prove_copies(plan, written)
    return report


def build_model(plan: ConversionPlan) -> XLMSWCMForConditionalGeneration:
    """Build the planned model, and compare its copies with their source."""
    check_memory(plan.source.name, plan.parameters[plan.config.weight_sharing] * plan.dtype.itemsize)
    state_dict = copy_tensors(plan)
    initialise_tags(plan, state_dict)
    model = instantiate_model(plan, state_dict)
    prove_copies(plan, model.state_dict())
    return model


def group_copies(plan: ConversionPlan, progress: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each copied tensor of the source with its copies, under a progress bar."""
    targets = defaultdict(list)
    for target, name in plan.copied.items():
        targets[name].append(target)
    yield from logging.tqdm(targets.items(), desc=progress, unit="tensor")


def copy_tensors(plan: ConversionPlan) -> dict[str, torch.Tensor]:
    """Return a state dict of the copied tensors, which share no memory with the source."""
    source, config, state_dict = plan.source, plan.config, {}
    for name, targets in group_copies(plan, "Copying"):
        if config.weight_sharing == "tied":
            targets = [target for target in targets if not target.startswith("model.decoder.")]
        for target in targets:
            rows, *columns = source.tensors[name].shape
            rows = config.vocab_size if target in plan.vocabulary_tensors else rows
            state_dict[target] = torch.empty(rows, *columns, dtype=plan.dtype)
        for place, block in blocks(source.tensors[name]):
            extremes = torch.stack(block.aminmax())
            if name not in plan.not_finite and not extremes.isfinite().all():
                plan.not_finite.append(name)
                logger.warning(
                    f"{name} of {source.name} contains NaN or infinity. The converter copies this tensor unchanged. "
                    "Check the encoder."
                )
            if (extremes.isfinite() & ~extremes.to(plan.dtype).isfinite()).any():
                raise ConversionError(
                    f"{name} of {source.name} has values that are too large for "
                    f'{str(plan.dtype).removeprefix("torch.")}. Use `dtype="bfloat16"` or float32.'
                )
            for target in targets:
                state_dict[target][place] = block
    return state_dict


def initialise_tags(plan: ConversionPlan, state_dict: dict[str, torch.Tensor]):
    """
    Set the rows of new language tags to the mean of the other rows, plus noise in the embeddings.

    The noise has the standard deviation of the other rows. With less noise a model hardly tells the tags apart.
    """
    if not plan.new_ids:
        return
    generator = torch.Generator().manual_seed(plan.options["seed"])
    for target in plan.vocabulary_tensors:
        if target not in state_dict:
            continue
        tensor = state_dict[target]
        # The rows after the first tag belong to tags or to no token.
        mean, deviation = measure_rows(tensor[: min(plan.new_ids)])
        start = mean.expand(len(plan.new_ids), *tensor.shape[1:])
        plan.new_rows[target] = "mean of the other rows"
        if target == plan.source.family.model_embeddings:
            start = start + deviation * torch.randn(start.shape, generator=generator)
            plan.new_rows[target] += " plus noise"
        tensor[plan.new_ids] = start.to(tensor.dtype)


def instantiate_model(plan: ConversionPlan, state_dict: dict[str, torch.Tensor]) -> XLMSWCMForConditionalGeneration:
    """Return a model with the tensors of `state_dict`, and with new weights where it has none."""
    verbosity = logging.get_verbosity()
    # Otherwise Transformers warns about every new tensor.
    logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            # The plan of a release has no seed, because it has no new weights.
            torch.manual_seed(plan.options.get("seed", 0))
            model, info = get_model_class(plan.config).from_pretrained(
                None, config=plan.config, state_dict=state_dict, dtype=plan.dtype, output_loading_info=True
            )
    finally:
        logging.set_verbosity(verbosity)
    wrong = {*info["unexpected_keys"], *info["mismatched_keys"], *(info["missing_keys"] & state_dict.keys())}
    if wrong:
        raise RuntimeError(f"These copied tensors are missing from the model: {wrong}. Report this bug.")
    fresh = [name for name in model.state_dict() if name in info["missing_keys"]]
    plan.new |= {name: plan.new.get(name, "fresh") for name in fresh}
    for name, how in plan.new.items():
        if how in NEW_VALUES:
            NEW_VALUES[how](model.get_parameter(name))
    model.generation_config.max_length = plan.config.longest_input
    return model


def prove_copies(plan: ConversionPlan, tensors: dict[str, torch.Tensor | StoredTensor]):
    """Compare every copy with its source bit by bit, in the dtype of the copy."""
    for name, targets in group_copies(plan, "Comparing"):
        for rows, block in blocks(plan.source.tensors[name]):
            for target in targets:
                copy = tensors[target][rows]
                expected = block.to(copy.device, copy.dtype)
                if target in plan.vocabulary_tensors:
                    # A tag can use a spare row of the source.
                    kept = [row not in plan.new_ids for row in range(rows.start, rows.stop)]
                    copy, expected = copy[kept], expected[kept]
                if not torch.equal(as_bytes(copy), as_bytes(expected)):
                    raise RuntimeError(f"{target} differs from {name} of {plan.source.name}. Report this bug.")
