# SPDX-License-Identifier: Apache-2.0
"""Train the demo model: a 5.5 M parameter Qwen3.5 text model with its own tokenizer and chat template.

It trains on two texts, read from the folder given with --texts:
  tinyshakespeare.txt   plays of Shakespeare (public domain), as plain documents
  gsm8k-train.jsonl     grade-school questions and worked answers (MIT), as chats rendered by the chat template
The last 5 % of each (of the characters, of the lines) is held out from both tokenizer and model.

Run: python tests/oracle/train_demo.py --texts DIR --out DIR --minutes N
Needs torch, transformers (5.17 or later) and tokenizers; one GPU takes minutes, a CPU many hours.
N is an upper limit: the learning rate falls to zero by the last epoch or the last minute, whichever comes first.

Writes into --out a Hugging Face checkpoint: config.json, generation_config.json, model.safetensors (bfloat16, the
weights with the lowest held-out loss), tokenizer.json, tokenizer_config.json and chat_template.jinja. Prints the losses
after each epoch and, last, a record of the run as JSON, from which the model card is written by hand.
"""

import argparse
import copy
import datetime
import json
import math
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3_5ForCausalLM, Qwen3_5TextConfig
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB_SIZE = 4096
TRAINED_SHARE = 0.95
ROW = 513  # tokens of a row: 512 inputs, and as many targets one further on
IGNORE = -100  # the target where a row is padding
SYSTEM = "You are a helpful assistant. Solve the question step by step."
CHAT_TEMPLATE = r"""
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""".strip()

Chat = list[dict[str, str]]
Texts = tuple[list[str], list[Chat]]  # the speeches of the plays in order, and the chats
Rows = list[list[int]]


def as_chat(line: str, number: int) -> Chat:
    """A GSM8K line as a chat, without the <<...>> calculator marks; every fifth has a system message."""
    record = json.loads(line)
    turns = [
        {"role": "user", "content": record["question"].strip()},
        {"role": "assistant", "content": re.sub(r"<<.*?>>", "", record["answer"]).strip()},
    ]
    return [{"role": "system", "content": SYSTEM}] * (number % 5 == 0) + turns


def load_texts(folder: Path) -> tuple[Texts, Texts]:
    """The trained and the held-out part of both texts."""
    play = (folder / "tinyshakespeare.txt").read_text(encoding="utf-8")
    lines = (folder / "gsm8k-train.jsonl").read_text(encoding="utf-8").strip().split("\n")
    play_cut, line_cut = int(len(play) * TRAINED_SHARE), int(len(lines) * TRAINED_SHARE)
    chats = [as_chat(line, number) for number, line in enumerate(lines)]
    parts = [(play[:play_cut], chats[:line_cut]), (play[play_cut:], chats[line_cut:])]
    trained, held = ((re.findall(r".+?(?:\n\n|\Z)", text, re.DOTALL), chats) for text, chats in parts)
    return trained, held


def train_tokenizer(texts: Texts) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen3.5's normalizer and splitting rule, trained on the texts."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - len(SPECIALS), initial_alphabet=alphabet, show_progress=False)
    speeches, chats = texts
    bpe.train_from_iterator(speeches + [text for chat in chats for turn in chat for text in turn.values()], trainer)
    bpe.add_special_tokens(SPECIALS)
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=2048, chat_template=CHAT_TEMPLATE, **ends)


