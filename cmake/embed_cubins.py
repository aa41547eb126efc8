# SPDX-License-Identifier: Apache-2.0
"""Cubins into one assembler file and one C++ table, so that the library carries its device code.

python embed_cubins.py OUT.S OUT.cpp CUBIN ...      each cubin is called <module>.sm_<arch>.cubin
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """See the module's docstring."""
    assembler, table, cubins = Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]]
    blobs = ['.section .rodata, "a"']
    declarations, rows = [], []
    for cubin in cubins:
        module, architecture, _ = cubin.name.split(".")
        symbol = f"orin_cubin_{module}_{architecture}"
        blobs += [f".global {symbol}", f".hidden {symbol}", ".balign 64", f"{symbol}:", f'.incbin "{cubin}"', ".byte 0"]
        declarations.append(f'extern "C" __attribute__((visibility("hidden"))) const unsigned char {symbol}[];')
        rows.append(f'    {{"{module}", {architecture.removeprefix("sm_")}, {symbol}}},')
    blobs.append('.section .note.GNU-stack, "", %progbits')
    assembler.write_text("\n".join(blobs) + "\n", encoding="utf-8")
    lines = [
        '#include "common/driver.h"',
        *declarations,
        "namespace orin {",
        "extern const Cubin cubins[] = {",
        *rows,
        "};",
        f"extern const int num_cubins = {len(rows)};",
        "}  // namespace orin",
    ]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
