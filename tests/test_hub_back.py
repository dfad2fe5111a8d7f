"""Back from the Hub: with the plugin, with Transformers alone, pinned, offline, and looked at without the weights."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_refused
from encoders import edit_tensors
from hub_client import SENT
from huggingface_hub import ModelCard
from loopback_hub import READ
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer


REPO = "someone/model"
TEXTS = ["The river", "A quiet morning", "no wind"]
# greedy and short: the texts of random weights, but not the same for every input
OPTIONS = dict(src_lang="zh", tgt_lang="bo", max_new_tokens=6, no_repeat_ngram_size=1)

LOAD = f"""
import json, torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

def load_and_write(repo, texts, result, trust, **kwargs):
    model = AutoModelForSeq2SeqLM.from_pretrained(repo, **trust, **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(repo, src_lang="zh", **trust, **kwargs)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=torch.tensor([[0, 5, 6, 7]] * len(texts))).logits
    write = pipeline("translation", model=repo, trust_remote_code=True, **kwargs)
    written = write(texts, **{OPTIONS}, batch_size=2)
    torch.save((logits, written, type(model).__module__), result)
"""

# the package cannot be imported
ALONE = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_xlm_swcm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def repository(hub, client, converted):
    outcome = client.command("push", converted, REPO)
    assert outcome.exit_code == 0, outcome.output
    hub.requests.clear()
    return hub.repositories[REPO]


def expected(folder: Path) -> tuple[torch.Tensor, list[dict[str, str]]]:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.src_lang = "zh"
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=torch.tensor([[0, 5, 6, 7]] * 3)).logits
    written = [
        model.generate(
            **tokenizer(text, return_tensors="pt"),
            forced_bos_token_id=tokenizer.get_lang_id("bo"),
            max_new_tokens=6,
            no_repeat_ngram_size=1,
        )
        for text in TEXTS
    ]
    return logits, [{"translation_text": tokenizer.decode(ids[0], skip_special_tokens=True)} for ids in written]


def test_the_plugin_loads_what_was_pushed_also_pinned(hub, client, repository, converted, folder, tmp_path):
    first = repository.refs["main"].oid
    edit_tensors(folder, lambda tensors: {name: 1.1 * tensor for name, tensor in tensors.items()})
    assert client.command("push", folder, REPO).exit_code == 0
    for revision, source in ((first, converted), ("main", folder)):
        code = f"""{LOAD}
import modeling_xlm_swcm
load_and_write({REPO!r}, {TEXTS!r}, {str(tmp_path / "result.pt")!r}, {{}}, revision={revision!r})
"""
        assert client.run(code)["error"] is None
        logits, written, module = torch.load(tmp_path / "result.pt")
        assert module == "modeling_xlm_swcm.modeling_xlm_swcm"
        assert torch.allclose(logits, expected(source)[0], atol=1e-5)
        assert written == expected(source)[1]


def test_transformers_alone_loads_what_was_pushed_and_again_without_network(hub, repository, converted, tmp_path):
    arguments = f"({REPO!r}, {TEXTS!r}, {str(tmp_path / 'result.pt')!r}, dict(trust_remote_code=True))"
    for offline in ("0", "1"):
        hub.requests.clear()
        environment = hub.environment | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": offline}
        environment |= {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        code = f"{ALONE}{LOAD}\nload_and_write{arguments}"
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        logits, written, module = torch.load(tmp_path / "result.pt")
        assert module.startswith("transformers_modules.someone.model.")
        assert torch.allclose(logits, expected(converted)[0], atol=1e-5)
        assert written == expected(converted)[1]
        assert bool(hub.requests) == (offline == "0")


def test_a_model_and_a_tokenizer_push_themselves_and_keep_the_card_and_the_report(hub, client, repository, folder):
    card, report = (repository.files[name] for name in ("README.md", "conversion_report.json"))
    edit_tensors(folder, lambda tensors: {name: 1.1 * tensor for name, tensor in tensors.items()})
    code = f"""
import modeling_xlm_swcm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

for auto in (AutoModelForSeq2SeqLM, AutoTokenizer):
    for repo in ({REPO!r}, "someone/new"):
        auto.from_pretrained({str(folder)!r}).push_to_hub(repo)
