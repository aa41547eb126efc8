# SPDX-License-Identifier: Apache-2.0
"""Builds that are repeated, moved, signed and changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mistakes import Act, edited, weight
from orinkit import target
from orinkit.bundle import Bundle, generate, load_keys
from orinkit.bundle.manifest import KERNELS
from orinkit.errors import OrinError, VerificationError
from orinkit.ops import VERSIONS
from orinkit_export import plan, verify
from orinkit_export.build import build
from programs import (
    BUILD,
    ENVIRONMENT,
    ROOT,
    SMALL,
    TARGET,
    content,
    finish,
    is_tidy,
    listing,
    run,
    small_desk,
    succeed,
    write_recipe,
)

LAYER = "model.language_model.layers.0"
RTN = {"method": "rtn", "group_size": 32}


def recipe(**changes: object) -> Act:
    """The recipe of every test here, with changes at its top level."""
    return lambda folder: write_recipe(folder / "recipe.yaml", SMALL, **{"quantise": RTN, **changes})


def desk(folder: Path) -> Path:
    """A folder with that recipe and its checkpoint."""
    recipe()(small_desk(folder))
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its checkpoint and its bundle `out`."""
    folder = desk(tmp_path_factory.mktemp("undisturbed"))
    succeed("orin-export", *BUILD, cwd=folder)
    return folder


@pytest.fixture
def built(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(undisturbed, tmp_path / "built")


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plain recipe and its finished model stage, in which `out` is the bundle of another recipe."""
    folder = desk(tmp_path_factory.mktemp("half-done"))
    recipe(name="older")(folder)
    finish(folder)
    recipe()(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "MIN_MARGIN", 1e9)
        with pytest.raises(VerificationError):
            finish(folder)
    assert (folder / "out.work/model").is_dir()
    return folder


@pytest.fixture
def replacing(half_done: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(half_done, tmp_path / "replacing")


def test_the_same_inputs_give_the_same_bytes_anywhere(undisturbed: Path, tmp_path: Path) -> None:
    other = tmp_path / "a/b"
    arguments = (undisturbed / "recipe.yaml", "--target", TARGET, "--checkpoint", desk(other) / "checkpoint")
    succeed("orin-export", "build", *arguments, "-o", other / "out", cwd=tmp_path)
    assert content(other / "out") == content(undisturbed / "out")
    assert is_tidy(other)


def test_nothing_of_the_environment_gets_into_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setitem(ENVIRONMENT, name, "hf_abcdefghijklmnop")
    succeed("orin-export", *BUILD, cwd=desk(tmp_path))
    secrets = (b"hf_abcdefghijklmnop", str(tmp_path).encode(), str(Path.home()).encode() + b"/")
    assert [secret for secret in secrets for file in content(tmp_path / "out").values() if secret in file] == []


def test_a_second_run_does_nothing(built: Path) -> None:
    before = listing(built)
    done = run("orin-export", *BUILD, cwd=built)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == f"{built}/out is up to date"
    assert listing(built) == before


def test_a_run_with_a_key_only_signs(built: Path) -> None:
    (built / "keys").mkdir(mode=0o755)
    generate(built / "keys/key")
    before = listing(built / "out")
    succeed("orin-export", *BUILD, "--sign", "keys/key", cwd=built)
    after = listing(built / "out")
    assert after.pop("manifest.sig")
    assert after == before
    Bundle.open(built / "out", keys=load_keys(built / "keys"), supported=VERSIONS)


def test_a_finished_stage_is_used_again(undisturbed: Path, replacing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(replacing)
    assert "quantise: " not in capsys.readouterr().err
    assert content(replacing / "out") == content(undisturbed / "out")
    assert is_tidy(replacing)


CHANGES: dict[str, Act] = {
    "name": recipe(name="other"),
    "capacity": recipe(shapes={"capacity": 128, "slots": 2, "chunk": 32}),
    "format": recipe(quantise=RTN | {"head": "int8"}),
    "golden": recipe(golden={"prompts": ["ROMEO:"], "tokens": 3}),
    "weights": weight(f"{LAYER}.mlp.up_proj.weight", 0.5, (0, 0)),
    "end tokens": edited("config.json", lambda data: data["text_config"].update(eos_token_id=7)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_built_as_if_nothing_had_been_there(change: Act, replacing: Path, tmp_path: Path) -> None:
    change(replacing)
    made = finish(replacing)
    assert Bundle.open(replacing / "out", keys=None, supported=VERSIONS) == made
    assert is_tidy(replacing)
    fresh = desk(tmp_path / "fresh")
    change(fresh)
    finish(fresh)
    assert content(replacing / "out") == content(fresh / "out")


def test_another_target_is_built(built: Path) -> None:
    board = target.read(ROOT / "targets/agx-orin-64gb-jetpack-6.2.yaml")
    assert build(plan.read(built / "recipe.yaml"), board, built / "out").manifest.target == board
    assert finish(built).manifest.target == target.read(TARGET)


def test_libraries_travel_and_others_make_another_bundle(built: Path) -> None:
    library = built / "liborin_kernels.so"

    def made(text: bytes) -> Bundle:
        library.write_bytes(text)
        libraries = {KERNELS: library}
        return build(plan.read(built / "recipe.yaml"), target.read(TARGET), built / "out", libraries=libraries)

    first = made(b"one")
    assert first.read(KERNELS) == b"one"
    assert made(b"one") == first
    assert made(b"two").read(KERNELS) == b"two"
    assert KERNELS not in listing(finish(built).folder)


def test_a_damaged_bundle_is_built_again(undisturbed: Path, built: Path) -> None:
    (built / "out/model.data").write_bytes(b"damaged")
    finish(built)
    assert content(built / "out") == content(undisturbed / "out")


def test_a_link_to_a_folder_stays_a_link(built: Path) -> None:
    (built / "out").rename(built / "real")
    (built / "out").symlink_to("real")
    recipe(name="other")(built)
    assert finish(built).folder == built / "real"
    assert (built / "out").readlink() == Path("real")


FAILURES: dict[str, Act] = {
    "model": weight(f"{LAYER}.mlp.up_proj.weight", float("nan"), 0),
    "verify": weight(f"{LAYER}.input_layernorm.weight", 3e6),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_build_that_fails_keeps_the_old_bundle(failure: Act, replacing: Path) -> None:
    failure(replacing)
    before = listing(replacing / "out")
    with pytest.raises(OrinError):
        finish(replacing)
    assert listing(replacing / "out") == before
