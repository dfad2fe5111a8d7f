"""Check the output folder of a training, and find the checkpoint to resume from."""

import os
from pathlib import Path

from transformers import TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import CONFIG_NAME, logging

from .checkpoints import TrainingError


logger = logging.get_logger(__name__)


def check_output_dir(args: TrainingArguments):
    """
    Check that the output folder can be written.

    Raises:
        TrainingError: if the output folder is a file, or cannot be created or written.
    """
    folder = Path(args.output_dir).absolute()
    if folder.is_file():
        raise TrainingError(f"--output_dir {args.output_dir} is a file. Name a folder.")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise TrainingError(f"--output_dir {args.output_dir} cannot be created or written. Choose another folder.")


def find_checkpoint(args: TrainingArguments, start: str | None = None) -> str | None:
    """
    Find the checkpoint to resume from.

    Args:
        args ([`~transformers.TrainingArguments`]):
            Training arguments. `resume_from_checkpoint` is a folder, or "last" for the last checkpoint, if any.
        start (`str`, *optional*):
            Folder of the model to start from, which the run must not overwrite.

    Returns:
        `str` or `None`: the folder of the checkpoint, or `None` for a new run.

    Raises:
        TrainingError: if the checkpoint does not exist or is damaged, or if a new run would overwrite a model. Also
            if the output folder has checkpoints and `resume_from_checkpoint` is not set.
    """
    check_output_dir(args)
    last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    requested = args.resume_from_checkpoint
    if requested is None and last is not None:
        raise TrainingError(
            f"{args.output_dir} already has checkpoints. Pass --resume_from_checkpoint last to resume from "
            f"{Path(last).name}, or choose another --output_dir."
        )
    if (checkpoint := last if requested == "last" else requested) is None:
        if start is not None and Path(start).resolve() == Path(args.output_dir).resolve():
            raise TrainingError(
                f"--output_dir {args.output_dir} is the folder of the model to start from. Choose another folder."
            )
        if any(Path(args.output_dir, name).is_file() for name in (CONFIG_NAME, "adapter_config.json")):
            raise TrainingError(f"--output_dir {args.output_dir} already holds a model. Choose another folder.")
        if requested == "last" and args.process_index == 0:
            logger.warning(f"{args.output_dir} has no checkpoint. The training starts from the beginning.")
        return None
    if not (state := Path(checkpoint, TRAINER_STATE_NAME)).is_file():
        advice = "Delete it" if requested == "last" else "Pass last"
        raise TrainingError(
            f"{checkpoint} is not a checkpoint of a training. {advice}, or pass another checkpoint to "
            "--resume_from_checkpoint."
        )
    try:
        TrainerState.load_from_json(str(state))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{state} is damaged. Delete this checkpoint and resume from an earlier one.") from error
    if args.deepspeed is None and not Path(checkpoint, SCHEDULER_NAME).is_file():
        raise TrainingError(
            f"Cannot resume from {checkpoint}: it has no optimizer state. It was probably saved with "
            f"--save_only_model. Start a new run with --model_name_or_path {checkpoint} and another --output_dir."
        )
    return checkpoint
