"""Fine-tuning for summarization, translation or question answering, with scores for each language."""

import copy
from pathlib import Path

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import DataCollatorForSeq2Seq, set_seed
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints import loading
from modeling_xlm_swcm.checkpoints.encoders import require_license
from modeling_xlm_swcm.checkpoints.inspection import read_model_config
from modeling_xlm_swcm.checkpoints.reading import find_file, read_json
from modeling_xlm_swcm.hub import push
from modeling_xlm_swcm.hub.upload import check_repo_id, check_token

from .arguments import ModelArguments, TrainingArguments
from .examples import Pair
from .files import print_output, write_json, write_whole
from .finetuning_data import FinetuneDataArguments, PairEncoder, encode_for_evaluation, group_of, read_pairs
from .lora import adapt_model, save_trained
from .metrics import CUT, GenerationMetrics
from .precision import choose_saved_dtype
from .results import write_results
from .resuming import check_output_dir, find_checkpoint
from .rows import BadRows, DataError, known_languages
from .trainer import XLMSWCMTrainer


logger = logging.get_logger(__name__)

# metric -> language -> score
Scores = dict[str, dict[str, float]]


def finetune(model_args: ModelArguments, data_args: FinetuneDataArguments, args: TrainingArguments) -> Scores:
    """
    Fine-tune a model, score it and, if `args.push_to_hub` is set, push it.

    `args.do_train`, `args.do_eval` and `args.do_predict` select the steps. The output folder gets the model with its
    card, the scores and, for the test split, the generated texts.

    Args:
        model_args ([`ModelArguments`]):
            Model to start from.
        data_args ([`FinetuneDataArguments`]):
            Task, files, columns and languages.
        args ([`TrainingArguments`]):
            Training arguments.

    Returns:
        `dict[str, dict[str, float]]`: the score of each language for each metric, on the test split, or else on the
        validation split.

    Raises:
        DataError: if an option or the data cannot be used.
        TrainingError: if the training cannot start or continue.
        ConversionError: if the model cannot be loaded or pushed.
    """
    requested = {"train": args.do_train, "validation": args.do_eval, "test": args.do_predict}
    splits = [split for split, is_requested in requested.items() if is_requested]
    if not splits:
        raise DataError("There is nothing to do. Pass --do_train, --do_eval or --do_predict.")
    if args.do_predict and not args.predict_with_generate:
        raise DataError("--do_predict needs --predict_with_generate. Add --predict_with_generate.")
    if args.push_to_hub:
        check_push(model_args, args)
    tokenizer = load_tokenizer(model_args, data_args)
    results = finetune_on_pairs(model_args, data_args, args, tokenizer, read_pairs(data_args, splits))
    print_output(args)
    if args.push_to_hub and args.process_index == 0:
        url = push(
            args.output_dir,
            args.hub_model_id,
            license=model_args.license,
            private=bool(args.hub_private_repo),
            revision=args.hub_revision,
        )
        Console().print(f"Pushed: {url}", markup=False, highlight=False, soft_wrap=True)
    return results