"""
    assert client.run(code)["error"] is None
    for repo, more in ((REPO, {"conversion_report.json"}), ("someone/new", set())):
        files = hub.repositories[repo].files
        assert files.keys() == (SENT - {"conversion_report.json"}) | more
        assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        assert "translation" in json.loads(files["config.json"])["custom_pipelines"]
        assert "xlm-swcm" in ModelCard(files["README.md"].decode()).data.tags
    assert repository.files["conversion_report.json"] == report
    assert ModelCard(repository.files["README.md"].decode()).data == ModelCard(card.decode()).data


TRAIN = """
import modeling_xlm_swcm
from datasets import Dataset
from transformers import (
    AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments
)

model = AutoModelForSeq2SeqLM.from_pretrained(start)
tokenizer = AutoTokenizer.from_pretrained(start, src_lang="zh", tgt_lang="bo")
trainer = Seq2SeqTrainer(
    model,
    Seq2SeqTrainingArguments(
        output_dir, max_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        push_to_hub=True, hub_model_id="someone/trained",
    ),
    train_dataset=Dataset.from_dict(dict(tokenizer(texts, text_target=texts))),
    data_collator=DataCollatorForSeq2Seq(tokenizer, model),
    processing_class=tokenizer,
)
trainer.train()
trainer.push_to_hub()
"""


def test_a_trainer_pushes_a_whole_model_and_a_push_of_its_folder_completes_it(hub, client, repository, tmp_path):
    trained = tmp_path / "trained"
    names = f"start, output_dir, texts = {REPO!r}, {str(trained)!r}, {TEXTS!r}"
    assert client.run(names + TRAIN)["error"] is None
    by_trainer = hub.repositories["someone/trained"].files
    assert by_trainer.keys() == (SENT - {"conversion_report.json"}) | {"training_args.bin"}
    assert by_trainer["model.safetensors"] != repository.files["model.safetensors"]
    assert_refused(client.command("push", trained, "someone/trained"), "conversion_report.json")
    (trained / "conversion_report.json").write_bytes(repository.files["conversion_report.json"])
    assert client.command("push", trained, "someone/trained").exit_code == 0
    files = hub.repositories["someone/trained"].files
    assert files["model.safetensors"] == by_trainer["model.safetensors"]
    assert 'repo = "someone/trained"' in files["README.md"].decode()


# inspect


def test_inspect_shows_what_a_model_is_without_its_weights(hub, client, repository, converted):
    outcome = client.command("inspect", REPO)
    assert outcome.exit_code == 0, outcome.output
    for words in (
        "XLMSWCMForConditionalGeneration",
        "zh, kk-Arab, bo",
        "98,904 as F32",
        "27,156 in encoder layers",
        "198 tensors copied, 28 new",
        "395.6 kB in model.safetensors",
        "encoder  ■ ■ ■   ■  4 layers\ndecoder  ■ ■ ■ □ ■  4 custom, 1 normal\n",
    ):
        assert words in outcome.stdout
    here = client.command("inspect", converted)
    assert here.stdout.split() == outcome.stdout.replace(f"{REPO} (", f"{converted} (", 1).split()
    spans = [
        headers.get("Range") for method, path, headers in hub.requests if path.startswith("/lfs/") and method == "GET"
    ]
    assert spans and all(re.fullmatch(r"bytes=\d+-\d+", span) for span in spans)


def test_inspect_reads_shards_and_a_revision(hub, client, folder):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    assert client.command("push", folder, REPO, "--revision", "trial").exit_code == 0
    outcome = client.command("inspect", REPO, "--revision", "trial")
    assert "98,904 as F32" in outcome.stdout
    assert "model-00001-of-" in outcome.stdout
    assert_refused(client.command("inspect", REPO), "config.json")
    assert_refused(client.command("inspect", REPO, "--revision", "nowhere"), REPO, "nowhere")


def test_what_may_not_be_read_is_said_in_one_sentence(hub, client, converted):
    hub.add("someone/gated", converted, gated=True)
    hub.add("someone/private", converted, private=True)
    (converted.parent / "empty").mkdir(exist_ok=True)
    hub.add("someone/empty", converted.parent / "empty")
    assert_refused(client.command("inspect", "someone/gated", token=READ), "someone/gated", "gated")
    assert_refused(client.command("inspect", "someone/private", token=READ), "someone/private", "not a valid model")
    assert_refused(client.command("inspect", "someone/nothing", token=None), "someone/nothing")
    assert_refused(client.command("inspect", "someone/empty"), "someone/empty", "config.json")
    assert_refused(client.command("inspect", "a//b"), "a//b")
    assert_refused(client.command("inspect", converted.parent), "config.json")
    for repo in ("someone/gated", "someone/private"):
        assert client.command("inspect", repo).exit_code == 0
