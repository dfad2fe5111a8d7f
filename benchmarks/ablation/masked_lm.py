"""Give an encoder a masked-LM head: train a new head, and the encoder more slowly, on the text of interface strings.

    python benchmarks/ablation/masked_lm.py ENCODER OUTPUT --data DATA --steps 400

DATA has `software.tsv` with the columns split, zh, kk, mn and ug. The text is the rows of `train`. The script prints
loss and accuracy of masked tokens of the rows of `dev`.
"""

import argparse
from pathlib import Path

import torch
from tasks import SOFTWARE, read_split
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments, set_seed

from modeling_xlm_swcm.training.arguments import has_fast_bf16
from modeling_xlm_swcm.training.encoder import EncoderArguments, XLMRobertaForMaskedLM, make_rows, mix_languages


LANGUAGES = ("zh", "kk", "mn", "ug")
OPTIONS = EncoderArguments(corpus=[], max_length=24, sampling_exponent=0.5)
BATCH_SIZE, HEAD_RATE, ENCODER_RATE = 32, 1e-3, 3e-4


def read_texts(data: Path, split: str) -> dict[str, list[str]]:
    """Return the text of a split for each language."""
    rows = [row for _, row in read_split(data / SOFTWARE, split)]
    return {code: [row[code] for row in rows if row[code]] for code in LANGUAGES}


@torch.no_grad()
def evaluate(model: XLMRobertaForMaskedLM, batches: list[dict]) -> str:
    """Describe loss and accuracy of masked tokens."""
    model.eval()
    loss, right, count = 0.0, 0, 0
    for batch in batches:
        masked = batch["labels"] != -100
        labels = batch["labels"][masked]
        states = model.roberta(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        logits = model.lm_head(states[masked])
        loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        right += (logits.argmax(-1) == labels).sum().item()
        count += len(labels)
    return f"loss {loss / count:.3f} nats per masked token, accuracy {right / count:.1%} of {count} masked tokens"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", type=Path, help="Folder of the encoder.")
    parser.add_argument("output", type=Path, help="Folder for the encoder with a head.")
    parser.add_argument("--data", type=Path, required=True, help="Folder with software.tsv.")
    parser.add_argument("--steps", type=int, default=400, help="Training steps. Default: 400.")
    args = parser.parse_args()
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.encoder)
    model = XLMRobertaForMaskedLM.from_pretrained(args.encoder, dtype=torch.float32)
    # The new transform starts as the converter starts it.
    torch.nn.init.eye_(model.lm_head.dense.weight)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=OPTIONS.mask_share, seed=0)
    held_out = make_rows(tokenizer, sum(read_texts(args.data, "dev").values(), []), OPTIONS.max_length)
    batches = list(DataLoader(held_out, BATCH_SIZE, collate_fn=collator))
    print(f"step 0: {evaluate(model, batches)}", flush=True)

    # The output projection is the word embedding matrix, which belongs to the encoder.
    head = [*model.lm_head.dense.parameters(), *model.lm_head.layer_norm.parameters(), model.lm_head.bias]
    groups = [{"params": head, "lr": HEAD_RATE}, {"params": list(model.roberta.parameters()), "lr": ENCODER_RATE}]
    training = TrainingArguments(
        str(args.output),
        max_steps=args.steps,
        per_device_train_batch_size=BATCH_SIZE,
        warmup_steps=0.1,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        bf16=has_fast_bf16(),
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        training,
        train_dataset=mix_languages(OPTIONS, tokenizer, read_texts(args.data, "train"), seed=0),
        data_collator=collator,
        processing_class=tokenizer,
        optimizers=(torch.optim.AdamW(groups, weight_decay=0.0, fused=True), None),
    )
    trainer.train()
    print(f"step {args.steps}: {evaluate(model, batches)}", flush=True)
    trainer.save_model()


if __name__ == "__main__":
    main()
