# SPDX-License-Identifier: Apache-2.0
"""`orin-export`: the verbs of the host. Heavy imports happen inside the verbs, so that --help is instant."""

from __future__ import annotations

from pathlib import Path

import click

from orinkit.cli.program import Program

_path = click.Path(path_type=Path)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="orinkit")
def main() -> None:
    """Export language models to bundles for Jetson Orin and DRIVE Orin."""


@main.command()
@click.argument("recipe", type=_path)
@click.option("--target", type=_path, required=True, help="The board and its software, a file of targets/.")
@click.option("-o", "--output", type=_path, help="The bundle's folder; without it build/<recipe>-<target>.")
@click.option("--checkpoint", type=_path, help="Folder to read instead of the one that the recipe names.")
@click.option("--sign", "key", type=_path, help="Private key (orin-export keygen) to sign the bundle with.")
@click.option("--accept", is_flag=True, help="Take an export that misses a bound of its recipe; it is recorded.")
@click.option("--allow-nonfinite", is_flag=True, help="Go on where weights hold NaN, infinities or only zeros.")
@click.option("--plugins", type=_path, help="Folder of orin-export plugins; without it a board's are built now.")
@click.option("--no-plugins", is_flag=True, help="Pack no libraries: the bundle runs on ONNX Runtime alone.")
def build(
    recipe: Path,
    target: Path,
    output: Path | None,
    checkpoint: Path | None,
    key: Path | None,
    accept: bool,
    allow_nonfinite: bool,
    plugins: Path | None,
    no_plugins: bool,
) -> None:
    """Quantise a checkpoint and pack it with its graph into a bundle; its report lies beside it in <output>.report.

    A second run with the same inputs does nothing; one that was killed goes on where it was.
    """
    from orinkit import target as targets
    from orinkit_export import crossbuild, plan

    chosen = targets.read(target)
    planned = plan.read(recipe, checkpoint, allow_nonfinite)
    libraries = {} if no_plugins else crossbuild.packed(chosen, plugins)
    from orinkit_export.build import build as make  # half a second, so after what can be refused at once

    folder = output or Path("build") / f"{planned.recipe.name}-{chosen.id}"
    done = make(planned, chosen, folder, key, accept, libraries)
    total = sum(entry.size for entry in done.manifest.files)
    report = done.manifest.report
    click.echo(
        f"{folder}: {total / 1e6:.1f} MB, {len(done.manifest.golden)} golden prompts, "
        f"KL to the reference {report['kl_mean']:.2g}, to the float model {report['quality_kl_mean']:.2g}"
        f"{', which misses a bound' if 'accepted' in report else ''}; {folder}.report/report.html tells more"
    )


@main.command()
@click.argument("bundle", type=_path)
def verify(bundle: Path) -> None:
    """Compare a bundle's graph with the NumPy references of its ops, on its golden prompts."""
    from orinkit.bundle import Bundle
    from orinkit.engines import open_engine
    from orinkit.ops import VERSIONS
    from orinkit_export import verify as numbers

    opened = Bundle.open(bundle, keys=None, supported=VERSIONS)
    manifest = opened.manifest
    engine = open_engine("onnxruntime", opened.graph, manifest.model)
    sequences = [case.prompt_tokens + case.tokens for case in manifest.golden]
    found = numbers.agreement(opened.graph, engine, sequences, manifest.recipe.shapes.chunk)
    for name, value in found.report().items():
        click.echo(f"{name}: {value:.6g}")
    numbers.check(found)


@main.command()
@click.argument("a", type=_path)
@click.argument("b", type=_path)
@click.option("-o", "--output", type=_path, help="Write an HTML page with both as well.")
def compare(a: Path, b: Path, output: Path | None) -> None:
    """Put two exports side by side: what they lost, the errors of their matrices, sizes, time and memory.

    A and B are bundles whose reports lie beside them, or the folders of the reports.
    """
    from orinkit_export.disk import writing
    from orinkit_export.report import compare as side_by_side
    from orinkit_export.report.data import read

    first, second, names = read(a), read(b), (str(a), str(b))
    for line in side_by_side.text(first, second, names):
        click.echo(line)
    if output is not None:
        with writing(output):
            output.write_text(side_by_side.page(first, second, names), encoding="utf-8")


@main.command()
@click.argument("recipe", type=_path)
@click.option("--checkpoint", type=_path, help="Folder to read instead of the one that the recipe names.")
def inspect(recipe: Path, checkpoint: Path | None) -> None:
    """Show what a recipe makes of its checkpoint: architecture, tensors, formats, sizes, and what is not used."""
    from orinkit_export.inspect import describe
    from orinkit_export.plan import read

    for line in describe(read(recipe, checkpoint)):
        click.echo(line)


