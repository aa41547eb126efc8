# SPDX-License-Identifier: Apache-2.0
"""Grammars are tried in a process that can be killed, before the worker sees them: compiling may not end.

The child reads lines of JSON: first the tokenizer, then one grammar a line; it answers each with a line, nothing or
what is wrong. It starts with the first grammar and lives on; one that takes too long, or too much memory, ends it. What
counts is its own processor time, so that a busy machine refuses nobody; the clock is held against what merely waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import sys
from collections.abc import Sequence

from orinkit.errors import EngineError, RequestError, ServiceError
from orinkit.runtime.grammar import Grammar, Grammars
from orinkit.runtime.tokenizer import TOKENIZER, Tokenizer

COMPILE_SECONDS = 0.5
"""Processor time for one grammar."""
PATIENCE_SECONDS = 5.0
"""Time for its answer."""
START_SECONDS = 20.0
_MEMORY = 4 << 30
"""Bytes of address space of the child."""
_LINE = 1 << 20
COMMAND = (sys.executable, "-m", "orinkit.serve.trial")


class Trial:
    """The child, and the lock that lets one grammar in at a time."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab: int,
        eos: tuple[int, ...],
        command: Sequence[str] = COMMAND,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._first = json.dumps({"tokenizer": tokenizer.serialised, "vocab": vocab, "eos": eos}).encode() + b"\n"
        self._command = command
        self._patience = patience
        self._child: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def check(self, grammar: Grammar) -> None:
        """Raises ServiceError 400: it is wrong, or takes too long; 503: there is nothing to try it with."""
        async with self._lock:
            if self._child is None or self._child.returncode is not None:
                self._child = await self._start()
            wrong = await self._say(
                self._child, json.dumps([grammar.kind, grammar.text]).encode() + b"\n", self._patience
            )
        if wrong is None:
            await self.close()
            wrong = f"expected one that is compiled within {COMPILE_SECONDS:g} s"
        if wrong:
            raise ServiceError(f"response_format: {wrong}", 400, "invalid_grammar", param="response_format")

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe, limit=_LINE)
        if await self._say(child, self._first, START_SECONDS) != "":
            await _end(child)
            raise ServiceError("this server cannot constrain answers", 503, "no_grammars")
        return child

    async def _say(self, child: asyncio.subprocess.Process, line: bytes, seconds: float) -> str | None:
        """What the child answers to a line; None: nothing in its time."""
        if child.stdin is None or child.stdout is None:
            return None
        try:
            child.stdin.write(line)
            told = await asyncio.wait_for(child.stdout.readline(), seconds)
            return str(json.loads(told)) if told else None
        except (asyncio.TimeoutError, ConnectionError, ValueError):
            return None

    async def close(self) -> None:
        """Kill the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            await _end(child)


async def _end(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.kill()
    await child.wait()


def main() -> None:
    """The child: tries what it is given until its input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    first = json.loads(sys.stdin.readline())
    try:
        tokenizer = Tokenizer.parse({TOKENIZER: first["tokenizer"].encode()})
        grammars = Grammars(tokenizer, first["vocab"], tuple(first["eos"]))
    except EngineError as error:
        _answer(str(error))
        return
    _answer("")
    for line in sys.stdin:
        kind, text = json.loads(line)
        # Nobody handles SIGPROF, so the kernel ends this process when its time is over, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, COMPILE_SECONDS)
        try:
            grammars.compile(Grammar(kind, text)).mask()
        except (RequestError, EngineError) as error:
            told = str(error)[:500]
        else:
            told = ""
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(told)


def _answer(text: str) -> None:
    sys.stdout.write(json.dumps(text) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
