"""The command line in processes of its own, forked from one that has imported everything.

To import torch takes a new interpreter seconds, so tests start new ones only where that is the point.
"""

import multiprocessing
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tokred.cli", "tokred.testing", "tokred.evaluation.comparison", "tokred.report.outputs"]
)


@dataclass(frozen=True)
class Done:
    """What a process left: its exit code, negative for a signal, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Command:
    """A running command.

    Args:
        folder: a folder for what it prints.
        arguments: the command and its options.
        path: a folder to import from first.
        environment: variables beside those of this process.
        settings: module attributes to set before it runs, by "module.attribute".
        program: what is called, by "module.function".
    """

    def __init__(
        self, folder, *arguments, path=None, environment=None, settings=None, program="tokred.cli.main"
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(environment or {})}
        self.process = CONTEXT.Process(
            target=_main,
            args=(self.folder, [*map(str, arguments)], path, variables, settings or {}, program),
        )
        self.process.start()

    def running(self):
        return self.process.is_alive()

    def send_signal(self, number):
        if self.running():
            os.kill(self.process.pid, number)

    def wait(self, timeout=540):
        """Wait for its end, which must come before the timeout."""
        self.process.join(timeout)
        if self.running():
            self.process.kill()
            raise TimeoutError(f"{self.process.name} did not end within {timeout} s")
        texts = [(self.folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        return Done(self.process.exitcode, *texts)


def together(folder, world, *arguments, settings=None):
    """Run a command in several processes that share it, as torchrun starts them.

    Args:
        folder: a folder for what they print.
        world: the number of processes.
        arguments: the command and its options.
        settings: module attributes to set before it runs, as for `Command`.

    Returns:
        What each of them left.
    """
    where = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    commands = [
        Command(
            Path(folder) / str(rank),
            *arguments,
            environment={**where, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            settings=settings,
        )
        for rank in range(world)
    ]
    return [command.wait() for command in commands]


def free_port():
    """A port that no program on this machine listens at, as text."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _main(folder, arguments, path, variables, settings, program):
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    multiprocessing.set_start_method(None, force=True)  # as in a new interpreter, not that of the parent
    os.environ.clear()
    os.environ.update(variables)
    if path is not None:
        sys.path.insert(0, str(path))
    from importlib import import_module

    for name, value in settings.items():
        module, attribute = name.rsplit(".", 1)
        setattr(import_module(module), attribute, value)
    sys.argv = ["tokred", *arguments]
    module, function = program.rsplit(".", 1)
    sys.exit(getattr(import_module(module), function)())
