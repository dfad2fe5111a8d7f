"""benchmarks/ablation: a whole plan from the first run to the report."""

import argparse
import json
import re
import shutil
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import comparison
import learning
import numpy as np
import pytest
import run
import torch
import yaml
from decoders import VARIANTS, build
from plan import Plan
from support.encoders import SENTENCES
from tasks import TARGETS, TASKS
from transformers import TrainerCallback

from modeling_xlm_swcm.training.rows import DataError


TEXT = {"bo": SENTENCES[2], "ug": SENTENCES[5], "kk": "жел жоқ еді", "mn": "өнөр олон", "zh": SENTENCES[8]}
PLAN = {
    "stages": {"only": "."},
    "steps": 6,
    "batch_size": 4,
    "max_length": 38,
    "eval_steps": 3,
    "learning_rates": [1.0e-3, 1.0e30],
    "seeds": [0, 1],
    "experiments": [
        {"variants": ["x3", "random", "warm-start"], "stages": ["only"], "tasks": ["translation"]}
        | {"pairs": [6], "settings": ["direct"]}
    ],
}
ONE = [PLAN["experiments"][0] | {"variants": ["x3"]}]
PRETRAINING = {"pretraining": {"max_steps": 2, "max_length": 38, "per_device_train_batch_size": 4}}
PRETRAINED = PRETRAINING | {
    "learning_rates": [1.0e-3],
    "seeds": [0],
    "experiments": [ONE[0] | {"settings": ["pretrained"]}],
}


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    (folder / "mono").mkdir(parents=True)
    for code, text in TEXT.items():
        (folder / "mono" / f"{code}.own.txt").write_text(f"{text}\n" * 4, encoding="utf-8")
    splits = ["train"] * 8 + ["dev"] * 2 + ["test"] * 4
    rows = [[split, *(text[number % 3 :] for text in TEXT.values())] for number, split in enumerate(splits)]
    lines = ["\t".join(row) + "\n" for row in [["split", *TEXT], *rows]]
    (folder / "ntrex.tsv").write_text("".join(lines), encoding="utf-8")
    # Every third row has no Mongolian.
    lines = [f"{row[0]}\t{row[5]}\t{row[3]}\t{row[2]}\t{row[4] if n % 3 else ''}\n" for n, row in enumerate(rows)]
    (folder / "software.tsv").write_text("split\tzh\tkk\tug\tmn\n" + "".join(lines), encoding="utf-8")
    (folder / "titles").mkdir()
    for name, code in (("zh.csl", "zh"), ("zh.cmrc", "zh"), ("kk.kazqad", "kk")):
        titles = [
            {"lang": code, "split": split, "text": 9 * TEXT[code], "title": TEXT[code][number % 3 :]}
            for number, split in enumerate(splits)
        ]
        lines = [json.dumps(title, ensure_ascii=False) + "\n" for title in titles]
        (folder / "titles" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def command(data, encoder_folder, tmp_path, monkeypatch):
    """Return a function that runs a plan and returns its folder. `trained` has the batches of each run."""
    trained = {}
    step = learning.AblationTrainer.training_step

    def training_step(trainer, model, inputs, *args):
        trained.setdefault(trainer, []).append(inputs["labels"].tolist())
        return step(trainer, model, inputs, *args)

    monkeypatch.setattr(learning.AblationTrainer, "training_step", training_step)

    def call(**changes) -> Path:
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN | changes))
        words = ["run.py", tmp_path / "plan.yaml", "--data", data, "--encoder", encoder_folder]
        monkeypatch.setattr(sys, "argv", [*map(str, words), "--output_dir", str(tmp_path / "out")])
        trained.clear()
        run.main()
        return tmp_path / "out"

    call.trained = trained
    return call


def results(output: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (output / "runs").iterdir()}