def finetune_on_pairs(
    model_args: ModelArguments,
    data_args: FinetuneDataArguments,
    args: TrainingArguments,
    tokenizer: XLMSWCMTokenizer,
    pairs: dict[str, list[Pair]],
) -> Scores:
    """
    Train on `pairs["train"]`, and evaluate on `pairs["validation"]` and `pairs["test"]`, if they are given.

    Args:
        model_args ([`ModelArguments`]):
            Model to start from.
        data_args ([`FinetuneDataArguments`]):
            Task, lengths and number of beams.
        args ([`TrainingArguments`]):
            Training arguments.
        tokenizer ([`XLMSWCMTokenizer`]):
            Tokenizer of the model.
        pairs (`dict[str, list[Pair]]`):
            Pairs of each split.

    Returns:
        `dict[str, dict[str, float]]`: the score of each language for each metric, on the test split, or else on the
        validation split.
    """
    check_evaluation(args)
    # The caller can use its arguments again.
    args = copy.copy(args)
    # The trainer must not push: the finished model is pushed once, with its card.
    args.push_to_hub = False
    args.generation_num_beams = data_args.num_beams
    # The start token is not part of the labels.
    args.generation_max_length = data_args.max_target_length + 1
    if "train" in pairs:
        check_steps(args)
        checkpoint = find_checkpoint(args, model_args.model_name_or_path)
    else:
        check_output_dir(args)
    set_seed(args.seed)
    datasets, metrics, unknown = encode_splits(data_args, tokenizer, pairs)
    model = loading.load_model(model_args.model_name_or_path, dtype=torch.float32)
    trainer = XLMSWCMTrainer(
        adapt_model(model, model_args, tokenizer),
        args,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=datasets.get("train"),
        eval_dataset=datasets.get("validation"),
        processing_class=tokenizer,
        compute_metrics=metrics.get("validation") if args.predict_with_generate else None,
    )
    trainer.settings = vars(model_args) | vars(data_args)
    trainer.saved_dtype = choose_saved_dtype(model_args)
    if "train" in datasets:
        trainer.train(resume_from_checkpoint=checkpoint)
        save_trained(trainer, model_args)
    results = evaluate_splits(trainer, datasets, metrics)
    if "train" in datasets:
        scored = metrics.get("test") or metrics.get("validation")
        data = describe_data(data_args, pairs["train"], len(datasets["train"])) | unknown
        data |= scored.signatures if scored else {}
        example = {"src_lang": pairs["train"][0].src_lang, "tgt_lang": pairs["train"][0].tgt_lang}
        # The last split is the split that is scored.
        dataset = name_dataset(data_args, [*pairs][-1])
        write_results(trainer, model_args, data_args.task, dataset, results, data, example)
    return results


def load_tokenizer(model_args: ModelArguments, args: FinetuneDataArguments) -> XLMSWCMTokenizer:
    """
    Load the tokenizer of the model, and check lengths and languages against the model.

    Raises:
        DataError: if a length is above the limit of the model, or a language has no tag.
    """
    config = read_model_config(model_args.model_name_or_path)
    limit = config.longest_input
    for name in ("max_source_length", "max_target_length"):
        if getattr(args, name) > limit:
            raise DataError(
                f"--{name} must be at most {limit} for this model (got {getattr(args, name)}). Use a smaller number."
            )
    tokenizer = loading.load_tokenizer(model_args.model_name_or_path, config.vocab_size)
    for code in filter(None, [args.source_lang, *(args.target_lang or ())]):
        if code not in tokenizer.languages:
            raise DataError(f'The model has no language tag for "{code}". {known_languages(tokenizer)}')
    return tokenizer


def encode_splits(
    data_args: FinetuneDataArguments, tokenizer: XLMSWCMTokenizer, pairs: dict[str, list[Pair]]
) -> tuple[dict[str, Dataset], dict[str, GenerationMetrics], dict]:
    """Encode the pairs of each split. Return also the metrics of the splits to evaluate on, and facts on `<unk>`."""
    encoder = PairEncoder(tokenizer, data_args, BadRows(data_args.skip_bad_rows))
    examples = {"train": list(encoder(pairs["train"], data_args.max_target_length))} if "train" in pairs else {}
    # The card describes the training data only.
    described = encoder.coverage.describe()
    metrics = {}
    for split in pairs.keys() - {"train"}:
        examples[split], metrics[split] = encode_for_evaluation(pairs[split], encoder)
    encoder.report()
    if empty := [split for split in examples if not examples[split]]:
        raise DataError(f"The {empty[0]} data has no usable row. Check its columns and the maximum lengths.")
    return {split: Dataset.from_list(rows) for split, rows in examples.items()}, metrics, described


def evaluate_splits(
    trainer: XLMSWCMTrainer, datasets: dict[str, Dataset], metrics: dict[str, GenerationMetrics]
) -> Scores:
    """Evaluate on the validation and test splits. Return the scores of the last one."""
    results = {}
    if "validation" in datasets:
        loss = trainer.evaluate()["eval_loss"]
        results = save_scores(metrics["validation"], trainer, "eval", loss)
    if "test" in datasets:
        trainer.compute_metrics = metrics["test"]
        loss = trainer.predict(datasets["test"]).metrics["test_loss"]
        results = save_scores(metrics["test"], trainer, "predict", loss)
        if trainer.is_world_process_zero():
            lines = "".join(" ".join(text.splitlines()) + "\n" for text in metrics["test"].written)
            write_whole(Path(trainer.args.output_dir) / "generated_predictions.txt", lines)
    return results


