# SPDX-License-Identifier: Apache-2.0
"""The bundle: what travels to the board. A folder, or the same folder as one .tar.

    manifest.json     what the bundle is and what it holds; the only file that is read before it is checked
    manifest.sig      detached Ed25519 signature of manifest.json; may be missing
    model.onnx        the graph            model.data     its weights
    tokenizer/        tokenizer.json and the texts beside it
    plugins/          liborin_plugins.so and liborin_kernels.so for the target; may be missing

The manifest is canonical JSON: UTF-8, sorted keys, indented by one space, one newline at the end, at most 8 MiB; any
other spelling of the same data is refused. It lists every other file with size and SHA-256, so the SHA-256 of the
manifest is the identity of the bundle. The same inputs give the same bytes: it holds no time, host name or absolute
path, and no credentials.

Prohibited: a file or folder that the manifest does not list; links (symbolic or hard), devices, sockets, setuid files;
a path that is longer than 100 bytes, leaves the folder, or holds anything but ASCII letters, digits and `._+-` in parts
that begin with a letter, a digit or `_`; two paths that differ only in case; a suffix outside the list in
`manifest.py`, above all pickle in any of its clothes; a plan.

The archive is a plain ustar without extensions: manifest.json, manifest.sig if there is one, then the files in the
order of the manifest, each behind exactly the header that `header` computes from its path and size, then two zero
blocks. Nothing of a header is interpreted when unpacking: it must equal the one that the manifest calls for.

Every check comes before the first use: signature, format, op versions, list of files, sizes, digests. What is written
is written under a temporary name, synced and renamed; a killed run leaves nothing under the final name.
"""

from __future__ import annotations

from orinkit.bundle.archive import pack, unpack
from orinkit.bundle.folder import Bundle, write
from orinkit.bundle.manifest import FileEntry, GoldenCase, Manifest, Provenance
from orinkit.bundle.signature import PublicKey, generate, load_keys, load_private, sign

__all__ = [
    "Bundle",
    "FileEntry",
    "GoldenCase",
    "Manifest",
    "Provenance",
    "PublicKey",
    "generate",
    "load_keys",
    "load_private",
    "pack",
    "sign",
    "unpack",
    "write",
]