def test_a_plan_from_first_run_to_report(command, data):
    output = command()
    runs = results(output)
    variants = ("x3", "random", "warm-start")
    names = {
        f"{name}_only_translation_6_direct_{run}" for name in variants for run in ("0.001_0", "1e+30_0", "0.001_1")
    }
    assert runs.keys() == names
    for name, ended in runs.items():
        if "1e+30" in name:
            assert ended["status"] == "failed" and "is nan at step" in ended["reason"]
        else:
            assert [point["step"] for point in ended["curve"]] == [0, 3, 6]
            assert ended["curve"][-1]["loss"] > 0 and ended["scores"].keys() == {"all", "bo", "ug", "kk", "mn"}
            assert len(ended["outputs"]) == 4 * 4

    content = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert {row["variant"]: row["learning_rate"] for row in content["summary"]} == dict.fromkeys(variants, 1e-3)
    assert {kept["name"] for kept in content["runs"]} == names
    row = next(row for row in content["summary"] if row["variant"] == "x3")
    losses = [runs[f"x3_only_translation_6_direct_0.001_{seed}"]["curve"][-1]["dev_loss"] for seed in (0, 1)]
    assert row["seeds"] == [0, 1] and row["dev_loss"]["mean"] == pytest.approx(sum(losses) / 2)
    table = (output / "results.md").read_text(encoding="utf-8")
    assert all(re.search(rf"\| {VARIANTS[name].title} .* \| 0.001 \* \| 2 \|", table) for name in variants)
    assert "- random_only_translation_6_direct_1e+30_0: The loss is nan" in table
    assert (output / "results.png").read_bytes().startswith(b"\x89PNG")

    # Every decoder gets the same batches, and each seed other batches.
    batches = {seed: [b for t, b in command.trained.items() if t.args.seed == seed and len(b) == 6] for seed in (0, 1)}
    assert len(batches[0]) == len(batches[1]) == 3
    assert all(other == own[0] for own in batches.values() for other in own) and batches[0][0] != batches[1][0]

    # Only the run that was stopped runs again.
    broken = output / "runs" / "random_only_translation_6_direct_0.001_1.json"
    broken.write_text(json.dumps({"settings": runs[broken.stem]["settings"], "status": "started"}))
    command()
    assert len(command.trained) == 1
    again = results(output)
    assert again[broken.stem]["curve"] == runs[broken.stem]["curve"]
    assert all(again[name] == runs[name] for name in names - {broken.stem})

    references = json.loads((output / "test" / "translation.json").read_text(encoding="utf-8"))
    assert len(references) == 4 * 4
    with pytest.raises(SystemExit, match="belongs to another plan"):
        command(steps=3, test_lines=2)
    with pytest.raises(SystemExit, match="is not a plan .*'sizes'"):
        command(sizes=3)
    with pytest.raises(SystemExit, match="is not a plan .*'stages'"):
        command(experiments=[{"variants": ["x3"]}])
    assert json.loads((output / "test" / "translation.json").read_text(encoding="utf-8")) == references
    broken.write_text(json.dumps(runs[broken.stem] | {"settings": runs[broken.stem]["settings"] | {"steps": 3}}))
    with pytest.raises(DataError, match=r"has runs of several plans: steps, .* are \[3, 4, .*\] and \[6, 4, "):
        comparison.write_report(output)
    text = (data / "ntrex.tsv").read_text(encoding="utf-8")
    (data / "ntrex.tsv").write_text(text.replace("train", "dev", 1), encoding="utf-8")
    with pytest.raises(SystemExit, match="belongs to another plan, encoder or data"):
        command()


def test_after_pretraining(command):
    output = command(**PRETRAINED)
    assert results(output)["x3_only_translation_6_pretrained_0.001_0"]["status"] == "done"
    folder = output / "pretrained" / "x3_only_translation_6_0"
    corpora = json.loads((folder / "corpora.json").read_text())["train"]
    assert [corpus.get("language") or corpus["languages"][1] for corpus in corpora] == ["zh", *TARGETS, *TARGETS]
    assert (folder / "bo.tsv").read_text(encoding="utf-8").count("\n") == 1 + 6
    diverging = PRETRAINED["pretraining"] | {"learning_rate": 1.0e30, "max_steps": 6}
    with pytest.raises(SystemExit, match="belongs to another plan"):
        command(**PRETRAINED | {"pretraining": diverging})
    shutil.rmtree(output)
    command(**PRETRAINED | {"pretraining": diverging})
    (ended,) = results(output).values()
    assert "The pretraining failed: The loss is nan" in ended["reason"]
    with pytest.raises(SystemExit, match="cannot be pretrained"):
        command(**PRETRAINED | {"experiments": [PRETRAINED["experiments"][0] | {"variants": ["warm-start"]}]})
    with pytest.raises(SystemExit, match="but no options under pretraining"):
        command(**PRETRAINED | {"pretraining": {}})


