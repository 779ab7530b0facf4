"""A LoRA of peft's and nobody else's, on rows of instruction and output: python train.py BACKBONE ROWS.json FOLDER."""

import json
import random
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS, BATCH, LONGEST, RATE = 120, 4, 256, 5e-4


def batch_of(rows: list[dict[str, str]], tokenizer: object) -> dict[str, torch.Tensor]:
    """Prompts and answers, padded on the right; the answer alone is scored."""
    prompts = [tokenizer(row["instruction"])["input_ids"] for row in rows]
    answers = [[*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id] for row in rows]
    texts = [torch.tensor((p + a)[-LONGEST:]) for p, a in zip(prompts, answers, strict=True)]
    labels = [torch.where(torch.arange(len(t)) < len(t) - len(a), -100, t) for t, a in zip(texts, answers, strict=True)]
    pad = torch.nn.utils.rnn.pad_sequence
    masks = [torch.ones_like(text) for text in texts]
    columns = {"input_ids": pad(texts, True), "attention_mask": pad(masks, True)}
    return columns | {"labels": pad(labels, True, -100)}


def main(backbone: str, file: str, folder: str) -> None:
    """Train and save."""
    torch.manual_seed(0)
    with open(file, encoding="utf-8") as opened:
        rows = json.load(opened)
    random.Random(0).shuffle(rows)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    settings = LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(backbone), settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    for step in range(STEPS):
        loss = model(**batch_of(rows[step * BATCH : (step + 1) * BATCH], tokenizer)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1} of {STEPS}: loss {float(loss):.4f}", flush=True)
    model.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
