"""LoRA adapters for fine-tuning and pretraining: add them before the training and merge them after it."""

import warnings
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.integrations import is_fsdp_enabled

from .arguments import ModelArguments
from .checkpoints import TrainingError


LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def adapt_model(model: PreTrainedModel, args: ModelArguments) -> nn.Module:
    """
    Add LoRA adapters to the projections of the decoder, or freeze the encoder, as the options say.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model to train.
        args ([`ModelArguments`]):
            Options `lora`, `lora_rank` and `freeze_encoder`.

    Returns:
        `torch.nn.Module`: the model, wrapped by PEFT if it has adapters.

    Raises:
        TrainingError: if encoder and decoder share their layers, or if adapters meet FSDP.
    """
    needs_own_weights = {"--lora": args.lora, "--freeze_encoder": args.freeze_encoder, "FSDP": is_fsdp_enabled()}
    requested = [name for name, is_on in needs_own_weights.items() if is_on]
    if requested and model.config.weight_sharing == "tied":
        raise TrainingError(
            f"{requested[0]} needs a decoder with its own weights. Convert the encoder with --weight-sharing init."
        )
    if args.lora and is_fsdp_enabled():
        raise TrainingError("--lora does not work with FSDP. Launch with `accelerate launch --multi_gpu` instead.")
    if args.freeze_encoder:
        model.model.encoder.requires_grad_(False)
    if not args.lora:
        return model
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=args.lora_rank, lora_alpha=2 * args.lora_rank, target_modules=LORA_TARGETS)
    with warnings.catch_warnings():
        # PEFT reads a property that Transformers deprecates.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, lora)


def save_merged(trainer: Trainer):
    """
    Save model and tokenizer to the output folder. LoRA adapters are merged into the weights first.

    Call it before the evaluation, which can fail or change the precision of the model.
    """
    if model_is_adapted := not isinstance(trainer.accelerator.unwrap_model(trainer.model), PreTrainedModel):
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model()
    if model_is_adapted and trainer.is_world_process_zero():
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            Path(trainer.args.output_dir, name).unlink(missing_ok=True)