def test_kazakh_titles_with_the_help_of_chinese_ones(command, data):
    train = TASKS["titles"].read_train(data, 3)
    assert [pair.src_lang for pair in train] == ["zh"] * 16 + ["kk"] * 3
    titles = ONE[0] | {"tasks": ["titles"], "pairs": [3]}
    plan = PLAN | {"learning_rates": [1e-3], "seeds": [0]}
    output = command(**plan | {"experiments": [*ONE, titles, titles | {"settings": ["pretrained"]}]} | PRETRAINING)
    runs = results(output)
    assert runs.keys() == {
        f"x3_only_{run}_0.001_0" for run in ("translation_6_direct", "titles_3_direct", "titles_3_pretrained")
    }
    for name in ("titles_3_direct", "titles_3_pretrained"):
        ended = runs[f"x3_only_{name}_0.001_0"]
        assert ended["status"] == "done" and ended["scores"].keys() == {"all", "kk"} and len(ended["outputs"]) == 4
        # Long sources are truncated.
        assert ended["left_out"] == {"train": 0, "dev": 0}
    corpora = json.loads((output / "pretrained" / "x3_only_titles_3_0" / "corpora.json").read_text())["train"]
    assert [corpus["language"] for corpus in corpora] == ["zh", "kk"]
    table = (output / "results.md").read_text(encoding="utf-8")
    assert (
        "Encoder only, 6 pairs a language, direct" in table
        and "Encoder only, titles, 3 of them Kazakh, direct" in table
    )
    with pytest.raises(SystemExit, match="kk.kazqad.jsonl has 8 training lines, but the plan needs 9."):
        command(**plan | {"experiments": [titles | {"pairs": [9]}]})
    with pytest.raises(SystemExit, match="kk.kazqad.jsonl has 4 lines of the split, but the plan needs 5."):
        command(**plan | {"experiments": [titles | {"pairs": [2]}], "test_lines": 5})


def test_a_parallel_file_with_empty_cells(command, data):
    parallel = PLAN["experiments"][0] | {"tasks": ["parallel"], "pairs": [5], "variants": ["prefix-tied", "default"]}
    plan = {"learning_rates": [1e-3], "seeds": [0]}
    runs = results(command(**plan, experiments=[parallel]))
    assert runs.keys() == {f"{name}_only_parallel_5_direct_0.001_0" for name in ("prefix-tied", "default")}
    for ended in runs.values():
        # Three of the four test rows are complete.
        assert ended["scores"].keys() == {"all", "kk", "ug", "mn"} and len(ended["outputs"]) == 3 * 3
        assert ended["curve"][-1]["dev_loss"] < ended["curve"][0]["dev_loss"]
    assert all(pair.source and pair.target for pair in TASKS["parallel"].read_train(data, 5))
    with pytest.raises(SystemExit, match="software.tsv has 5 training lines, but the plan needs 6."):
        command(**plan, experiments=[parallel | {"pairs": [6]}])
    text = (data / "software.tsv").read_text(encoding="utf-8")
    for column in ("split", "ug"):
        (data / "software.tsv").write_text(text.replace(f"{column}\t", "other\t", 1), encoding="utf-8")
        with pytest.raises(SystemExit, match=f'software.tsv has no column "{column}" .*, or change --data.'):
            command(**plan, experiments=[parallel | {"pairs": [4]}])


def test_a_plan_may_have_another_beta2_and_warmup(command):
    command(learning_rates=[1e-3], seeds=[0], experiments=ONE, adam_beta2=0.98, warmup_steps=3)
    assert {trainer.args.warmup_steps for trainer in command.trained} == {3}
    assert {group["betas"] for trainer in command.trained for group in trainer.optimizer.param_groups} == {(0.9, 0.98)}


@pytest.mark.parametrize("variant", ["x3", "warm-start"])
def test_a_plan_may_have_a_dropout_that_is_not_the_encoders(encoder_folder, tmp_path, variant):
    settings = {"variant": variant, "encoder": ".", "task": "titles", "seed": 0}
    args = argparse.Namespace(encoder=encoder_folder)
    for dropout in (None, 0.25):
        model = run.load_start(settings | {"dropout": dropout}, args).model
        parts = [model.config] if variant == "x3" else [model.config.encoder, model.config.decoder]
        expected = json.loads((encoder_folder / "config.json").read_text()).get("hidden_dropout_prob", 0.1)
        for config in parts:
            found = {config.hidden_dropout_prob, config.attention_probs_dropout_prob}
            assert found == {expected if dropout is None else dropout}


