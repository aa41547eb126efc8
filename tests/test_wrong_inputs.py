# SPDX-License-Identifier: Apache-2.0
"""Wrong inputs of orin-export: one line that says what is wrong and what to do, an exit code, and nothing changed."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path

import pytest

from mistakes import (
    DOWN,
    UP,
    Act,
    config,
    edited,
    file,
    index,
    nothing,
    one_id_more,
    patched,
    pickled,
    recipe,
    removed,
    truncated,
    weight,
    wider_blocks,
)
from programs import BUILD, EVALUATION, desk, listing, refused, run, succeed

BLOB = "checkpoint/model.safetensors"


@dataclass(frozen=True)
class Wrong:
    """What is done to a folder with recipe.yaml and checkpoint/, and what must be said of it."""

    act: Act
    says: tuple[str, ...]
    code: int = 78
    arguments: tuple[str | Path, ...] = BUILD
    stays: tuple[str, ...] = ()
    """What is left: out.work, because another run can go on with what is in it, and the report if there is one."""


def shapes(**changes: object) -> Act:
    return recipe(shapes={"capacity": 64, "slots": 2, "chunk": 32} | changes)


def golden(prompt: str) -> Act:
    return recipe(golden={"prompts": [prompt], "tokens": 4})


def own_target(board: str) -> Act:
    return file("target.yaml", f"id: mine\nboard: {board}\nstack: stack.yaml\n")


COMMIT = "0123456789" * 4
ELSEWHERE = {"path": "elsewhere", "repository": "organisation/model", "revision": COMMIT}
MINE = (*BUILD[:3], "target.yaml", *BUILD[4:])
SETTINGS = {
    "no recipe": Wrong(removed("recipe.yaml"), ("recipe.yaml: no such file", "give the path of a YAML file")),
    "recipe is a folder": Wrong(nothing, ("checkpoint: ", "directory"), arguments=("inspect", "checkpoint")),
    "broken YAML": Wrong(file("recipe.yaml", "name: plain\nshapes: [\n"), ("recipe.yaml: expected YAML", "line")),
    "unknown key": Wrong(shapes(chunks=32), ("recipe.yaml: shapes: unknown key 'chunks'", "did you mean 'chunk'?")),
    "wrong type": Wrong(shapes(slots="four"), ("shapes: slots: expected a whole number, found 'four'",)),
    "capacity": Wrong(shapes(capacity=4096), ("recipe.yaml: shapes: capacity: expected at most", "2048", "4096")),
    "long golden prompt": Wrong(golden("no " * 62), ("golden: prompts: 'no no", "expected 1 to 60 tokens, found ")),
    "huge golden prompt": Wrong(golden("no " * 999), ("golden: prompts: 'no no", "at most 512 bytes", "found 2997")),
    "no target": Wrong(nothing, ("target.yaml: no such file",), arguments=MINE),
    "no board": Wrong(own_target("boards/none.yaml"), ("target.yaml: ", "boards/none.yaml: no such"), arguments=MINE),
    "no folder": Wrong(
        recipe(checkpoint=ELSEWHERE), (f"hf download organisation/model --revision {COMMIT} --local-dir elsewhere",)
    ),
    "no folder known": Wrong(recipe(checkpoint={"path": "none"}), ("none: expected a checkpoint folder, found none",)),
    "no text": Wrong(
        recipe(evaluation={"text": "absent.txt"}), ("evaluation: text: expected UTF-8 text at absent.txt",)
    ),
    "group size": Wrong(wider_blocks, ("layers.0.down.weight: ", "128", "800")),
}
CHECKPOINTS = {
    "unknown architecture": Wrong(config(model_type="gpt2"), ("config.json: model_type 'gpt2' is unknown", "known: ")),
    "no JSON": Wrong(file("checkpoint/config.json", "{"), ("config.json: expected JSON, found", "download it again")),
    "missing shard": Wrong(index("model-2.safetensors"), ("model-2.safetensors: the file is missing", "download")),
    "foreign shard": Wrong(index("../x.safetensors"), (UP, "'../x.safetensors'", "do not use this checkpoint")),
    "truncated": Wrong(truncated(BLOB, 5_000_000), (BLOB, "truncated: expected 11059320 bytes, found 5000000")),
    "header": Wrong(patched(BLOB, 60, b"\0\xff"), (BLOB, "expected JSON, found: ", "download it again")),
    "pickle": Wrong(pickled, ("'pytorch_model.bin'", "never opened", "safetensors")),
    "code": Wrong(config(auto_map={"AutoModel": "modeling_x.X"}), ("config.json: ", "'auto_map'")),
    "hidden size": Wrong(
        config(hidden_size=128), ("embedding.weight: expected 524288", "found 1048576 in model.embed")
    ),
    "vocabulary": Wrong(config(vocab_size=5000), ("embedding.weight: expected 1280000", "does config.json fit")),
    "missing tensor": Wrong(config(tie_word_embeddings=False), ("no tensor 'lm_head.weight'", "does config.json fit")),
    "end token": Wrong(edited("generation_config.json", lambda c: c.update(eos_token_id=4096)), ("4096", "of 4096")),
    "generation settings": Wrong(
        file("checkpoint/generation_config.json", "[]"), ("expected a JSON object, found a l",)
    ),
    "NaN": Wrong(weight(DOWN, float("nan"), (7, 9)), (BLOB, DOWN, "found nan at [7, 9]", "--allow-nonfinite")),
    "zeros": Wrong(weight(UP, 0), (BLOB, UP, "found zeros only", "--allow-nonfinite")),
    "too large": Wrong(
        weight("model.layers.0.linear_attn.in_proj_b.weight", 1e6, (0, 0)),
        ("layers.0.ba.weight: expected magnitudes up to 65504 for float16", "999424", "choose a wider format"),
    ),
}
TOKENIZERS = {
    "none": Wrong(removed("checkpoint/tokenizer.json"), ("checkpoint: expected tokenizer.json, found none; download",)),
    "broken": Wrong(
        truncated("checkpoint/tokenizer.json", 999), ("tokenizer.json: expected a tokenizer", "get it again")
    ),
    "ids": Wrong(
        edited("tokenizer.json", one_id_more), ("below the vocabulary of 4096", "found 4096", "one checkpoint")
    ),
    "template": Wrong(file("checkpoint/chat_template.jinja", "{{ messages"), ("chat template: expected Jinja", "corr")),
    "failing template": Wrong(
        file("checkpoint/chat_template.jinja", "{{ messages.x.y }}"), ("chat template: it fails", "'x'", "correct it")
    ),
}
STRICT = EVALUATION | {"bounds": {"perplexity_increase": 1e6, "kl_mean": 0.0, "top1": 0.0}}
LATE = {
    "activations": Wrong(
        weight("model.layers.0.input_layernorm.weight", 3e4), ("layers.0", "float16"), code=1, stays=("out.work",)
    ),
    "NaN let through": Wrong(
        weight("model.layers.0.input_layernorm.weight", float("nan"), 5),
        ("layers.0", "float16"),
        code=1,
        arguments=(*BUILD, "--allow-nonfinite"),
        stays=("out.work",),
    ),
    "infinity let through": Wrong(
        weight(DOWN, float("inf"), (7, 9)), ("layers.3.down.weight", "inf"), arguments=(*BUILD, "--allow-nonfinite")
    ),
    "no key": Wrong(
        nothing,
        ("private key absent: No such file",),
        arguments=(*BUILD, "--sign", "absent"),
    ),
    "missed bound": Wrong(
        recipe(evaluation=STRICT),
        ("kl_mean: expected at most 0, found", "--accept"),
        1,
        stays=("out.report", "out.work"),
    ),
}
OUTPUTS = {
    "below a file": Wrong(nothing, ("recipe.yaml/out.work", "check the path"), 75, (*BUILD, "-o", "recipe.yaml/out")),
    "a file": Wrong(
        nothing, ("recipe.yaml: expected a bundle", "choose another"), arguments=(*BUILD, "-o", "recipe.yaml")
    ),
    "a full folder": Wrong(nothing, ("checkpoint: expected a bundle",), arguments=(*BUILD, "-o", "checkpoint")),
    "this folder": Wrong(nothing, ("expected a bundle, an empty folder or nothing",), arguments=(*BUILD, "-o", ".")),
    "the root": Wrong(nothing, ("/: expected a bundle, an empty folder",), arguments=(*BUILD, "-o", "/")),
}
OTHERS = {
    "verify": Wrong(nothing, ("absent: No such file", "check the path"), arguments=("verify", "absent")),
    "pack": Wrong(nothing, ("packing checkpoint", "manifest.json"), arguments=("pack", "checkpoint", "x.tar")),
    "sign": Wrong(nothing, ("private key absent",), arguments=("sign", "checkpoint", "--key", "absent")),
    "keygen": Wrong(nothing, ("recipe.yaml", "exists"), arguments=("keygen", "recipe.yaml")),
}
WRONG = {
    f"{group}: {name}": case
    for group, cases in {
        "settings": SETTINGS,
        "checkpoint": CHECKPOINTS,
        "tokenizer": TOKENIZERS,
        "late": LATE,
        "output": OUTPUTS,
        "verb": OTHERS,
    }.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_wrong_input_is_one_line_and_changes_nothing(case: Wrong, tmp_path: Path) -> None:
    case.act(desk(tmp_path))
    before = listing(tmp_path)
    refused(run("orin-export", *case.arguments, cwd=tmp_path), case.says, case.code)
    after = listing(tmp_path)
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == set(case.stays)
    assert {name: after[name] for name in before} == before


def test_zeros_that_are_let_through_are_exported(tmp_path: Path) -> None:
    weight(UP, 0)(desk(tmp_path))
    succeed("orin-export", *BUILD, "--allow-nonfinite", cwd=tmp_path)
    assert (tmp_path / "out/manifest.json").is_file()


def test_another_run_on_the_same_output_is_told_to_wait(tmp_path: Path) -> None:
    (desk(tmp_path) / "out.work").mkdir()
    before = listing(tmp_path / "checkpoint")
    with (tmp_path / "out.work/lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(run("orin-export", *BUILD, cwd=tmp_path), ("out.work: another export is working here", "wait"), 75)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "out.work", "recipe.yaml"]
    assert listing(tmp_path / "checkpoint") == before


NEVER_REPLACED = {
    "a manifest of another program": {"out/manifest.json": "{}", "out/thesis.txt": "mine"},
    "a folder of the name that is worked in": {"out.work/thesis.txt": "mine"},
}


@pytest.mark.parametrize("files", NEVER_REPLACED.values(), ids=NEVER_REPLACED)
def test_files_of_others_are_never_removed(files: dict[str, str], tmp_path: Path) -> None:
    desk(tmp_path)
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    before = listing(tmp_path)
    refused(run("orin-export", *BUILD, cwd=tmp_path), ("found", "choose another"), 78)
    assert listing(tmp_path) == before


def test_a_bundle_with_other_files_in_it_is_not_replaced(tmp_path: Path) -> None:
    desk(tmp_path)
    succeed("orin-export", *BUILD, cwd=tmp_path)
    (tmp_path / "out/notes.txt").write_text("mine")
    recipe(name="other")(tmp_path)
    before = listing(tmp_path)
    refused(run("orin-export", *BUILD, cwd=tmp_path), ("a bundle with other files ('notes.txt')", "choose another"), 78)
    assert listing(tmp_path) == before
