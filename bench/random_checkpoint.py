# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint with the true shapes of a public model and random weights, to time and to test without a download.

Run: python bench/random_checkpoint.py --shape qwen3.5-0.8b --out DIR

The folder holds config.json and generation_config.json as transformers 5 writes them, bfloat16 safetensors in shards
with their index, and a small byte-level tokenizer with a ChatML template (its vocabulary is a part of the model's).
The values keep activations of a usual size; the model says nothing sensible. Text models only, without extra
prediction layers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from orinkit_export import safetensors

QWEN3_5 = {  # hidden, layers, intermediate, query heads, key/value heads, gated-delta value heads, tied
    "qwen3.5-0.8b": (1024, 24, 3584, 8, 2, 16, True),
    "qwen3.5-2b": (2048, 24, 6144, 8, 2, 16, True),
    "qwen3.5-4b": (2560, 32, 9216, 16, 4, 32, True),
    "qwen3.5-9b": (4096, 32, 12288, 16, 4, 32, False),
}
QWEN3 = {  # hidden, layers, intermediate, query heads, key/value heads, tied
    "qwen3-0.6b": (1024, 28, 3072, 16, 8, True),
    "qwen3-8b": (4096, 36, 12288, 32, 8, False),
}
LLAMA = {  # hidden, layers, intermediate, query heads, key/value heads, head_dim, rope factor, tied
    "llama-3.2-1b": (2048, 16, 8192, 32, 8, 64, 32.0, True),
    "llama-3.1-8b": (4096, 32, 14336, 32, 8, 128, 8.0, False),
}
SHAPES = (*QWEN3_5, *QWEN3, *LLAMA)

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT = """The quick brown fox jumps over the lazy dog. A small tokenizer needs only a small text: words that come again,
numbers such as 1 2 3 4 5 6 7 8, and a little code, def add(a, b): return a + b. The model behind it is random, so what
the words are does not matter, but the length of a prompt in tokens should be near that of a real tokenizer."""
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

STD = 0.02
BLOCK = 1 << 22

Config = dict[str, Any]
Layout = dict[str, tuple[int, ...]]


def model_config(shape: str, layers: int | None = None) -> Config:
    """config.json of the named shape, without token ids; with `layers`, cut off behind so many."""
    sizes: dict[str, Any] = {**QWEN3_5, **QWEN3, **LLAMA}
    make: Any = _qwen3_5 if shape in QWEN3_5 else _qwen3 if shape in QWEN3 else _llama
    hidden, count, *others = sizes[shape]
    return dict(make(hidden, layers or count, *others))


def _dense(hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, tied: bool) -> Config:
    """What the three families have in common."""
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": STD,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "use_cache": True,
    }


def _qwen3_5(
    hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, value_heads: int, tied: bool
) -> Config:
    rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
    return _dense(hidden, layers, intermediate, heads, kv_heads, tied) | {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "attn_output_gate": True,
        "full_attention_interval": 4,
        "head_dim": 256,
        "layer_types": ["full_attention" if index % 4 == 3 else "linear_attention" for index in range(layers)],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": value_heads,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "rope_parameters": rope | {"mrope_interleaved": True, "mrope_section": [11, 11, 10]},
        "vocab_size": 248320,
    }


def _qwen3(hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, tied: bool) -> Config:
    return _dense(hidden, layers, intermediate, heads, kv_heads, tied) | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 128,
        "layer_types": ["full_attention"] * layers,
        "max_position_embeddings": 40960,
        "max_window_layers": layers,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }


def _llama(
    hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, head_dim: int, factor: float, tied: bool
) -> Config:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": factor, "original_max_position_embeddings": 8192}
    return _dense(hidden, layers, intermediate, heads, kv_heads, tied) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": head_dim,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_parameters": rope | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "vocab_size": 128256,
    }


def layout(config: Config) -> Layout:
    """Shape of every tensor of the checkpoint, in the order of the layers."""
    hidden, ff, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kinds = config.get("layer_types", ["full_attention"] * config["num_hidden_layers"])
    shapes: Layout = {"model.embed_tokens.weight": (vocab, hidden)}
    for index, kind in enumerate(kinds):
        layer: Layout = {
            "input_layernorm.weight": (hidden,),
            **(_attention(config) if kind == "full_attention" else _gated_delta(config)),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (ff, hidden),
            "mlp.up_proj.weight": (ff, hidden),
            "mlp.down_proj.weight": (hidden, ff),
        }
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    return shapes if config["tie_word_embeddings"] else shapes | {"lm_head.weight": (vocab, hidden)}


