# SPDX-License-Identifier: Apache-2.0
"""A small valid bundle, and what refuses it after an attack. The attacks stand in tables beside their tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orinkit.bundle import Bundle, FileEntry, GoldenCase, Manifest, Provenance, PublicKey, generate, sign, unpack, write
from orinkit.bundle.archive import header
from orinkit.errors import OrinError
from orinkit.model import Attention, LayerSpec, ModelSpec, Rope
from orinkit.recipe import Calibration, Evaluation, Recipe, Shapes, Source
from orinkit.target import Board, Stack, Target

MARK = "canary-outside"
"""Name of what an attack tries to write, or to be read, beside the folder."""
Attacks = dict[str, tuple[Callable[[Path], object], str]]
"""What is done to a good bundle, and words of the sentence that must refuse it."""

SUPPORTED = {"OrinAttention": "1", "OrinLinear": "1"}
CONTENT = {
    "model.onnx": b"graph",
    "model.data": bytes(range(256)) * 5,
    "plugins/liborin_plugins.so": b"\x7fELF library",
    "tokenizer/chat_template.jinja": b"{{ messages }}",
    "tokenizer/empty.txt": b"",
    "tokenizer/tokenizer.json": b"{}\n" + b" " * 509,
}
MARK = "canary-outside"


def manifest(name: str = "demo", version: int = 1) -> Manifest:
    """A manifest before `write` fills in the files."""
    source = Source(
        "/home/somebody/checkpoints/demo-model", "organisation/demo-model", "0123456789abcdef" * 2 + "01234567"
    )
    attention = Attention(heads=4, kv_heads=2, head_dim=16, rotary_dim=16, scale=0.25)
    return Manifest(
        name=name,
        recipe=Recipe(
            "demo",
            source,
            Shapes(capacity=64, chunk=32),
            calibration=Calibration("/home/somebody/texts/mine.jsonl"),
            evaluation=Evaluation("../texts/held-out.txt"),
        ),
        target=Target("host", Board("host", "a host", "x86_64"), Stack("host", "no GPU", "yes", 20)),
        model=ModelSpec("LlamaForCausalLM", 64, 100, 1e-6, True, 64, Rope(1e4), (LayerSpec(128, attention),), (0,)),
        ops=dict(SUPPORTED),
        provenance=Provenance("orinkit 0.1.0", (FileEntry("model.safetensors", 3, "ab" * 32),)),
        golden=(GoldenCase("Grüß dich, 世界 🙂", (1, 2), (3, 99), 0.5),),
        report={"kl_mean": 0.0125},
        version=version,
    )


def staged(folder: Path) -> Path:
    """The files of a bundle without its manifest."""
    for path, content in CONTENT.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def made(folder: Path, name: str = "demo", version: int = 1) -> Path:
    """A valid unsigned bundle."""
    write(staged(folder), manifest(name, version))
    return folder


def signed(parent: Path) -> tuple[Path, tuple[PublicKey, ...]]:
    """A valid bundle with its signature, and the keys that trust it."""
    folder, private = made(parent / "bundle"), parent / "key"
    key = generate(private)
    sign(folder, private)
    return folder, (key,)


def opened(folder: Path) -> Bundle:
    return Bundle.open(folder, keys=None, supported=SUPPORTED)


def verdict(act: Callable[[], object], says: str) -> str:
    """The class of the error if its sentence holds these words, else what happened instead."""
    try:
        act()
    except OrinError as error:
        return type(error).__name__ if says in str(error) else f"another sentence: {error}"
    return "accepted"


def judged(attack: Callable[[Path], object], says: str, folder: Path) -> str:
    """The verdict of `Bundle.open` on a bundle after an attack on its folder."""
    attack(made(folder))
    return verdict(lambda: opened(folder), says)


def judged_archive(attack: Callable[[Path], bytes], says: str, folder: Path) -> str:
    """The verdict of `unpack` on the archive that an attack makes of a good bundle."""
    archive = folder.with_suffix(".tar")
    archive.write_bytes(attack(made(folder)))
    return verdict(lambda: unpacked(archive), says)


def unpacked(archive: Path) -> Path:
    """The folder beside an archive that it was unpacked to."""
    folder = archive.with_name("unpacked")
    unpack(archive, folder, keys=None, supported=SUPPORTED)
    return folder


def entry(name: str, content: bytes = b"", fields: Mapping[int, bytes] | None = None) -> bytes:
    """An entry as `pack` writes it, but for these fields (offset in the header: bytes) and its checksum."""
    block = bytearray(header(name, len(content)))
    for offset, value in (fields or {}).items():
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content + bytes(-len(content) % 512)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: bytes of files, None for anything else."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }


def program(module: str, *arguments: str, options: Sequence[str] = (), wrapper: Sequence[str] = ()) -> str:
    """What a module prints when a Python of its own runs it."""
    command = [*wrapper, sys.executable, *options, "-m", module, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
