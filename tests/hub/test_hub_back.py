"""Load from the Hub with the package, with Transformers alone, pinned and offline, and inspect without weights."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from support.cards import check_pattern
from support.commands import assert_refused
from support.encoders import edit_tensors
from support.hub_client import SENT
from support.loopback_hub import READ, WRITE
from support.models import wants_peft
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

from modeling_xlm_swcm.hub_xlm_swcm import TOKENIZER_FILES


REPO = "someone/model"
NOT_INSTALLED = """
import importlib.util
assert importlib.util.find_spec("modeling_xlm_swcm") is None
"""
TEXTS = ["The river", "A quiet morning", "no wind"]
# Greedy search without repetition, so that random weights generate a different text for every input.
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


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory) -> Path:
    """Return the Python of a virtual environment that has all dependencies but not the package."""
    environment = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    # Python reads no .pth files in folders from a .pth file, so the editable install is not found.
    (site_packages / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return environment / "bin" / "python"


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


@pytest.fixture
def run_alone(hub, elsewhere, tmp_path):
    """Return a function that runs code in a process without the package and with an empty cache."""

    def run(code: str, **environment):
        environment = hub.environment | {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": WRITE} | environment
        environment |= {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        command = [elsewhere, "-c", f"{NOT_INSTALLED}\n{code}"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run


TRAIN = """
import modeling_xlm_swcm
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, Seq2SeqTrainer
from modeling_xlm_swcm.training.arguments import TrainingArguments
from modeling_xlm_swcm.training.trainer import XLMSWCMTrainer

