"""LoRA adapters for fine-tuning and pretraining: add them before the training, and merge or save them after it."""

import warnings
from os import PathLike
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.integrations import is_fsdp_enabled

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints.reading import find_file, read_json

from .arguments import ModelArguments
from .checkpoints import TrainingError
from .precision import round_weights


VOCABULARY_REPORT = "vocabulary_report.json"
ADAPTER_CONFIG = "adapter_config.json"
# Number of token ids that a message lists.
LISTED_IDS = 5


def adapt_model(model: PreTrainedModel, args: ModelArguments, tokenizer: XLMSWCMTokenizer | None = None) -> nn.Module:
    """
    Add LoRA adapters to the projections of the decoder, or freeze the encoder, as the options say.

    In a tied prefix decoder, the adapters are in the layers of the encoder, which the decoder calls.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model to train.
        args ([`ModelArguments`]):
            Options `lora`, `lora_rank`, `lora_train_embeddings` and `freeze_encoder`.
        tokenizer ([`XLMSWCMTokenizer`], *optional*):
            Tokenizer of the model. Required for `lora_train_embeddings`.

    Returns:
        `torch.nn.Module`: the model, wrapped by PEFT if it has adapters.

    Raises:
        TrainingError: if the options do not work together, with this model or with FSDP.
    """
    check_combination(model, args)
    if args.freeze_encoder:
        model.model.encoder.requires_grad_(False)
    if not args.lora:
        return model
    from peft import LoraConfig, get_peft_model

    tokens = find_trained_tokens(args, tokenizer)
    lora = LoraConfig(
        r=args.lora_rank,
        lora_alpha=2 * args.lora_rank,
        target_modules=model.lora_targets[model.config.weight_sharing],
        trainable_token_indices=tokens or None,
    )
    with warnings.catch_warnings():
        # PEFT reads a property that Transformers deprecates.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted = get_peft_model(model, lora)
    if model.name_or_path and Path(model.name_or_path).is_dir():
        # The adapters are found from any working directory.
        lora.base_model_name_or_path = str(Path(model.name_or_path).resolve())
    return adapted


def check_combination(model: PreTrainedModel, args: ModelArguments):
    """Refuse options that do not work together or with this model."""
    needs_own_weights = {
        "--lora": args.lora and not model.config.has_prefix_decoder,
        "--freeze_encoder": args.freeze_encoder,
        "FSDP": is_fsdp_enabled(),
    }
    requested = [name for name, is_on in needs_own_weights.items() if is_on]
    if requested and model.config.weight_sharing == "tied":
        raise TrainingError(
            f"{requested[0]} needs separate weights for encoder and decoder. Convert the encoder with "
            "--weight-sharing init."
        )
    if args.lora and args.lora_rank > model.config.hidden_size:
        raise TrainingError(
            f"--lora_rank must be at most {model.config.hidden_size}, the hidden size of the model (got "
            f"{args.lora_rank}). Use a smaller number."
        )
    if args.lora and is_fsdp_enabled():
        raise TrainingError("--lora does not work with FSDP. Launch with `accelerate launch --multi_gpu` instead.")
    if args.lora_train_embeddings != "none" and not model.config.tie_word_embeddings:
        raise TrainingError(
            "--lora_train_embeddings needs an output projection that is tied to the word embeddings. Train without "
            "--lora, or use another model."
        )


def find_trained_tokens(args: ModelArguments, tokenizer: XLMSWCMTokenizer | None) -> list[int]:
    """
    Return the ids of the tokens with trained embeddings.

    Args:
        args ([`ModelArguments`]):
            Option `lora_train_embeddings`, and the model for its vocabulary report.
        tokenizer ([`XLMSWCMTokenizer`], *optional*):
            Tokenizer of the model.

    Returns:
        `list[int]`: the ids in ascending order.

    Raises:
        TrainingError: if there are no such tokens, or the vocabulary report does not fit the tokenizer.
    """
    choice = args.lora_train_embeddings
    if choice == "none":
        return []
    if tokenizer is None:
        raise TrainingError("--lora_train_embeddings needs a tokenizer. Pass `tokenizer` to `adapt_model`.")
    tags = {tokenizer.get_lang_id(code) for code in tokenizer.languages}
    if choice == "tags":
        if not tags:
            raise TrainingError(
                "--lora_train_embeddings tags needs language tags, but the tokenizer has no tags. Use new or none."
            )
        return sorted(tags)
    path = find_file(args.model_name_or_path, VOCABULARY_REPORT) if choice == "new" else Path(choice)
    if path is None:
        raise TrainingError(
            f"--lora_train_embeddings new needs a {VOCABULARY_REPORT} in {args.model_name_or_path}. Pass the path of "
            "the report that xlm-swcm vocab extend wrote, or use tags."
        )
    return sorted(tags.union(read_new_tokens(path, len(tokenizer))))


