"""Help texts of the training scripts."""

import argparse
import re
from collections.abc import Iterable

from transformers.hf_argparser import string_to_bool


# Texts for options that the scripts handle in another way than Transformers describes. An empty text hides the option.
HELP = {
    "output_dir": "Folder for the model, the scores and the checkpoints. Default: trainer_output.",
    "bf16": "Compute matrix products in bfloat16 (autocast). Default: true if the GPU computes in bfloat16 natively, "
    "or, without a GPU, if the CPU does. With --fp16: false.",
    "fp16": "Compute matrix products in float16 (autocast). Needs a GPU.",
    "use_cpu": "Train on the CPU. Default: true if there is no CUDA GPU.",
    "resume_from_checkpoint": "Folder of the checkpoint to resume from. last: the last checkpoint in --output_dir. "
    "Default: a new run.",
    # Transformers ignores these options.
    "local_rank": "",
    "sortish_sampler": "",
}
FINETUNE_HELP = {
    "do_train": "Train on the training data, and save the model.",
    "do_eval": "Score the model on the validation data, after the training.",
    "do_predict": "Generate texts for the test data, after the training, and score them.",
    "predict_with_generate": "Generate texts in evaluations, and score the texts. Without this option, an evaluation "
    "computes only the loss. --do_predict needs it.",
    "push_to_hub": "Upload the model to the Hub once, at the end. Needs --hub_model_id.",
    "hub_model_id": "Repository for --push_to_hub, for example owner/name.",
    "hub_private_repo": "Make the repository for --push_to_hub private, if it is new. Default: false.",
    "hub_revision": "Branch for --push_to_hub. Default: the main branch.",
}

NO_BATCH_SIZE_SEARCH = (
    "--auto_find_batch_size is not supported. If memory is short, it starts again with weights that are already "
    "trained. Set --per_device_train_batch_size and --gradient_accumulation_steps instead."
)
HUB_OPTIONS = (
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "hub_strategy",
    "hub_always_push",
    "hub_token",
)
# Why fine-tuning does not support some options of the upload.
ONE_UPLOAD = "has no effect, because the model is uploaded once, at the end. Remove it."


class HelpFormatter(argparse.HelpFormatter):
    """
    Complete the help of an option with "Required." or the default, unless the help names the default.

    The help of `--no_NAME` says that it means `--NAME false`.
    """

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "true|false" if action.type is string_to_bool else super()._get_default_metavar_for_optional(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        if action.option_strings and action.option_strings[0].startswith("--no_"):
            return f"The same as --{action.dest} false."
        if not text or re.search(r"\bDefaults?\b|\(default|\bdefaults? (to|is|value)", text):
            return text
        sentence = f"{text.strip().removesuffix('.')}."
        if action.required:
            return f"{sentence} Required."
        if action.default in (None, [], argparse.SUPPRESS):
            return text
        return f"{sentence} Default: %(default)s."


def set_help(parser: argparse.ArgumentParser, classes: Iterable[type]) -> dict[str, str]:
    """
    Set the help of the options that `help_texts` of a class names, and hide the options that `unsupported` names.

    Returns:
        `dict[str, str]`: the options that are not supported, with their errors.
    """
    texts: dict[str, str] = {}
    unsupported: dict[str, str] = {}
    for options in classes:
        texts |= getattr(options, "help_texts", {})
        unsupported |= getattr(options, "unsupported", {})
    texts |= dict.fromkeys(unsupported, "")
    for action in parser._actions:
        if action.dest in texts:
            action.help = texts[action.dest] or argparse.SUPPRESS
    return unsupported
