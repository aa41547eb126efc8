# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orinkit.bundle import FileEntry, GoldenCase, write
from orinkit.bundle.manifest import decode, encode
from orinkit.errors import BundleError
from toolkit.bundle.samples import CONTENT, Attacks, judged, made, manifest, staged


def spelled(data: Any, sort_keys: bool = True) -> bytes:
    """The canonical spelling, written down a second time: a change of it must be noticed."""
    return (json.dumps(data, sort_keys=sort_keys, ensure_ascii=False, indent=1) + "\n").encode(errors="surrogatepass")


def _edited(edit: Callable[[dict[str, Any]], Any], sort_keys: bool = True) -> Callable[[Path], None]:
    def attack(folder: Path) -> None:
        data = json.loads((folder / "manifest.json").read_bytes())
        edit(data)
        (folder / "manifest.json").write_bytes(spelled(data, sort_keys))

    return attack


def _renamed(path: str) -> Callable[[Path], None]:
    """The manifest lists chat_template.jinja under another path, in sorted order."""

    def edit(data: dict[str, Any]) -> None:
        data["files"][3]["path"] = path
        data["files"].sort(key=lambda entry: entry["path"])

    return _edited(edit)


def _respelled(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def attack(folder: Path) -> None:
        file = folder / "manifest.json"
        file.write_bytes(change(file.read_bytes()))

    return attack


FULL = dataclasses.replace(
    manifest(), files=tuple(FileEntry(path, len(CONTENT[path]), "ab" * 32) for path in sorted(CONTENT))
)
GOOD = encode(FULL)

ATTACKS: Attacks = {
    **{
        f"path {path!r}": (_renamed(path), "path: expected at most 100")
        for path in (
            "../x.json",
            "tokenizer/../../x.json",
            "/etc/x.json",
            "./x.json",
            "tokenizer//x.json",
            "tokenizer/",
            "",
            ".hidden.json",
            "-rf.json",
            "a\\b.json",
            "a\0b.json",
            "a\nb.json",
            "x.json\n",
            "e\u0301.json",
            "\u00e9.json",
            "\u202etxt.json",
            "a" * 96 + ".json",
        )
    },
    "path with half a surrogate": (_renamed("\ud800.json"), "expected JSON"),
    "path in another case": (_renamed("Model.data"), "differ in more than case"),
    "folder in another case": (_renamed("Tokenizer/x.json"), "differ in more than case"),
    "file that is a folder too": (_renamed("model.data/x.json"), "differ in more than case"),
    "the manifest itself": (_renamed("manifest.json"), "manifest.json itself"),
    "the signature itself": (_renamed("Manifest.Sig.json/../manifest.sig"), "path: expected"),
    "signature in another case": (_renamed("MANIFEST.JSON"), "suffixes"),
    "one path twice": (_renamed("model.data"), "each path once"),
    "pickle": (_renamed("tokenizer/x.pkl"), "suffixes"),
    "torch checkpoint": (_renamed("pytorch_model.bin"), "suffixes"),
    "python": (_renamed("tokenizer/modeling.py"), "suffixes"),
    "no graph": (_edited(lambda data: data["files"].pop(1)), "expected 'model.onnx'"),
    "unsorted": (_edited(lambda data: data["files"].reverse()), "sorted order"),
    "negative size": (_edited(lambda data: data["files"][0].update(size=-1)), "at least 0 bytes"),
    "size of 65 bits": (_edited(lambda data: data["files"][0].update(size=1 << 64)), "files[0]: size"),
    "short digest": (_edited(lambda data: data["files"][0].update(sha256="ab" * 31)), "64 hexadecimal digits"),
    "long digest": (_edited(lambda data: data["files"][0].update(sha256="ab" * 33)), "64 hexadecimal digits"),
    "digest in capitals": (_edited(lambda data: data["files"][0].update(sha256="AB" * 32)), "64 hexadecimal digits"),
    "another digest": (_edited(lambda data: data["files"][0].update(sha256="ab" * 32)), "expected SHA-256 abab"),
    "another size": (_edited(lambda data: data["files"][0].update(size=1279)), "expected 1279 bytes, found 1280"),
    "format 2": (_edited(lambda data: data.update(format=2, more=1)), "expected format 1, found '2'"),
    "format true": (_edited(lambda data: data.update(format=True)), "expected format 1, found 'True'"),
    "no format": (_edited(lambda data: data.pop("format")), "expected format 1, found 'None'"),
    "not a mapping": (_respelled(lambda _: b"[]\n"), "expected format 1"),
    "unknown key": (_edited(lambda data: data.update(verison=1)), "did you mean"),
    "missing key": (_edited(lambda data: data.pop("model")), "'model' is missing"),
    "version 0": (_edited(lambda data: data.update(version=0)), "version: expected at least 1"),
    "name with a slash": (_edited(lambda data: data.update(name="../demo")), "name: expected"),
    "token outside the vocabulary": (_edited(lambda data: data["golden"][0]["tokens"].append(100)), "0 to 99"),
    "negative token": (_edited(lambda data: data["golden"][0]["prompt_tokens"].append(-1)), "0 to 99"),
    "golden case without tokens": (_edited(lambda data: data["golden"][0].update(tokens=[])), "at least one token"),
    "division by zero": (
        _edited(lambda data: data["model"]["layers"][0]["attention"].update(kv_heads=0)),
        "a multiple of kv_heads=0",
    ),
    "repository with a token": (
        _edited(lambda data: data["provenance"].update(repository="https://me:hf_x@host/a/b")),
        "repository",
    ),
    "unknown op": (_edited(lambda data: data["ops"].update(OrinNew="1")), "'OrinNew' version '1' where it has 'none'"),
    "newer op": (_edited(lambda data: data["ops"].update(OrinLinear="2")), "version '2' where it has '1'"),
    "repeated key": (
        _respelled(lambda raw: raw.replace(b'\n "format"', b'\n "format": 1,\n "format"')),
        "canonical",
    ),
    "unsorted keys": (_edited(lambda data: data.update(name=data.pop("name")), sort_keys=False), "canonical"),
    "other line ends": (_respelled(lambda raw: raw.replace(b"\n", b"\r\n")), "canonical"),
    "trailing space": (_respelled(lambda raw: raw + b" "), "canonical"),
    "no newline": (_respelled(lambda raw: raw[:-1]), "canonical"),
    "escaped letter": (_respelled(lambda raw: raw.replace("ü".encode(), b"\\u00fc")), "canonical"),
    "byte order mark": (_respelled(lambda raw: b"\xef\xbb\xbf" + raw), "expected JSON"),
    "not UTF-8": (_respelled(lambda raw: raw.replace("ü".encode(), b"\xfc")), "expected JSON"),
    "UTF-16": (_respelled(lambda raw: raw.decode().encode("utf-16")), "expected JSON"),
    "NaN": (_respelled(lambda raw: raw.replace(b"0.0125", b"NaN")), "expected JSON"),
    "infinity": (_respelled(lambda raw: raw.replace(b"0.0125", b"1e999")), "expected JSON"),
    "number of 10,000 digits": (_respelled(lambda raw: raw.replace(b"0.0125", b"9" * 10_000)), "expected JSON"),
    "trailing data": (_respelled(lambda raw: raw + raw), "expected JSON"),
    "empty": (_respelled(lambda _: b""), "expected JSON"),
    "depth 33": (_respelled(lambda _: spelled(json.loads("[" * 33 + "]" * 33))), "expected format 1"),
    "depth 1,000": (_respelled(lambda _: b"[" * 1000 + b"]" * 1000), "manifest.json: expected"),
    "depth 100,000": (_respelled(lambda _: b"[" * 100_000 + b"]" * 100_000), "expected JSON"),
    "8 MiB and one byte": (_respelled(lambda raw: raw + b" " * ((8 << 20) + 1 - len(raw))), "at most 8388608 bytes"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_manifest_is_refused(name: str, tmp_path: Path) -> None:
    attack, says = ATTACKS[name]
    assert judged(attack, says, tmp_path / "bundle") == "BundleError"


def test_encode_and_decode_are_inverse() -> None:
    assert decode(GOOD) == FULL
    assert spelled(json.loads(GOOD)) == GOOD


@pytest.mark.parametrize("path", ["x" * 95 + ".json", "_", "LICENSE", "a/b/c/1.txt", "a+b-c_d.e.json"])
def test_a_plain_path_is_accepted(path: str) -> None:
    files = tuple(sorted((*FULL.files, FileEntry(path, 0, "ab" * 32)), key=lambda entry: entry.path))
    longer = dataclasses.replace(FULL, files=files)
    assert decode(encode(longer)) == longer


@settings(deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_makes_another_manifest(position: int, change: int) -> None:
    raw = bytearray(GOOD)
    raw[position] ^= change
    try:
        found = decode(bytes(raw))
    except BundleError:
        return
    assert found != FULL


def test_no_manifest_is_written_that_is_too_large_to_read(tmp_path: Path) -> None:
    folder = staged(tmp_path / "bundle")
    long = dataclasses.replace(manifest(), golden=(GoldenCase("x" * (8 << 20), (1,), (2,), 0.0),))
    with pytest.raises(BundleError, match="at most 8388608 bytes"):
        write(folder, long)
    assert not (folder / "manifest.json").exists()


def test_the_manifest_depends_on_nothing_but_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(tmp_path / "first" / "bundle")
    monkeypatch.setenv("HF_TOKEN", "hf_canaryCanaryCanary")
    monkeypatch.chdir(first)
    before = os.umask(0o077)
    second = staged(tmp_path / "second" / "other-name")
    for path in second.rglob("*"):
        os.utime(path, (0, 0))
    written = write(Path("../../second/other-name"), manifest())
    os.umask(before)
    raw = (second / "manifest.json").read_bytes()
    assert raw == (first / "manifest.json").read_bytes()
    assert decode(raw) == written
    for secret in ("hf_canary", str(tmp_path), "/home/somebody", socket.gethostname()):
        assert secret.encode() not in raw
    recipe = written.recipe
    assert (recipe.checkpoint.path, recipe.calibration.text, recipe.evaluation.text) == (
        "demo-model",
        "mine.jsonl",
        "held-out.txt",
    )