@pytest.mark.parametrize("variant", ["x3", "prefix-tied", "prefix-masked"])
def test_the_loss_is_that_of_each_character_of_the_references(command, encoder_folder, data, variant):
    plan = PLAN | {"learning_rates": [1e-3], "seeds": [0], "experiments": [ONE[0] | {"variants": [variant]}]}
    # The last mask query needs a position more.
    output = command(**plan | {"max_length": PLAN["max_length"] - 1})
    curve = results(output)[f"{variant}_only_translation_6_direct_0.001_0"]["curve"]
    start = build(variant, str(encoder_folder), ["zh", *TARGETS], 0)
    nats, pairs = 0.0, TASKS["translation"].read_held_out(data, "dev", None)
    for pair in pairs:
        start.tokenizer.src_lang, start.tokenizer.tgt_lang = pair.src_lang, pair.tgt_lang
        encoded = start.tokenizer(pair.source, text_target=pair.target, return_tensors="pt")
        inputs = torch.cat([torch.tensor([[0]]), encoded["labels"][:, :-1]], dim=1)
        with torch.no_grad():
            logits = start.model(encoded["input_ids"], decoder_input_ids=inputs).logits
        nats += torch.nn.functional.cross_entropy(logits[0, 1:], encoded["labels"][0, 1:], reduction="sum").item()
    assert curve[0]["dev_loss"] == pytest.approx(nats / sum(len(pair.target) for pair in pairs), rel=0.02)


