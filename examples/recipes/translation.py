"""Translate between Chinese and Tibetan, Uyghur, Kazakh and Mongolian, with 1,288 sentences of news.

    python examples/recipes/translation.py --data DATA --encoder ENCODER --output_dir OUTPUT

DATA has `ntrex.tsv` (NTREX-128, with the columns split, bo, ug, kk, mn and zh) and plain text in `mono/` (example:
`mono/bo.news.txt`). The model is pretrained on the text and the training pairs, fine-tuned on the pairs in all eight
directions, and scored on the test split. All options of `finetune.py` work too. NTREX-128 is published as a test set,
so do not compare these scores with scores on all of NTREX-128.
"""

from steps import RecipeArguments, make_model, parse_recipe, read_ntrex, run_script


LANGUAGES = ["zh", "bo", "ug", "kk", "mn"]


def split_ntrex(args: RecipeArguments) -> dict[str, str]:
    """Write each split to a file, and return the files by split."""
    files = {}
    for split in ("train", "dev", "test"):
        files[split] = str(args.output_dir / f"ntrex.{split}.tsv")
        lines = [LANGUAGES, *([row[code] for code in LANGUAGES] for row in read_ntrex(args.data, split))]
        with open(files[split], "w", encoding="utf-8") as file:
            file.writelines("\t".join(line) + "\n" for line in lines)
    return files


def main():
    args, rest = parse_recipe(__doc__, ["ntrex.tsv"])
    files = split_ntrex(args)
    source, *targets = LANGUAGES
    model = make_model(
        args,
        LANGUAGES,
        parallel=[{"path": files["train"], "languages": [source, code]} for code in targets],
        validation=[{"path": files["dev"], "languages": [source, code]} for code in targets],
    )
    run_script(
        "finetune.py",
        *("--task", "translation", "--source_lang", source, "--target_lang", *targets, "--both_directions"),
        *("--train_file", files["train"], "--validation_file", files["dev"], "--test_file", files["test"]),
        *("--model_name_or_path", model, "--output_dir", args.output_dir / "translation"),
        # With truncation every test sentence is scored.
        *("--skip_bad_rows", "--truncate_sources"),
        *("--max_source_length", args.max_length, "--max_target_length", args.max_length),
        *("--do_train", "--do_predict", "--predict_with_generate", "--max_steps", args.steps),
        *("--per_device_train_batch_size", "32", "--per_device_eval_batch_size", "32"),
        *("--learning_rate", args.learning_rate),
        *("--logging_steps", "20", "--save_strategy", "no", *args.shared_options(), *rest),
    )


if __name__ == "__main__":
    main()
