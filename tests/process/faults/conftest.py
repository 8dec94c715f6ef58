"""One bench per operation and test process: what is set up once is struck many times."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.commandline import CommandLines
from tests.process.faults.bench import Bench
from tests.process.faults.operations import OPERATIONS


@pytest.fixture(scope="session")
def command_lines() -> Iterator[CommandLines]:
    with CommandLines() as lines:
        yield lines


class Benches:
    """By operation, made when first asked for."""

    def __init__(self, lines: CommandLines) -> None:
        self._lines = lines
        self._made: dict[str, Bench] = {}

    @contextlib.contextmanager
    def at(self, operation: str) -> Iterator[Bench]:
        """Work at a bench. When that fails it is thrown away: nobody knows what is left there."""
        if operation not in self._made:
            fresh = Bench(OPERATIONS[operation], self._lines)
            try:
                with fresh.entered():
                    fresh.set_up()
            except BaseException:
                fresh.give_up()
                raise
            self._made[operation] = fresh
        bench = self._made[operation]
        try:
            with bench.entered():
                yield bench
        except BaseException:
            self._made.pop(operation).give_up()
            raise

    def close(self) -> dict[str, list[str]]:
        """End all; what was left where."""
        left = {}
        for name, bench in self._made.items():
            with bench.entered():
                left[name] = bench.close()
            bench.give_up()
        return {name: words for name, words in left.items() if words}


@pytest.fixture(scope="session")
def benches(command_lines: CommandLines) -> Iterator[Callable[[str], AbstractContextManager[Bench]]]:
    made = Benches(command_lines)
    yield made.at
    assert made.close() == {}