def name_dataset(args: FinetuneDataArguments, split: str) -> str:
    """Return the name of the data of a split for the model card."""
    return args.dataset_name or Path(getattr(args, f"{split}_file")).name


def describe_data(args: FinetuneDataArguments, train: list[Pair], examples: int) -> dict:
    """Return facts about the training data for the model card."""
    return {
        "training data": args.dataset_name or Path(args.train_file).name,
        "languages": ", ".join(dict.fromkeys(group_of(pair, args.task) for pair in train)),
        "examples": examples,
        "max_source_length": args.max_source_length,
        "max_target_length": args.max_target_length,
        "num_beams": args.num_beams,
    }


def save_scores(metrics: GenerationMetrics, trainer: XLMSWCMTrainer, name: str, loss: float) -> Scores:
    """
    Write the loss, and all scores if texts were generated, to `<name>_results.json`, and print the main scores.

    Returns:
        `dict[str, dict[str, float]]`: the score of each language for each metric, for the model card.
    """
    scores = metrics.scores or {"all": {}}
    names = metrics.names if metrics.scores else ["loss"]
    scores["all"]["loss"] = round(loss, 4)
    results = {name: {group: round(of[name], 2) for group, of in scores.items()} for name in names}
    if trainer.is_world_process_zero():
        path = Path(trainer.args.output_dir) / f"{name}_results.json"
        write_json(path, scores)
        print_scores(str(path), results, metrics.signatures)
        if cut := scores["all"].get(CUT):
            logger.warning(
                f"{cut} of {len(metrics.written)} outputs are incomplete: they reached --max_target_length. Pass a "
                "larger value."
            )
    return results


def check_push(model_args: ModelArguments, args: TrainingArguments):
    """
    Check before the training that the push after it can succeed.

    Raises:
        DataError: if an option of the push is missing or unsafe.
        ConversionError: if the repository, the token or the licence is not valid.
    """
    if args.hub_model_id is None:
        raise DataError("--push_to_hub needs --hub_model_id (example: owner/name).")
    if not model_args.lora_merge:
        raise DataError(
            "--push_to_hub pushes a whole model. Remove --lora_merge false, or upload the adapters with `hf upload`."
        )
    check_repo_id(args.hub_model_id)
    if args.hub_token is not None:
        raise DataError(FinetuneDataArguments.unsupported["hub_token"])
    check_token()
    report = find_file(model_args.model_name_or_path, "conversion_report.json")
    known = read_json(report) if report else {}
    encoder = known.get("source", model_args.model_name_or_path)
    require_license(model_args.license or known.get("license"), encoder)


def check_steps(args: TrainingArguments):
    """
    Check that there are training steps.

    Raises:
        DataError: if the options ask for no step.
    """
    if args.max_steps <= 0 and args.num_train_epochs == 0:
        raise DataError("There are no training steps. Pass --max_steps or --num_train_epochs.")


def check_evaluation(args: TrainingArguments):
    """
    Refuse options that fine-tuning sets itself, and options that hide generated texts from the metrics.

    Raises:
        DataError: if such an option is set.
    """
    for name in ("generation_num_beams", "generation_max_length"):
        if getattr(args, name) is not None:
            raise DataError(FinetuneDataArguments.unsupported[name])
    # The scores need the generated texts of a whole split.
    in_parts = {
        "--batch_eval_metrics": args.batch_eval_metrics,
        "--prediction_loss_only": args.prediction_loss_only,
        "--eval_do_concat_batches false": not args.eval_do_concat_batches,
    }
    for option, is_set in in_parts.items():
        if args.predict_with_generate and is_set:
            raise DataError(f"{option} does not work with --predict_with_generate. Remove it.")


def print_scores(title: str, results: Scores, signatures: dict[str, str]):
    """Print a table of scores, a row for each language, and the signatures of sacrebleu."""
    table = Table("", *results, title=title)
    for group in next(iter(results.values())):
        table.add_row(group, *(f"{scores[group]:.2f}" for scores in results.values()))
    console = Console(markup=False, emoji=False)
    console.print(table)
    for name, signature in signatures.items():
        console.print(f"{name}: {signature}", soft_wrap=True, highlight=False)