def _attention(config: Config) -> Layout:
    hidden, dim = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    norms: Layout = {"self_attn.q_norm.weight": (dim,), "self_attn.k_norm.weight": (dim,)}
    return {
        "self_attn.q_proj.weight": (queries * (2 if config.get("attn_output_gate") else 1), hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
    } | ({} if config["model_type"] == "llama" else norms)


def _gated_delta(config: Config) -> Layout:
    hidden, value_heads = config["hidden_size"], config["linear_num_value_heads"]
    values = value_heads * config["linear_value_head_dim"]
    channels = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"] + values
    return {
        "linear_attn.in_proj_qkv.weight": (channels, hidden),
        "linear_attn.in_proj_z.weight": (values, hidden),
        "linear_attn.in_proj_a.weight": (value_heads, hidden),
        "linear_attn.in_proj_b.weight": (value_heads, hidden),
        "linear_attn.conv1d.weight": (channels, 1, config["linear_conv_kernel_dim"]),
        "linear_attn.A_log": (value_heads,),
        "linear_attn.dt_bias": (value_heads,),
        "linear_attn.norm.weight": (config["linear_value_head_dim"],),
        "linear_attn.out_proj.weight": (hidden, values),
    }


def values(name: str, size: int, config: Config, rng: np.random.Generator) -> Iterator[NDArray[Any]]:
    """Blocks of bfloat16 that make up tensor `name` of `size` elements."""
    if name.endswith("A_log"):
        made = np.log(rng.uniform(1, 16, size))
    elif name.endswith("dt_bias"):
        step = np.exp(rng.uniform(np.log(0.001), np.log(0.1), size))
        made = step + np.log(-np.expm1(-step))  # inverse of softplus
    elif "norm" in name:
        offset_form = config["model_type"] == "qwen3_5_text" and "linear_attn" not in name  # these multiply by 1 + w
        made = rng.normal(0 if offset_form else 1, 0.05, size)
    else:
        std = np.float32(0.5 if "conv1d" in name else STD)
        for first in range(0, size, BLOCK):
            block = rng.standard_normal(min(BLOCK, size - first), dtype=np.float32)
            yield (block * std).astype(ml_dtypes.bfloat16)
        return
    yield made.astype(ml_dtypes.bfloat16)


def write_weights(out: Path, config: Config, seed: int, shard_bytes: int) -> None:
    """Shards of at most `shard_bytes` of data (more where one tensor is larger) and model.safetensors.index.json."""
    rng = np.random.default_rng(seed)
    shards = _shards(layout(config), shard_bytes)
    total = sum(_nbytes(shape) for shard in shards for shape in shard.values())
    weight_map: dict[str, str] = {}
    started, written = time.monotonic(), 0
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (out / file_name).open("wb") as file:
            file.write(safetensors.header({name: ("BF16", shape) for name, shape in shard.items()}))
            for name, shape in shard.items():
                for block in values(name, int(np.prod(shape)), config, rng):
                    file.write(block.tobytes())
        weight_map |= dict.fromkeys(shard, file_name)
        written += sum(map(_nbytes, shard.values()))
        print(
            f"{file_name}: {written / 1e9:.2f} of {total / 1e9:.2f} GB, {time.monotonic() - started:.0f} s", flush=True
        )
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(out / "model.safetensors.index.json", index)


def _shards(shapes: Layout, shard_bytes: int) -> list[Layout]:
    shards: list[Layout] = [{}]
    filled = 0
    for name, shape in shapes.items():
        if shards[-1] and filled + _nbytes(shape) > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += _nbytes(shape)
    return shards


def _nbytes(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


def write_tokenizer(out: Path) -> dict[str, int]:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja; returns the ids of the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 131072}
    _write_json(out / "tokenizer_config.json", settings | {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    vocabulary = tokenizer.get_vocab()
    return {token: vocabulary[token] for token in SPECIALS}


def write_checkpoint(out: Path, config: Config, seed: int, shard_bytes: int) -> None:
    """The whole checkpoint, in the new folder `out`."""
    out.mkdir(parents=True)
    ids = write_tokenizer(out)
    eos, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    _write_json(out / "config.json", config | {"bos_token_id": None, "eos_token_id": eos, "pad_token_id": pad})
    _write_json(out / "generation_config.json", {"eos_token_id": [eos, pad], "pad_token_id": pad})
    write_weights(out, config, seed, shard_bytes)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint with true shapes and random weights.")
    parser.add_argument("--shape", required=True, choices=SHAPES)
    parser.add_argument("--out", required=True, type=Path, help="folder to make; it must not exist")
    parser.add_argument("--layers", type=int, help="only so many layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-mib", type=int, default=2048, help="largest shard, in MiB (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"--out: expected a folder that does not exist, found {arguments.out}; give another or remove it")
    config = model_config(arguments.shape, arguments.layers)
    write_checkpoint(arguments.out, config, arguments.seed, arguments.shard_mib << 20)


if __name__ == "__main__":
    main()
