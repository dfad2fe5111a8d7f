"""The code that travels with a model, run without the package."""

import os
import subprocess
import sys
from pathlib import Path

import torch


KINDS = (
    *("compat", "configuration", "decoder", "encoder", "generation", "hub", "layers", "linear", "loss", "modeling"),
    *("peft", "pipeline", "positions", "punctuation", "scores", "sentences", "terms", "tokenization"),
)
CODE = {f"{kind}_xlm_swcm.py" for kind in KINDS}
# Further code of a model with the layers of ModernBERT.
MODERN_CODE = {f"{kind}_xlm_swcm.py" for kind in ("modern_configuration", "modern", "modern_layers", "long_attention")}
SOURCE, TARGET = "The river rises early in spring.", "我们早上去了河边"

# Load and use a saved folder on a machine that has Transformers without this package.
WITHOUT_THE_PACKAGE = """
import importlib.abc
import sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_xlm_swcm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

folder, result_file, source, target, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
refused = []
for auto_class in (AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer):
    for trust in ({}, {"trust_remote_code": False}):
        try:
            auto_class.from_pretrained(folder, **trust)
        except ValueError as error:
            refused.append(str(error))

trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
base = AutoModel.from_pretrained(folder, **trust)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, **trust)
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
batch = tokenizer(source, text_target=target, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits
    states = base(batch["input_ids"], decoder_input_ids=batch["labels"]).last_hidden_state
    eager = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager", **trust)(**batch).logits
tag = tokenizer.get_lang_id("zh")
generated = model.generate(batch["input_ids"], forced_bos_token_id=tag, no_repeat_ngram_size=1, max_new_tokens=8)
model.save_pretrained("again")
again = AutoModelForSeq2SeqLM.from_pretrained("again", **trust)
with torch.no_grad():
    logits_again = again(**batch).logits
    again.set_attn_implementation("eager")
    eager_later = again(**batch).logits
result = {
    "refused": refused,
    "classes": [type(it).__name__ for it in (config, base, model, tokenizer)],
    "modules": [type(it).__module__ for it in (config, base, model, tokenizer)],
    "batch": dict(batch),
    "logits": logits,
    "states": states,
    "eager": eager,
    "eager_later": eager_later,
    "generated": generated,
    "logits_again": logits_again,
}
torch.save(result, result_file)
"""


def python_files(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.py")}


def run_without_the_package(folder: Path, elsewhere: Path) -> dict:
    elsewhere.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "HF_HOME": str(elsewhere),
        "HF_MODULES_CACHE": str(elsewhere / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    arguments = [folder, elsewhere / "result.pt", SOURCE, TARGET, str(torch.get_num_threads())]
    subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, *arguments],
        cwd=elsewhere,
        env=environment,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    return torch.load(elsewhere / "result.pt")
