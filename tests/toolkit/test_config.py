# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orinkit import config
from orinkit.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    count: int = 1

    def validate(self) -> None:
        if self.count < 0:
            raise ConfigError(f"count: expected 0 or more, found {self.count}")


@dataclass(frozen=True)
class Sample:
    """One field of every type that the reader understands."""

    flag: bool
    ratio: float
    text: str
    kind: Literal["a", "b", 1]
    items: tuple[Inner, ...] = ()
    table: dict[str, float] = field(default_factory=dict)
    inner: Inner | None = None
    size: int | None = 5


FULL = {"flag": True, "ratio": 0.5, "text": "x", "kind": "a"}
INTEGERS = st.integers(0, 2**63 - 1)
SAMPLES = st.builds(
    Sample,
    flag=st.booleans(),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    text=st.text(),
    kind=st.sampled_from(["a", "b", 1]),
    items=st.lists(st.builds(Inner, INTEGERS), max_size=3).map(tuple),
    table=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    inner=st.none() | st.builds(Inner, INTEGERS),
    size=st.none() | INTEGERS,
)


def refusal(data: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(data, Sample, "here")
    return str(caught.value)


def refusal_of_file(path: Path, content: bytes | str) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        config.read(path, Sample)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@settings(deadline=None)
@given(SAMPLES)
def test_parse_undoes_dump(sample: Sample) -> None:
    assert config.parse(config.dump(sample), Sample, "sample") == sample


@settings(deadline=None)
@given(SAMPLES)
def test_read_undoes_dump_into_a_file(tmp_path_factory: pytest.TempPathFactory, sample: Sample) -> None:
    path = tmp_path_factory.getbasetemp() / "sample.yaml"
    path.write_text(yaml.safe_dump(config.dump(sample)), encoding="utf-8")
    assert config.read(path, Sample) == sample


def test_dump_leaves_out_what_is_none_by_default() -> None:
    assert config.dump(Sample(**FULL, size=None)) == {**FULL, "items": [], "table": {}, "size": None}  # type: ignore[arg-type]


def test_a_whole_number_is_good_where_a_number_is_expected() -> None:
    ratio = config.parse({**FULL, "ratio": 2}, Sample, "here").ratio
    assert (ratio, type(ratio)) == (2.0, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texd": 1}, "here: unknown key 'texd'; did you mean 'text'?"),
        ({"zzz": 1}, "here: unknown key 'zzz'; known: flag, inner, items, kind, ratio, size, table, text"),
        ({"flag": 1}, "here: flag: expected true or false, found 1"),
        ({"flag": "true"}, "here: flag: expected true or false, found 'true'"),
        ({"ratio": True}, "here: ratio: expected a number, found true"),
        ({"ratio": "1"}, "here: ratio: expected a number, found '1'"),
        ({"ratio": math.nan}, "here: ratio: expected a finite number, found nan"),
        ({"ratio": -math.inf}, "here: ratio: expected a finite number, found -inf"),
        ({"ratio": 10**400}, "here: ratio: expected a number of at most 63 bits, found one of 1329"),
        ({"text": None}, "here: text: expected a text (put quotes around it), found nothing"),
        ({"text": {}}, "here: text: expected a text (put quotes around it), found a mapping"),
        ({"kind": True}, "here: kind: expected one of 'a', 'b', 1, found true; put quotes around yes, no, on and off"),
        ({"kind": 1.0}, "here: kind: expected one of 'a', 'b', 1, found 1.0"),
        ({"items": "ab"}, "here: items: expected a list, found 'ab'"),
        ({"items": [{}, {"count": 1.5}]}, "here: items[1]: count: expected a whole number, found 1.5"),
        ({"items": [{"count": -1}]}, "here: items[0]: count: expected 0 or more, found -1"),
        ({"table": []}, "here: table: expected a mapping of names to values, found a list"),
        ({"table": {1: 1.0}}, "here: table: expected a text (put quotes around it), found 1"),
        ({"table": {"a": "b"}}, "here: table: a: expected a number, found 'b'"),
        ({"inner": 3}, "here: inner: expected a mapping of keys to values, found 3"),
        ({"size": False}, "here: size: expected a whole number, found false"),
        ({"size": 2**63}, "here: size: expected a number of at most 63 bits, found one of 64"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(change: dict[Any, Any], message: str) -> None:
    assert refusal({**FULL, **change}) == message


@pytest.mark.parametrize("key", FULL)
def test_a_missing_key_is_named(key: str) -> None:
    assert refusal({k: v for k, v in FULL.items() if k != key}) == f"here: the key {key!r} is missing; add it"


@pytest.mark.parametrize("value", ["x" * 100_000, 10**10_000, ["x"] * 100_000], ids=type)
def test_a_message_stays_short_whatever_was_found(value: Any) -> None:
    assert all(len(refusal({**FULL, key: value})) < 200 for key in ("flag", "kind", "inner"))


def test_a_message_stays_short_whatever_the_key() -> None:
    assert len(refusal({**FULL, "x" * 100_000: 1})) < 200


@pytest.mark.parametrize("opening", ["[", "{", "- ", "? ", "{a: ", "[[], "])
def test_deep_nesting_is_refused(tmp_path: Path, opening: str) -> None:
    message = refusal_of_file(tmp_path / "deep.yaml", opening * 100_000)
    assert message == "line 1: expected at most 32 levels of nesting, found more; flatten it"


def test_the_deepest_nesting_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("[" * config.MAX_DEPTH + "]" * config.MAX_DEPTH)
    assert config.load_yaml(path)


def test_wide_is_not_deep(tmp_path: Path) -> None:
    path = tmp_path / "wide.yaml"
    path.write_text("[" + "[]," * 1000 + "]")
    assert config.load_yaml(path) == [[]] * 1000


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    message = refusal_of_file(tmp_path / "large.yaml", "#" * (config.MAX_BYTES + 1))
    assert message == "expected at most 1048576 bytes, found more; is this a settings file?"


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    assert "found nothing" in refusal_of_file(tmp_path / "large.yaml", "#" * config.MAX_BYTES)


@pytest.mark.skipif(not os.access("/dev/zero", os.R_OK), reason="needs /dev/zero")
def test_an_endless_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected at most 1048576 bytes"):
        config.load_yaml(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text: \xff", "expected YAML, found: 'utf-8' codec can't decode byte 0xff"),
        ("text: 'a", "expected YAML, found: while scanning a quoted scalar"),
        ("text: \x00", "expected YAML, found: unacceptable character"),
        ("a: " + "1" * 5000, "expected YAML, found: Exceeds the limit"),
        ("a: 0x_", "expected YAML, found: invalid literal for int()"),
        ("? 0x" + "f" * 5000 + "\n: 1", "line 1: expected a word as key, found a number of 20000 bits"),
        ("!" + "t" * 5000 + " {}", "line 1: expected plain values, found the YAML tag '!ttt"),
    ],
)
def test_what_is_not_plain_yaml_is_refused(tmp_path: Path, content: bytes | str, message: str) -> None:
    assert refusal_of_file(tmp_path / "wrong.yaml", content).startswith(message)


def test_a_path_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: no such file; give the path of a YAML file$"):
        config.load_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); give the path of a YAML file$"):
        config.load_yaml(tmp_path)
    with pytest.raises(ConfigError, match="embedded null"):
        config.load_yaml(tmp_path / "a\0b")


@settings(deadline=None)
@given(st.binary() | st.text("[]{}:,-?&*!|>'\"#%@`~<= \n\t01axny.").map(str.encode))
def test_any_content_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        config.load_yaml(path)


@settings(deadline=None)
@given(st.text() | st.text("ab09.-_/A \n", max_size=66))
def test_a_name_is_good_where_it_is_a_safe_file_name_and_argument(name: str) -> None:
    try:
        config.check_name("name", name)
        accepted = True
    except ConfigError:
        accepted = False
    safe = set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") and not name.startswith((".", "_", "-"))
    assert accepted == (safe and 1 <= len(name) <= 64)


def test_nearest() -> None:
    assert config.nearest("helth", ["health", "metrics"]) == "did you mean 'health'?"
    assert config.nearest("zzz", ["b", "a"]) == "known: a, b"
