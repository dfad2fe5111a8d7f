"""Chinese <-> Tibetan, Uyghur, Kazakh and Mongolian, learnt from 1,288 sentences of news.

    python examples/recipes/translation.py --data DATA --encoder ENCODER --output_dir OUTPUT

DATA has `ntrex.tsv` (NTREX-128, with the columns split, bo, ug, kk, mn and zh) and plain text in `mono/`, such as
`mono/bo.*.txt`. The model is pretrained on the text and the training pairs, fine-tuned on the pairs in all eight
directions, and scored on the test split. NTREX is published as a test set: figures from here compare with no others.
"""

from steps import RecipeArguments, make_model, parse, read_ntrex, run


LANGUAGES = ["zh", "bo", "ug", "kk", "mn"]


def split_ntrex(args: RecipeArguments) -> dict[str, str]:
    """Write each split to a file of its own, and say where."""
    files = {}
    for split in ("train", "dev", "test"):
        files[split] = str(args.output_dir / f"ntrex.{split}.tsv")
        lines = [LANGUAGES, *([row[code] for code in LANGUAGES] for row in read_ntrex(args.data, split))]
        with open(files[split], "w", encoding="utf-8") as file:
            file.writelines("\t".join(line) + "\n" for line in lines)
    return files


def main():
    args, rest = parse(__doc__, ["ntrex.tsv"])
    files = split_ntrex(args)
    source, *targets = LANGUAGES
    model = make_model(
        args,
        LANGUAGES,
        parallel=[{"path": files["train"], "languages": [source, code]} for code in targets],
        validation=[{"path": files["dev"], "languages": [source, code]} for code in targets],
    )
    run(
        "finetune.py",
        *("--task", "translation", "--source_lang", source, "--target_lang", *targets, "--both_directions"),
        *("--train_file", files["train"], "--validation_file", files["dev"], "--test_file", files["test"]),
        *("--model_name_or_path", model, "--output_dir", args.output_dir / "translation"),
        *("--skip_bad_rows", "--truncate_sources"),  # so that no test sentence goes without a score
        *("--max_source_length", args.max_length, "--max_target_length", args.max_length),
        *("--do_train", "--do_predict", "--predict_with_generate", "--max_steps", args.steps),
        *("--per_device_train_batch_size", "32", "--per_device_eval_batch_size", "32"),
        *("--learning_rate", args.learning_rate, "--warmup_steps", "0.1"),
        *("--logging_steps", "20", "--save_strategy", "no", *args.for_every_script(), *rest),
    )


if __name__ == "__main__":
    main()
