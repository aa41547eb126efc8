# SPDX-License-Identifier: Apache-2.0
"""`orin-export build`: a planned export to a verified bundle, stage by stage.

    formats    what the recipe leaves to a measurement -> formats.json
    model      checkpoint -> model.data, model.onnx
    verify     graph against its reference, golden tokens -> verify.json
    float      checkpoint -> hidden rows of the evaluation text
    evaluate   graph against the float model -> quality.json
    bundle     everything in one folder with its manifest, renamed to the output

Stages live in `<output>.work`, which is removed when the bundle is complete. It stays where another run can go on:
after a kill, Ctrl-C, a full disk, a failed verification (other golden prompts need no new model) or a missed bound.
Before the bounds are looked at, `<output>.report` gets the report: it tells of the last export that was
evaluated, refused ones included.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from orinkit import bundle, config
from orinkit.bundle import Bundle, GoldenCase, Manifest, Provenance
from orinkit.bundle.files import sync_folder
from orinkit.bundle.folder import portable
from orinkit.bundle.manifest import DATA, DEPLOY, DEPLOY_WEIGHTS, GRAPH, MANIFEST, SIGNATURE, decode
from orinkit.engines import open_engine
from orinkit.engines.deploy import encode as encode_weights
from orinkit.errors import BundleError, OrinError
from orinkit.ops import VERSIONS
from orinkit.runtime.steps import Stepper
from orinkit.target import Target
from orinkit_export import (
    baseline,
    choose,
    cost,
    deploy,
    disk,
    evaluate,
    gate,
    graph,
    lint,
    origin,
    prepare,
    quantise,
    stages,
    store,
    verify,
)
from orinkit_export.findings import Findings
from orinkit_export.plan import Plan
from orinkit_export.progress import progress, say
from orinkit_export.report import page
from orinkit_export.report.collect import collect
from orinkit_export.report.data import HTML

Stage = Callable[[str, Mapping[str, Any], Callable[[Path], None]], Path]
"""The folder of a stage by its name, what it depends on, and what makes it."""

REPLACED, VERIFIED = "replaced", "verify.json"


def build(
    plan: Plan,
    target: Target,
    output: Path,
    key: Path | None = None,
    accept: bool = False,
    libraries: Mapping[str, Path] | None = None,
) -> Bundle:
    """Make the bundle `output` for `target`, signed with the private key `key` if given.

    `libraries` (crossbuild.packed) travel in it, by their paths there. A missed bound is refused; with `accept` it is
    recorded in the manifest. A bundle of the same inputs is kept, and only signed if `key` is given. Whatever happens,
    `output` is what it was before or the complete new bundle; a kill between the two renames that replace it is put
    right by the next run. Raises OrinError.
    """
    output = Path(os.path.realpath(output))
    _check_output(output)
    page.check(_report_folder(output))
    if key is not None:
        bundle.load_private(key)  # a wrong one is told before hours of work
    work = output.with_name(f"{output.name}.work")
    with stages.locked(work):
        _put_back(work / REPLACED, output)
        provenance = origin.provenance(plan)
        finished = _finished(plan, target, output, provenance, accept, libraries or {})
        if finished is None:
            disk.check_space(work, 2 * plan.data_bytes() + plan.hidden_bytes())
            done = _made(plan, target, work, provenance)
            verified = json.loads((done["verify"] / VERIFIED).read_text(encoding="utf-8"))
            numbers = _judged(plan, target, done, verified["report"], output, accept)
            manifest = Manifest(
                name=plan.recipe.name,
                recipe=plan.recipe,
                target=target,
                model=plan.spec,
                ops=VERSIONS,
                provenance=provenance,
                golden=tuple(config.parse(case, GoldenCase, VERIFIED) for case in verified["golden"]),
                report=numbers,
                formats=choose.formats(choose.read(done)),
            )
            _assemble(plan, manifest, done["model"], work / "bundle", key, libraries or {})
            _replace(work / "bundle", output)
        elif key is not None:
            bundle.sign(output, key)
        stages.clear(work)
    return finished or Bundle.open(output, keys=None, supported=VERSIONS)


def _check_output(output: Path) -> None:
    """What is replaced is removed, so it must be a bundle and nothing else. Raises BundleError."""
    found = "something else"
    with suppress(OSError, BundleError):
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return
        listed = {entry.path for entry in decode((output / MANIFEST).read_bytes()).files} | {MANIFEST, SIGNATURE}
        others = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()} - listed
        if not others:
            return
        found = f"a bundle with other files ({min(others)!r})"
    raise BundleError(f"{output}: expected a bundle, an empty folder or nothing, found {found}; choose another")


def _finished(
    plan: Plan, target: Target, output: Path, provenance: Provenance, accept: bool, libraries: Mapping[str, Path]
) -> Bundle | None:
    """The bundle at `output` if it is intact and was made from the same inputs; a missed bound is accepted anew."""
    try:
        found = Bundle.open(output, keys=None, supported=VERSIONS)
    except OrinError:
        return None
    same = (found.manifest.recipe, found.manifest.target, found.manifest.model, found.manifest.provenance) == (
        portable(plan.recipe),
        target,
        plan.spec,
        provenance,
    )
    packed = {entry.path: entry.sha256 for entry in found.manifest.files if PurePosixPath(entry.path).suffix == ".so"}
    same = same and packed == {inside: origin.digest(path) for inside, path in libraries.items()}
    same = same and (accept or "accepted" not in found.manifest.report)
    if same:
        say(f"{output} is up to date")
    return found if same else None


def _made(plan: Plan, target: Target, work: Path, provenance: Provenance) -> dict[str, Path]:
    """The folders of the stages, each made now or found complete."""

    def stage(name: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        return stages.run(work, name, inputs, cost.measured(make))

    done: dict[str, Path] = {}
    if plan.undecided():
        done["formats"] = stage("formats", choose.inputs(plan, provenance), lambda folder: choose.run(plan, folder))
        choose.tidy(done["formats"])
    return done | _exported(choose.settled(plan, choose.read(done)), target, provenance, stage)


def _exported(plan: Plan, target: Target, provenance: Provenance, stage: Stage) -> dict[str, Path]:
    """The stages that follow once every weight has its format."""
    on_text = baseline.inputs(plan, provenance)
    model = stage("model", _model_inputs(plan, provenance), lambda folder: _model(plan, folder))
    prepare.tidy(model)
    lint.check(deploy.build(plan.spec, store.read_index(model), plan.recipe), target.stack)
    made = {
        "graph": origin.digest(model / GRAPH),
        "model": json.loads((model / stages.RECORD).read_text(encoding="utf-8")),
    }
    asked = made | {"golden": config.dump(plan.recipe.golden), "shapes": config.dump(plan.recipe.shapes)}
    verified = stage("verify", asked, lambda folder: _verify(plan, model, folder))
    hidden = stage("float", on_text, lambda folder: baseline.run(plan, folder))
    asked = made | {"float": on_text, "chunk": plan.recipe.shapes.chunk}
    evaluated = stage("evaluate", asked, lambda folder: evaluate.run(plan, model / GRAPH, hidden, folder))
    return {"model": model, "verify": verified, "float": hidden, "evaluate": evaluated}


def _model_inputs(plan: Plan, provenance: Provenance) -> dict[str, Any]:
    return {
        "tool": provenance.tool,
        "files": config.dump(provenance.files),
        "quantise": config.dump(plan.recipe.quantise),
        "calibration": provenance.texts.get("calibration"),
        "activations": plan.recipe.activations,
        "capacity": plan.recipe.shapes.capacity,
        "model": config.dump(plan.spec),
    }


def _model(plan: Plan, folder: Path) -> None:
    """Weights one by one, each written once; then the graph over them."""
    total = sum(math.prod(weight.shape) for weight in plan.stored())
    with store.TensorWriter(folder) as writer, progress("quantise", total, "M weights", 1e6) as advance:
        for weight, gram, rounded in prepare.weights(plan, folder):
            if not set(quantise.names_of(weight, plan.recipe)) <= set(writer.entries):
                error = quantise.store(writer, weight, plan.recipe, gram, rounded)
                Findings(folder).error(weight, error)
            advance(math.prod(weight.shape))
    for prefix, count in sorted(plan.unused().items()):
        say(f"not used: {prefix}.* ({count} tensors)")
    built = graph.build(plan.spec, store.read_index(folder), plan.recipe.activations)
    with disk.writing(folder):
        graph.save(built, folder / GRAPH)


def _verify(plan: Plan, model: Path, folder: Path) -> None:
    say("verify: golden tokens, and the graph against its reference")
    engine = open_engine("onnxruntime", model / GRAPH, plan.spec)
    stepper = Stepper(engine, plan.recipe.shapes)
    cases = verify.golden_cases(stepper, plan.tokenizer, plan.recipe, plan.spec.eos)
    sequences = [case.prompt_tokens + case.tokens for case in cases]
    found = verify.agreement(model / GRAPH, engine, sequences, plan.recipe.shapes.chunk)
    verify.check(found)
    record = {"golden": config.dump(cases), "report": found.report()}
    with disk.writing(folder):
        (folder / VERIFIED).write_text(json.dumps(record, sort_keys=True, indent=1) + "\n", encoding="utf-8")


def _judged(
    plan: Plan, target: Target, done: Mapping[str, Path], agreement: dict[str, float], output: Path, accept: bool
) -> dict[str, float]:
    """Write the report; the numbers for the manifest. Raises VerificationError: a missed bound that is not accepted."""
    found = collect(plan, target, done, agreement)
    found = replace(found, accepted=accept and bool(found.missed))
    folder = _report_folder(output)
    page.write(found, folder)
    if not accept:
        gate.refuse(found.missed, folder / HTML)
    return {**agreement, **found.quality.report(), **({"accepted": 1.0} if found.accepted else {})}


def _report_folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.report")


def _assemble(
    plan: Plan, manifest: Manifest, model: Path, folder: Path, key: Path | None, libraries: Mapping[str, Path]
) -> None:
    """Everything that travels, in `folder`, with its manifest."""
    shutil.rmtree(folder, ignore_errors=True)
    sources = {name: model / name for name in (GRAPH, DATA)}
    sources |= {f"tokenizer/{name}": path for name, path in plan.checkpoint.tokenizer_files().items()}
    sources |= libraries
    with disk.writing(folder):
        for name, source in sources.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
        _write_deploy(plan, model, folder)
    with progress("bundle", sum(source.stat().st_size for source in sources.values()), "MB", 1e6) as advance:
        bundle.write(folder, manifest, advance)
    if key is not None:
        bundle.sign(folder, key)


def _write_deploy(plan: Plan, model: Path, folder: Path) -> None:
    """The graph from which a board builds its plan, and where the weights of it lie."""
    entries = store.read_index(model)
    built = deploy.build(plan.spec, entries, plan.recipe)
    graph.save(built, folder / DEPLOY)
    (folder / DEPLOY_WEIGHTS).write_bytes(encode_weights(deploy.weights(built, entries)))


def _replace(made: Path, output: Path) -> None:
    """Put `made` where `output` is; the old folder is gone only when the new one has its name."""
    old = made.with_name(REPLACED)
    with disk.writing(output):
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)
            output.rename(old)
        try:
            made.rename(output)
        finally:
            _put_back(old, output)
        sync_folder(output.parent)


def _put_back(old: Path, output: Path) -> None:
    """Give a bundle its name again if the one that was to replace it never got there."""
    if old.exists() and not output.exists():
        with disk.writing(output):
            old.rename(output)