class TestCopies:
    @pytest.fixture
    def make_trainer(self, encoder_folder, data, tmp_path):
        def make(name) -> learning.AblationTrainer:
            begun = build(name, str(encoder_folder), ["zh", *TARGETS], seed=3)
            examples, characters = learning.encode_short_pairs(
                TASKS["translation"].read_train(data, 5), begun.tokenizer, 38, truncate_sources=False
            )
            settings = {"learning_rate": 1e-2, "steps": 10, "batch_size": 2, "max_length": 38, "eval_steps": 10}
            settings |= {"variant": name, "seed": 0, "adam_beta2": 0.98, "warmup_steps": 0.1}
            trainer = learning.make_trainer(begun, settings, examples, [], tmp_path)
            trainer.characters = characters
            return trainer

        return make

    def weights(self, trainer) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a copied weight and a new weight."""
        layers = trainer.model.model.decoder.layers
        return layers[0].cross_attn.q_proj.weight, layers[3].ffn.fc1.weight

    def test_slowly(self, make_trainer):
        trainer = make_trainer("slow-copies")
        rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
        assert [rates[id(weight)] for weight in self.weights(trainer)] == [3e-3, 1e-2]
        assert len(rates) == len(list(trainer.model.parameters()))

    def test_late(self, make_trainer):
        trainer = make_trainer("late-copies")
        before = []
        note = lambda: before.append([weight.clone() for weight in self.weights(trainer)])  # noqa: E731
        trainer.add_callback(type("Note", (TrainerCallback,), {"on_step_begin": lambda *args, **kwargs: note()})())
        trainer.train()
        # The learning rate of the first warm-up step is 0.
        changed = [[not torch.equal(*pair) for pair in zip(*steps, strict=True)] for steps in pairwise(before)]
        assert changed[:3] == [[False, False], [False, True], [True, True]]


def test_steps_and_intervals_of_the_report():
    points = [{"step": step, "dev_loss": loss} for step, loss in ((0, 5.0), (10, 3.0), (20, 2.0), (30, 2.5))]
    assert [comparison.steps_to({"curve": points}, loss) for loss in (3.0, 2.2, 1.0)] == [10, 20, None]
    references = ["мен бардым", "сен келдің ғой", "жел жоқ еді"] * 4
    good = {"outputs": references, "scores": {"all": {"chrf++": 100.0}}, "curve": points[:3]}
    bad = {"outputs": ["жел"] * 12, "scores": {"all": {"chrf++": 20.0}}, "curve": points}
    for system in (good, bad):
        system["resampled"] = comparison.resample(system, references, together=4)
    assert good["resampled"].min() > 99.9 and bad["resampled"].std() > 0
    # Outputs that follow their sources lose their score with shifted references. A constant output keeps it.
    lines = ["мен бардым", "сен келдің ғой", "жел жоқ еді"]
    assert comparison.score_misplaced({"outputs": lines}, lines, together=1) < 50
    assert comparison.score_misplaced({"outputs": lines[1:] + lines[:1]}, lines, together=1) == pytest.approx(100.0)
    own = comparison.CHRFPP.corpus_score(bad["outputs"], [references]).score
    assert comparison.score_misplaced(bad, references, together=1) == pytest.approx(own)
    compared = comparison.compare({0: bad, 1: bad}, {0: good, 1: good, 2: good})
    assert compared["chrf++"] == -80.0 and compared["interval"][0] < compared["interval"][1] < -50
    assert compared["dev_loss"] == [-0.5, -0.5]
    # Seeds that differ widen the interval. Their variance is n / (n - 1) of the variance of the samples.
    one, other = ({"resampled": np.full(comparison.RESAMPLES, score)} for score in (50.0, 60.0))
    low, high = comparison.compare({0: good | one, 1: good | other}, {0: good | one, 1: good | one})["interval"]
    assert (low, high) == pytest.approx((5 - 5 * 2**0.5, 5 + 5 * 2**0.5))
    assert comparison.compare({0: good}, {0: good})["interval"] == [0.0, 0.0]
    assert comparison.compare({0: good}, {1: good}) is None


def test_interface_strings_of_each_language_and_fewer_seeds(command, data):
    counts = lambda task, pairs: Counter(pair.tgt_lang for pair in TASKS[task].read_train(data, pairs))  # noqa: E731
    # Mongolian has 5 of 8 rows.
    assert counts("software", "all") == {"kk": 8, "ug": 8, "mn": 5}
    assert counts("software", 6) == {"kk": 6, "ug": 6, "mn": 5}
    assert counts("software-transfer", 2) == {"kk": 8, "ug": 2, "mn": 2}
    assert [pair.tgt_lang for pair in TASKS["software-transfer"].read_held_out(data, "test", None)] == 3 * [
        "mn"
    ] + 4 * ["ug"]
    software = ONE[0] | {
        "variants": ["random-transform", "mbart"],
        "tasks": ["software"],
        "pairs": ["all"],
        "seeds": [0],
    }
    output = command(learning_rates=[1e-3], experiments=[software, software | {"pairs": [2], "seeds": [0, 1]}])
    runs = results(output)
    assert {name.partition("_only_")[2] for name in runs} == {
        "software_all_direct_0.001_0",
        "software_2_direct_0.001_0",
        "software_2_direct_0.001_1",
    }
    assert all(ended["scores"]["all"].keys() == set(comparison.SCORES) for ended in runs.values())
    rows = json.loads((output / "results.json").read_text())["summary"]
    # Without the decoder without transform, the one with transform is the baseline.
    assert {row["variant"]: row["than_random"] is None for row in rows} == {"random-transform": True, "mbart": False}
    with pytest.raises(SystemExit, match="an entry has seeds without 0"):
        command(experiments=[software | {"seeds": [1]}])


def test_every_decoder_has_a_line_of_its_own():
    styles = comparison.styles()
    assert styles.keys() == VARIANTS.keys()
    assert len({tuple(style.values()) for style in styles.values()}) == len(styles)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("cpu", [7, 7, 4, 6, 2, 8, 4, 3]), ("cpu_long", [4, 2]), ("cpu_dropout", [5, 2]), ("cpu_second", [6, 6, 2])]
    + [("prefix", [4, 3, 1]), ("real_cpu", [1, 1, 6, 7, 4, 2, 2]), ("real_long", [1, 3, 1, 1, 2, 5, 2, 6, 2])]
    + [
        ("real_gpu", [2, 2, 2, 3, 2, 4, 2, 6]),
        ("gpu", [132, 54, 21, 18]),
        ("real_beta2", [2, 2]),
        ("real_warmup", [2, 2, 3, 5, 4, 2, 1]),
        ("real_rates", [1, 1, 1, 1, 1]),
    ],
)
def test_the_plans_can_be_read(name, sizes):
    plan = Plan.load(Path(run.__file__).with_name(f"{name}.yaml"))
    assert len(plan.seeds) == 3 and list(map(len, plan.experiment_lists())) == sizes


def test_entries_of_a_plan():
    plan = Plan.load(Path(run.__file__).with_name("real_gpu.yaml"))
    plan.keep_entries([3, 1])
    assert [entry["seeds"] for entry in plan.experiments] == [[0, 1, 2], [0]]
    with pytest.raises(DataError, match=r"--entries must be between 1 and 2 \(got 3\)"):
        plan.keep_entries([1, 3])
