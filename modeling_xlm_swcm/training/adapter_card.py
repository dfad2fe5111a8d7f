"""The model card of LoRA adapters that are saved without their base model."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from modeling_xlm_swcm.hub.card import GENERATED, PEFT_CARD, is_own_card

from .files import write_whole


TEMPLATE = """---
{{{{ card_data }}}}
---

{generated} by xlm-swcm. -->

# {name}

LoRA adapters for the XLM-SWCM model {link}.

## Use

```python
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import modeling_xlm_swcm

base = AutoModelForSeq2SeqLM.from_pretrained("{base}", dtype=torch.float32)
model = PeftModel.from_pretrained(base, "{name}").eval()
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

{finding}`model.merge_and_unload()` returns the model with merged adapters.

## How they were trained

{training}

## Evaluation

{results}
"""


def write_adapter_card(folder: Path, base: str, metrics: dict, license: str | None):
    """
    Write the card of adapters, unless somebody wrote a card by hand.

    Args:
        folder (`Path`):
            Folder of the adapters.
        base (`str`):
            Folder or Hub id of the base model. Only the name of a folder is shown.
        metrics (`dict`):
            Content of `metrics.json`.
        license (`str`, *optional*):
            Licence of the base model.
    """
    path = folder / "README.md"
    if is_own_card(path) and PEFT_CARD not in path.read_text(encoding="utf-8"):
        return
    is_local = Path(base).is_dir()
    shown = Path(base).resolve().name if is_local else base
    data = ModelCardData(
        base_model=None if is_local else base,
        library_name="peft",
        license=license,
        tags=["lora", "xlm-swcm", *([] if is_local else [f"base_model:adapter:{base}"])],
    )
    finding = (
        "The base model is a local folder. In the code, replace its name by its path. `adapter_config.json` has the "
        "path as `base_model_name_or_path`. If you move the folder, use the new path.\n\n"
    )
    text = TEMPLATE.format(
        finding=finding if is_local else "",
        generated=GENERATED,
        name=folder.resolve().name,
        base=shown,
        link=f"`{shown}`" if is_local else f"[{shown}](https://huggingface.co/{shown})",
        training=make_table("setting", metrics["training"]),
        results=f"Data: {metrics['dataset']}.\n\n{make_table('metric', flatten(metrics['results']))}",
    )
    write_whole(path, str(ModelCard.from_template(data, template_str=text)))


def flatten(results: dict) -> dict:
    """Return the value of each metric and language."""
    flat = {}
    for metric, values in results.items():
        if isinstance(values, dict):
            flat |= {f"{metric} ({language})": value for language, value in values.items()}
        else:
            flat[metric] = values
    return flat


def make_table(heading: str, values: dict) -> str:
    """Return a table in Markdown."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    return f"| {heading} | value |\n|---|---|\n{rows}" if values else "None."
