# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orinkit.bundle import Bundle, load_keys
from orinkit.ops import VERSIONS
from orinkit_export.cli import main
from programs import CHECKPOINT, TARGET, desk, write_recipe


def orin(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(demo_bundle, tmp_path / "bundle")


@pytest.mark.parametrize("verb", main.commands)
def test_every_verb_explains_itself(verb: str) -> None:
    result = orin(verb, "--help")
    assert result.exit_code == 0
    assert f"Usage: main {verb} " in result.output
    assert main.commands[verb].help


@pytest.mark.parametrize(
    "arguments",
    [
        ["build"],
        ["build", "recipe.yaml"],
        ["bild"],
        ["inspect", "a", "b"],
        ["pack", "a"],
        ["sign", "a"],
        ["build", "--x"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = orin(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr


def test_build_says_what_it_made_and_has_a_place_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(Path("recipe.yaml"))
    result = orin("build", "recipe.yaml", "--target", TARGET, "--checkpoint", CHECKPOINT)
    assert result.exit_code == 0, result.stderr
    assert re.fullmatch(r"build/plain-host: [\d.]+ MB, 2 golden prompts, KL to the reference .*\n", result.stdout)
    assert Bundle.open(tmp_path / "build/plain-host", keys=None, supported=VERSIONS).manifest.name == "plain"


def test_inspect_writes_what_describe_says(tmp_path: Path) -> None:
    result = orin("inspect", desk(tmp_path) / "recipe.yaml")
    assert result.exit_code == 0
    assert result.stdout.startswith("recipe: plain, rtn, group size 128\nmodel: qwen3.5, hidden 256\n")


def test_verify_writes_the_report(bundle: Path) -> None:
    result = orin("verify", bundle)
    assert result.exit_code == 0
    names = [line.split(": ")[0] for line in result.stdout.splitlines()]
    assert names == ["kl_mean", "kl_max", "top1", "largest_activation", "positions"]


def test_a_key_is_made_once_and_signs(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o755)
    key = tmp_path / "keys/key"
    result = orin("keygen", key, "--comment", "the host")
    (public,) = load_keys(tmp_path / "keys")
    assert result.stdout == f"{key}.pub: key {public.id}\n"
    assert public.comment == "the host"
    assert orin("keygen", key).exit_code == 78
    assert orin("sign", bundle, "--key", key).stdout == f"{bundle}: signed with key {public.id}\n"
    Bundle.open(bundle, keys=(public,), supported=VERSIONS)


def test_pack_writes_one_file(bundle: Path, tmp_path: Path) -> None:
    result = orin("pack", bundle, tmp_path / "bundle.tar")
    assert result.stdout == f"{tmp_path}/bundle.tar: 5.7 MB\n"


def test_schema_writes_a_file_for_every_kind_of_settings(tmp_path: Path) -> None:
    paths = [Path(line) for line in orin("schema", tmp_path / "schema").stdout.splitlines()]
    assert sorted(paths) == sorted((tmp_path / "schema").iterdir())
    assert all(json.loads(path.read_text())["type"] == "object" for path in paths)
