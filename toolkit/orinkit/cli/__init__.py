# SPDX-License-Identifier: Apache-2.0
"""`orin-run`: the verbs of the board. Heavy imports happen inside the verbs, so that --help is instant."""

from __future__ import annotations

import click

from orinkit.cli.bench import bench
from orinkit.cli.build import build
from orinkit.cli.bundles import inspect, selftest, unpack
from orinkit.cli.doctor import doctor
from orinkit.cli.load import load
from orinkit.cli.program import Program
from orinkit.cli.report import board_report
from orinkit.cli.serve import serve, status
from orinkit.cli.talk import chat, generate

_VERBS = (generate, chat, selftest, inspect, unpack, build, serve, status, load, doctor, bench, board_report)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="orinkit")
def main() -> None:
    """Run language models from bundles that orin-export has written."""


for _verb in _VERBS:
    main.add_command(_verb)