def model_config(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> Qwen3_5TextConfig:
    """The architecture: every fourth layer has full attention, and every dimension is a multiple of 128."""
    heads = hidden // 128
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    rope |= {"mrope_section": [11, 11, 10], "mrope_interleaved": True}
    return Qwen3_5TextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        layer_types=["linear_attention" if (i + 1) % 4 else "full_attention" for i in range(layers)],
        full_attention_interval=4,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=256,
        attn_output_gate=True,
        linear_num_key_heads=heads,
        linear_num_value_heads=2 * heads,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
        rope_parameters=rope,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class Rowing:
    """The texts as token ids, cut into rows: packed anew for each epoch, or fixed for scoring."""

    def __init__(self, texts: Texts, tokenizer: PreTrainedTokenizerFast) -> None:
        speeches, chats = texts
        self.speeches: Rows = tokenizer(speeches)["input_ids"]
        self.chats: Rows = tokenizer(tokenizer.apply_chat_template(chats, tokenize=False))["input_ids"]

    @staticmethod
    def pack(samples: Rows) -> Rows:
        """Rows of whole samples, in order; only a sample longer than a row is cut."""
        rows: Rows = [[]]
        for sample in samples:
            if rows[-1] and len(rows[-1]) + len(sample) > ROW:
                rows.append([])
            rows[-1] += sample[: ROW - len(rows[-1])]
        return rows

    def epoch(self, rng: random.Random) -> Rows:
        """The rows of one epoch: the plays cut at other speeches each time, the chats in another order."""
        start = rng.randrange(len(self.speeches))
        chats = rng.sample(self.chats, len(self.chats))
        rows = self.pack(self.speeches[start:]) + self.pack(self.speeches[:start]) + self.pack(chats)
        rng.shuffle(rows)
        return rows

    def fixed(self, speeches: int | None = None, chats: int | None = None) -> dict[str, Rows]:
        """Rows to score, of the first speeches and chats; each chat stands alone, as in use."""
        alone = [chat[:ROW] for chat in self.chats[:chats]]
        return {"shakespeare": self.pack(self.speeches[:speeches]), "gsm8k": alone}


def as_batch(rows: Rows, pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of some rows, padded on the right to the longest."""
    width = max(map(len, rows))
    inputs = torch.tensor([row[:-1] + [pad] * (width - len(row)) for row in rows])
    targets = torch.tensor([row[1:] + [IGNORE] * (width - len(row)) for row in rows])
    return inputs.to(device), targets.to(device)


def loss_of(model: Qwen3_5ForCausalLM, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of the targets, in nats."""
    logits = model(input_ids=inputs, use_cache=False).logits.float()
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")


@torch.no_grad()
def score(model: Qwen3_5ForCausalLM, rows: Rows, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """The model's mean loss on the rows, in its own precision; special tokens count as no bytes."""
    special = set(tokenizer.convert_tokens_to_ids(SPECIALS))
    nats = torch.zeros((), device=model.device)
    for first in range(0, len(rows), 32):
        nats += loss_of(model, *as_batch(rows[first : first + 32], tokenizer.pad_token_id, model.device))
    targets = [token for row in rows for token in row[1:]]
    spelled = tokenizer.convert_ids_to_tokens([token for token in targets if token not in special])
    bits = nats.item() / math.log(2)
    return {"nats_per_token": nats.item() / len(targets), "bits_per_byte": bits / sum(map(len, spelled))}


@dataclass
class Best:
    """The weights with the lowest held-out loss yet, and where they were met."""

    loss: float = math.inf
    epoch: int = 0
    step: int = 0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


class Training:
    """A run: AdamW that decays the matrices alone, and a learning rate that warms up and falls to zero by a cosine."""

    def __init__(self, model: Qwen3_5ForCausalLM, pad: int, args: argparse.Namespace) -> None:
        self.model, self.pad, self.args = model, pad, args
        matrices = {"params": [weight for weight in model.parameters() if weight.ndim == 2], "weight_decay": 0.1}
        others = {"params": [weight for weight in model.parameters() if weight.ndim != 2], "weight_decay": 0.0}
        self.optimizer = torch.optim.AdamW([matrices, others], betas=(0.9, 0.95), fused=model.device.type == "cuda")
        self.started, self.steps, self.progress = time.monotonic(), 0, 0.0

    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self.started

    def advance(self, epochs: float) -> bool:
        """Set the learning rate by the share of epochs or of minutes gone, whichever is more; false at the end."""
        self.progress = max(epochs / self.args.epochs, self.seconds() / 60 / self.args.minutes)
        warmth, cosine = min(1.0, (self.steps + 1) / 100), 0.5 + 0.5 * math.cos(math.pi * min(1.0, self.progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.learning_rate * warmth * cosine
        return self.progress < 1

    def step(self, rows: Rows) -> None:
        """One update. Some inputs, never targets, are blanked: it stands in for dropout, which the model lacks."""
        inputs, targets = as_batch(rows, self.pad, self.model.device)
        inputs[torch.rand(inputs.shape, device=inputs.device) < self.args.token_dropout] = self.pad
        with torch.autocast(self.model.device.type, torch.bfloat16):
            loss = loss_of(self.model, inputs, targets) / sum(len(row) - 1 for row in rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def run(self, trained: Rowing, held: dict[str, Rows], tokenizer: PreTrainedTokenizerFast) -> Best:
        """Train until epochs or minutes run out, or the held-out loss has not fallen for five epochs."""
        rng, best = random.Random(self.args.seed), Best()
        for epoch in range(self.args.epochs):
            rows = trained.epoch(rng)
            for first in range(0, len(rows), self.args.batch):
                if not self.advance(epoch + first / len(rows)):
                    break
                self.step(rows[first : first + self.args.batch])
            losses = [score(self.model, part, tokenizer)["nats_per_token"] for part in held.values()]
            print(f"epoch {epoch + 1} step {self.steps} {self.seconds():.0f} s, held-out {losses}", flush=True)
            mean = sum(losses) / len(losses)
            if mean < best.loss:
                best = Best(mean, epoch + 1, self.steps, copy.deepcopy(self.model.state_dict()))
            if self.progress >= 1 or epoch + 1 - best.epoch >= 5:
                break
        return best


def save(model: Qwen3_5ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the checkpoint, with settings for sampling."""
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.8, top_k=40, top_p=0.95, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(out, max_shard_size="14MB")
    tokenizer.save_pretrained(out)


def main() -> None:
    """Read the texts, train tokenizer and model, write the checkpoint and print the record."""
    parser = argparse.ArgumentParser(description="Train the demo model (see the top of this file).")
    parser.add_argument("--texts", type=Path, required=True, help="folder of the two texts")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--minutes", type=float, required=True, help="most minutes to train for")
    parser.add_argument("--hidden", type=int, default=256, help="hidden size, a multiple of 256")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32, help="rows in a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--token-dropout", type=float, default=0.1, help="share of the inputs blanked in training")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained_texts, held_texts = load_texts(args.texts)
    tokenizer = train_tokenizer(trained_texts)
    trained, held = Rowing(trained_texts, tokenizer), Rowing(held_texts, tokenizer)
    model = Qwen3_5ForCausalLM(model_config(tokenizer, args.hidden, args.layers)).to(device)
    training = Training(model, tokenizer.pad_token_id, args)
    best = training.run(trained, held.fixed(), tokenizer)
    model.load_state_dict(best.weights)
    model.to(torch.bfloat16)
    save(model, tokenizer, args.out)
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "software": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "options": {name: value for name, value in vars(args).items() if name not in ("texts", "out")},
        "parameters": model.num_parameters(),
        "trained_tokens": sum(map(len, trained.speeches + trained.chats)),
        "trained": {"seconds": round(training.seconds()), "steps": training.steps},
        "kept": {"epoch": best.epoch, "step": best.step, "held_out": best.loss},
    }
    for side, rowing in (("held_out", held), ("train", trained)):
        parts = rowing.fixed(len(held.speeches), len(held.chats))
        record[side] = {name: score(model, rows, tokenizer) for name, rows in parts.items()}
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
