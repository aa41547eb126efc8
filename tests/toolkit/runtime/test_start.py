# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from orinkit.bundle import Bundle
from orinkit.engines import ENGINES
from orinkit.errors import BundleError, EngineError, ResourceError
from orinkit.ops import VERSIONS
from orinkit.runtime.request import Request
from orinkit.runtime.start import open_tokenizer, start
from toolkit.runtime.fake_program import make_bundle, open_fake
from toolkit.runtime.serving import SPEC, TOKENIZER, run, scheduler, tokens_of


def opened(folder: Path) -> Bundle:
    return Bundle.open(folder, keys=None, supported=VERSIONS)


def test_a_bundle_becomes_a_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "fake", open_fake)
    served = start(opened(make_bundle(tmp_path / "bundle", capacity=128)), "fake")
    assert (served.capacity, served.num_free_slots) == (128, 2)
    request = Request((1, 2, 3), max_tokens=9)
    number = served.submit(request)
    expected = scheduler(eos=())
    expected.submit(request)
    assert tokens_of(run(served), number) == tokens_of(run(expected), 1)


def test_the_tokenizer_of_a_bundle_has_its_template(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(opened(make_bundle(tmp_path / "bundle")))
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.encode_chat(messages, 99) == TOKENIZER.encode_chat(messages, 99)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    """Case A24."""
    with pytest.raises(BundleError, match=f"vocabulary of {SPEC.vocab - 1}, found {SPEC.vocab - 1}"):
        open_tokenizer(opened(make_bundle(tmp_path / "bundle", vocab=SPEC.vocab - 1)))


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_a_file_that_was_swapped_after_the_check_is_refused(tmp_path: Path, name: str) -> None:
    """Case B4."""
    bundle = opened(make_bundle(tmp_path / "bundle"))
    path = bundle.folder / "tokenizer" / name
    path.write_bytes(path.read_bytes().swapcase())
    with pytest.raises(BundleError, match=f"{name}: expected SHA-256"):
        open_tokenizer(bundle)


def test_an_engine_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="unknown engine 'onnxrunntime'; did you mean 'onnxruntime'"):
        start(opened(make_bundle(tmp_path / "bundle")), "onnxrunntime")


def test_a_machine_with_too_little_memory_is_told_before_anything_is_loaded(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4000 kB\nMemFree: 900 kB\nMemAvailable: 1000 kB\n")
    with pytest.raises(ResourceError, match=r"expected 0\.0\d GB of free memory .*, found 0\.00 GB"):
        start(opened(demo_bundle), "onnxruntime", root=tmp_path)