def train(trainer_class, start, output_dir, repo, texts):
    model = AutoModelForSeq2SeqLM.from_pretrained(start)
    tokenizer = AutoTokenizer.from_pretrained(start, src_lang="zh", tgt_lang="bo")
    trainer = trainer_class(
        model,
        TrainingArguments(
            output_dir, max_steps=2, save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
            push_to_hub=True, hub_model_id=repo, hub_always_push=True,
        ),
        train_dataset=Dataset.from_dict(dict(tokenizer(texts, text_target=texts))),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer
"""


def test_all_four_ways_send_the_whole_model_that_loads_again_without_network(
    hub, client, encoder_folder, converted, run_alone, tmp_path
):
    output, trained = tmp_path / "output", tmp_path / "trained"
    arguments = ["--languages", "zh", "kk", "bo", "--license", "mit", "--push-to-hub", "someone/converted"]
    assert client.command("push", converted, "someone/pushed").exit_code == 0
    assert client.command("convert", encoder_folder, output, *arguments).exit_code == 0
    code = f"""{TRAIN}
AutoModelForSeq2SeqLM.from_pretrained({str(converted)!r}).push_to_hub("someone/itself", max_shard_size="100KB")
train(XLMSWCMTrainer, {str(converted)!r}, {str(trained)!r}, "someone/trained", {TEXTS!r}).push_to_hub()
"""
    assert client.run(code)["error"] is None
    ways = {"pushed": converted, "converted": output, "itself": converted, "trained": trained}
    for way in ways:
        files = hub.repositories[f"someone/{way}"].files
        shards = {name for name in files if name.startswith("model") and ".safetensors" in name}
        assert len(shards) == {"itself": 4}.get(way, 1)
        assert files.keys() - shards == SENT - {"model.safetensors"}
        report = json.loads(files["conversion_report.json"])
        assert report["source"] == encoder_folder.name and report["counts"]["copied"] == 138
        card = ModelCard(files["README.md"].decode())
        check_pattern(card)
        assert card.data.license == "mit" and f'repo = "someone/{way}"' in card.text
        assert ("| learning_rate | " in card.text) == (way == "trained")

    load = f"""{LOAD}
for way in {[*ways]!r}:
    load_and_write(f"someone/{{way}}", {TEXTS!r}, f"{tmp_path}/{{way}}.pt", """
    assert client.run(f"import modeling_xlm_swcm\n{load}{{}})")["error"] is None
    check_loaded(ways, tmp_path, "modeling_xlm_swcm.modeling_xlm_swcm")
    for offline in ("0", "1"):
        hub.requests.clear()
        run_alone(f"{load}dict(trust_remote_code=True))", HF_HUB_OFFLINE=offline)
        check_loaded(ways, tmp_path, "transformers_modules.someone.")
        assert bool(hub.requests) == (offline == "0")


def check_loaded(ways: dict[str, Path], results: Path, module: str):
    for way, folder in ways.items():
        logits, written, loaded_from = torch.load(results / f"{way}.pt")
        assert loaded_from.startswith(module)
        assert torch.allclose(logits, expected(folder)[0], atol=1e-5)
        assert written == expected(folder)[1]


def test_a_model_that_pushes_itself_keeps_the_card_and_the_tokenizer_that_are_there(hub, client, repository, folder):
    card, report = (repository.files[name] for name in ("README.md", "conversion_report.json"))
    edit_tensors(folder, lambda tensors: {name: 1.1 * tensor for name, tensor in tensors.items()})
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b"\n")
    code = f"""
import modeling_xlm_swcm
from transformers import AutoModelForSeq2SeqLM
AutoModelForSeq2SeqLM.from_pretrained({str(folder)!r}).push_to_hub({REPO!r})
"""
    tokenizer = repository.files["tokenizer.json"]
    assert client.run(code)["error"] is None
    files = repository.files
    assert files.keys() == SENT
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert (files["tokenizer.json"], files["conversion_report.json"]) == (tokenizer, report)
    assert ModelCard(files["README.md"].decode()).data == ModelCard(card.decode()).data


def test_a_model_made_in_memory_pushes_report_and_card_and_an_unknown_licence_is_not_guessed(
    hub, client, encoder_folder, tmp_path
):
    code = f"""
from modeling_xlm_swcm.conversion import from_encoder
model, report = from_encoder({str(encoder_folder)!r}, languages=["zh", "bo"])
report.tokenizer.push_to_hub("someone/first")  # with Transformers' card
model.push_to_hub("someone/first")
model.save_pretrained({str(tmp_path / "saved")!r}, push_to_hub=True, repo_id="someone/saved")
"""
    assert client.run(code)["error"] is None
    # The code of the model also imports compat_xlm_swcm.py.
    for repo, missing in (("first", set()), ("saved", {*TOKENIZER_FILES} - {"compat_xlm_swcm.py"})):
        files = hub.repositories[f"someone/{repo}"].files
        assert files.keys() == SENT - missing
        card = ModelCard(files["README.md"].decode())
        assert card.data.license is None and card.data.language == ["zh", "bo"]
        assert "Its licence is not known. Tensors: 138 copied" in card.text
        assert json.loads(files["conversion_report.json"])["source"] == encoder_folder.name


@wants_peft
def test_adapters_of_a_model_are_pushed_with_transformers_card(hub, client, folder):
    code = f"""
import modeling_xlm_swcm
from peft import LoraConfig
from transformers import AutoModelForSeq2SeqLM

model = AutoModelForSeq2SeqLM.from_pretrained({str(folder)!r})
model.add_adapter(LoraConfig(target_modules=["q_proj"], r=2))
model.push_to_hub({REPO!r})
"""
    assert client.run(code)["error"] is None
    files = hub.repositories[REPO].files
    assert "adapter_model.safetensors" in files and "config.json" not in files
    assert "automatically generated" in files["README.md"].decode()


def test_a_model_whose_folder_has_gone_pushes_itself_with_report_and_card(hub, client, folder):
    code = f"""
import os, shutil
import modeling_xlm_swcm
from transformers import AutoModelForSeq2SeqLM

before = os.getcwd()
os.chdir({str(folder.parent)!r})
model = AutoModelForSeq2SeqLM.from_pretrained({folder.name!r})
os.chdir(before)
shutil.rmtree({str(folder)!r})
model.push_to_hub({REPO!r})
"""
    assert client.run(code)["error"] is None
    files = hub.repositories[REPO].files
    # The tokenizer and its code are gone with the folder.
    assert files.keys() == {name for name in SENT if "token" not in name} - {"punctuation_xlm_swcm.py"}
    check_pattern(ModelCard(files["README.md"].decode()))


def test_with_transformers_alone_report_and_tokenizer_stay_with_a_model_that_pushes_itself(hub, repository, run_alone):
    code = f"""
from transformers import AutoModelForSeq2SeqLM
AutoModelForSeq2SeqLM.from_pretrained({REPO!r}, trust_remote_code=True).push_to_hub("someone/new")
"""
    run_alone(code)
    files = hub.repositories["someone/new"].files
    assert files.keys() == SENT
    for name in SENT - {"README.md", "config.json", "generation_config.json"}:
        assert files[name] == repository.files[name], name
    assert "automatically generated." in files["README.md"].decode()


def test_a_model_of_a_private_repository_pushes_itself_with_the_token_that_it_is_given(hub, client, converted):
    hub.add("someone/secret", converted, private=True)
    code = f"""
import modeling_xlm_swcm
from transformers import AutoModelForSeq2SeqLM
AutoModelForSeq2SeqLM.from_pretrained("someone/secret", token={WRITE!r}).push_to_hub("someone/new", token={WRITE!r})
"""
    assert client.run(code, token=None)["error"] is None
    assert hub.repositories["someone/new"].files.keys() == SENT


def test_a_push_in_the_middle_of_a_training_is_whole_and_keeps_a_card_that_somebody_wrote(
    hub, client, converted, tmp_path
):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("# Mine\n")
    code = f"""{TRAIN}
for name in ("trained", "own"):
    train(XLMSWCMTrainer, {str(converted)!r}, f"{tmp_path}/{{name}}", f"someone/{{name}}", {TEXTS!r})
"""
    assert client.run(code)["error"] is None
    for name in ("trained", "own"):
        repository = hub.repositories[f"someone/{name}"]
        assert repository.refs["main"].message == "Training in progress, step 2"
        assert repository.files.keys() == SENT
    assert "| steps | 2 |" in hub.repositories["someone/trained"].files["README.md"].decode()
    assert hub.repositories["someone/own"].files["README.md"] == b"# Mine\n"


def test_transformers_own_trainer_sends_its_card_and_a_push_of_its_folder_fills_ours(
    hub, client, repository, tmp_path
):
    trained = tmp_path / "trained"
    code = f"""{TRAIN}
trainer = train(Seq2SeqTrainer, {REPO!r}, {str(trained)!r}, "someone/trained", {TEXTS!r})
trainer.push_to_hub()
"""
    assert client.run(code)["error"] is None
    by_trainer = hub.repositories["someone/trained"].files
    assert by_trainer.keys() == SENT | {"training_args.bin"}
    assert by_trainer["model.safetensors"] != repository.files["model.safetensors"]
    assert by_trainer["conversion_report.json"] == repository.files["conversion_report.json"]
    assert "the Trainer had access to" in by_trainer["README.md"].decode()
    assert client.command("push", trained, "someone/trained").exit_code == 0
    files = hub.repositories["someone/trained"].files
    assert files["model.safetensors"] == by_trainer["model.safetensors"]
    assert 'repo = "someone/trained"' in files["README.md"].decode()


def test_inspect_shows_what_a_model_is_without_its_weights(hub, client, repository, converted):
    outcome = client.command("inspect", REPO)
    assert outcome.exit_code == 0, outcome.output
    for words in (
        "XLMSWCMForConditionalGeneration",
        "zh, kk-Arab, bo",
        "61,791 as F32",
        "27,156 in encoder layers",
        "27,156 in decoder layers",
        "138 tensors copied (2 with new rows), 0 new",
        "247.2 kB in model.safetensors",
        "encoder  ■ ■ ■ ■  4 layers\ndecoder  ■ ■ ■ ■  4 prefix\n",
    ):
        assert words in outcome.stdout
    here = client.command("inspect", converted)
    # Only the local report has the full path of the encoder.
    assert len(here.stdout.split()) == len(outcome.stdout.split())
    assert here.stdout.split("encoder  ")[1] == outcome.stdout.split("encoder  ")[1]
    spans = [
        headers.get("Range") for method, path, headers in hub.requests if path.startswith("/lfs/") and method == "GET"
    ]
    assert spans and all(re.fullmatch(r"bytes=\d+-\d+", span) for span in spans)


def test_inspect_knows_a_model_without_head(client, converted, tmp_path):
    AutoModel.from_pretrained(converted).save_pretrained(tmp_path)
    outcome = client.command("inspect", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    assert "27,156 in encoder layers" in outcome.stdout


def test_inspect_reads_shards_and_a_revision(hub, client, folder):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    assert client.command("push", folder, REPO, "--revision", "trial").exit_code == 0
    outcome = client.command("inspect", REPO, "--revision", "trial")
    assert "61,791 as F32" in outcome.stdout
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