@main.command()
@click.argument("recipe", type=_path)
@click.option("--target", type=_path, required=True, help="The board and its software, a file of targets/.")
@click.option("--checkpoint", type=_path, help="Folder to read instead of the one that the recipe names.")
@click.option("--engine", help="What will run the graph: tensorrt, cuda or onnxruntime; without it the target's.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.pass_context
def plan(
    ctx: click.Context, recipe: Path, target: Path, checkpoint: Path | None, engine: str | None, as_json: bool
) -> None:
    """Tell how much memory a recipe will need on a target and how fast it will be, before anything is built.

    The checkpoint's config.json suffices. The exit code is 75 where the board's memory does not.
    """
    import json
    import sys

    from orinkit import target as targets
    from orinkit_export import predict, predict_text

    found = predict.predict(predict.read(recipe, checkpoint), targets.read(target), engine)
    if as_json:
        click.echo(json.dumps(predict.as_data(found), indent=2))
    elif sys.stdout.isatty():
        predict_text.show(found)
    else:
        for line in predict_text.plain(found):
            click.echo(line)
    ctx.exit(0 if found.fits else 75)


@main.command()
@click.argument("folder", type=_path)
def schema(folder: Path) -> None:
    """Write JSON Schemas of recipes and targets to FOLDER, for editors."""
    from orinkit_export import schema as schemas

    for path in schemas.write(folder):
        click.echo(path)


@main.command()
@click.argument("key", type=_path)
@click.option("--comment", default="", help="Who or what the key is for; stands in the public file.")
def keygen(key: Path, comment: str) -> None:
    """Make a key pair: KEY is the private half, KEY.pub goes to the boards' folders of trusted keys."""
    from orinkit.bundle import generate

    click.echo(f"{key}.pub: key {generate(key, comment).id}")


@main.command()
@click.argument("bundle", type=_path)
@click.option("--key", type=_path, required=True, help="The private key.")
def sign(bundle: Path, key: Path) -> None:
    """Sign a bundle."""
    from orinkit.bundle import sign as sign_folder

    click.echo(f"{bundle}: signed with key {sign_folder(bundle, key).id}")


@main.command()
@click.argument("bundle", type=_path)
@click.argument("archive", type=_path)
def pack(bundle: Path, archive: Path) -> None:
    """Write a bundle as one .tar file."""
    from orinkit.bundle import pack as pack_folder

    pack_folder(bundle, archive)
    click.echo(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")


@main.command()
@click.option("--target", type=_path, required=True, help="The board and its software, a file of targets/.")
@click.option("-o", "--output", type=_path, help="Folder for the libraries; without it build/plugins/<stack>.")
@click.option("--tensorrt", type=_path, help="A TensorRT SDK or a folder with its headers, instead of what is found.")
@click.option("--nvcc", type=_path, help="The compiler of a CUDA toolkit, instead of NVRTC from PyPI.")
@click.option("--kernels-only", is_flag=True, help="Without TensorRT's plugin interface; needs no headers of it.")
def plugins(target: Path, output: Path | None, tensorrt: Path | None, nvcc: Path | None, kernels_only: bool) -> None:
    """Build the plugin and kernel libraries of a target, here, and check what they ask of it."""
    from orinkit import target as targets
    from orinkit_export import crossbuild

    chosen = targets.read(target)
    folder = output or crossbuild.default_folder(chosen)
    record = crossbuild.build(chosen, folder, crossbuild.Tools(tensorrt, nvcc), not kernels_only)
    for proof in record.libraries:
        click.echo(
            f"{folder / proof.name}: {proof.size / 1e6:.1f} MB for {proof.machine}, "
            f"{', '.join(f'sm_{arch}' for arch in proof.archs)}, glibc {proof.glibc} or later"
        )


@main.command()
@click.option("--release", default="10.3", help="Release of TensorRT; plugins are compiled against 10.3.")
@click.option("--repository", help="What git clones instead of the public repository: a mirror or a folder.")
def sdk(release: str, repository: str | None) -> None:
    """Fetch TensorRT's headers from its public repository into this user's cache, a pinned commit, checked."""
    from orinkit_export import sdk as headers

    click.echo(f"{headers.fetch(release, repository or headers.REPOSITORY)}: headers of TensorRT {release}")