def read_new_tokens(path: Path, size: int) -> range:
    """
    Read which tokens a vocabulary extension added.

    Args:
        path (`Path`):
            Vocabulary report.
        size (`int`):
            Number of tokens of the tokenizer.

    Returns:
        `range`: ids of the added tokens.

    Raises:
        TrainingError: if the file is not the report of an extension of this vocabulary.
    """
    if not path.is_file():
        raise TrainingError(
            f"--lora_train_embeddings {path} is not a file. Use none, tags, new or the path of a {VOCABULARY_REPORT}."
        )
    report = read_json(path)
    if report.get("action") != "extend":
        raise TrainingError(
            f'{path} does not describe an extension: "action" must be "extend". Pass the report of xlm-swcm vocab '
            "extend. Do not trim the vocabulary after the extension."
        )
    tokens = report.get("tokens")
    before, after = (tokens.get(name) if isinstance(tokens, dict) else None for name in ("before", "after"))
    # `bool` is a subclass of `int`.
    if type(before) is not int or type(after) is not int or not 0 < before < after <= size:
        raise TrainingError(
            f'The field "tokens" of {path} does not fit the tokenizer, which has {size:,} tokens. Pass the report of '
            "this vocabulary."
        )
    return range(before, after)


def check_trained_tokens(model: nn.Module, checkpoint: str | PathLike):
    """
    Check that the adapters of a model and of a checkpoint train the embeddings of the same tokens.

    Args:
        model (`torch.nn.Module`):
            Model to train, with or without adapters of PEFT.
        checkpoint (`str` or `PathLike`):
            Folder of the checkpoint to resume from.

    Raises:
        TrainingError: if the tokens differ.
    """
    path = Path(checkpoint, ADAPTER_CONFIG)
    if not isinstance(getattr(model, "peft_config", None), dict) or not path.is_file():
        return
    saved = as_tokens(read_json(path).get("trainable_token_indices"))
    current = as_tokens(getattr(model.peft_config.get("default"), "trainable_token_indices", None))
    # PEFT takes a list, or a dict with names of layers. They cannot be compared with each other.
    layers = saved.keys() & current.keys() if saved and current else saved.keys() | current.keys()
    for layer in layers:
        if saved.get(layer) != current.get(layer):
            difference = describe_difference(saved.get(layer, []), current.get(layer, []))
            raise TrainingError(
                f"{checkpoint} trains the embeddings of other tokens. {difference} Use the model and the "
                "--lora_train_embeddings of the checkpoint, or start a new run."
            )


def as_tokens(tokens: list[int] | dict[str, list[int]] | None) -> dict[str, list[int]]:
    """Return the trained tokens of an adapter by layer name. The word embeddings have an empty name."""
    return tokens if isinstance(tokens, dict) else {} if tokens is None else {"": tokens}


def describe_difference(saved: list[int], current: list[int]) -> str:
    """Return which token ids are only in a checkpoint, and which only in this run."""
    only_saved, only_current = sorted({*saved} - {*current}), sorted({*current} - {*saved})
    if not only_saved and not only_current:
        return "Their order differs."
    return f"Ids only in the checkpoint: {list_ids(only_saved)}. Ids only in this run: {list_ids(only_current)}."


def list_ids(ids: list[int]) -> str:
    """Return the first token ids, and the number of the others."""
    more = f" and {len(ids) - LISTED_IDS} more" if len(ids) > LISTED_IDS else ""
    return f"{', '.join(map(str, ids[:LISTED_IDS])) or 'none'}{more}"


def save_trained(trainer: Trainer, args: ModelArguments):
    """
    Save model and tokenizer, with merged adapters, or only adapters and tokenizer if `lora_merge` is false.

    Call it before the evaluation, so that the evaluation scores the saved model.
    """
    if not args.lora_merge:
        trainer.save_model()
        return
    save_merged(trainer)
    round_weights(trainer.model, trainer.saved_dtype)


def save_merged(trainer: Trainer):
    """
    Save model and tokenizer to the output folder. LoRA adapters are merged into the weights first.

    Call it before the evaluation, which can fail or change the precision of the model.
    """
    if model_is_adapted := not isinstance(trainer.accelerator.unwrap_model(trainer.model), PreTrainedModel):
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model()
    if model_is_adapted and trainer.is_world_process_zero():
        for name in (ADAPTER_CONFIG, "adapter_model.safetensors"):
            Path(trainer.args.output_dir, name).unlink(missing_ok=True)
