"""The command line: ``fairness-monitor COMMAND``."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from monitor import __version__, plan, tasks
from monitor.alerts import AlertState, Transition
from monitor.config import Config
from monitor.config_file import load_config
from monitor.errors import MonitorError
from monitor.events import Contract
from monitor.render import render
from monitor.replay import replay as run_replay
from monitor.sinks.dead_letter import DeadLetters
from monitor.sources.files import FileInput, Format
from monitor.sources.files import Progress as Consumed

if TYPE_CHECKING:
    from monitor.store import Store

app = typer.Typer(
    name="fairness-monitor",
    help="Watches a deployed model for fairness gaps between groups, and says when one opens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


_EXAMPLES = (
    {"type": "binary", "score": {"range": [0, 1]}},
    {"type": "regression", "range": [0, 1]},
    {"type": "speech", "input": "texts"},
    {"type": "speech", "input": "counts"},
    {"type": "score", "range": [0, 1]},
)
"""Tasks whose events ``schema`` prints without a configuration; ranges are examples."""


_M_MMAP_THRESHOLD = -3
_STYLES = {AlertState.FIRING: "bold red", AlertState.RESOLVED: "green"}


class OutputFormat(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


class InputFormat(StrEnum):
    """How an input is read."""

    AUTO = "auto"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="the YAML configuration")]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"fairness-monitor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


@app.command()
def replay(
    config: ConfigPath,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE=]INPUT…",
            help="files (JSONL, CSV, Parquet, .gz) or - for standard input; SOURCE names the source of the "
            "configuration whose fields it has; without any, the paths of the sources",
        ),
    ] = None,
    output: Annotated[
        OutputFormat, typer.Option("--format", "-f", help="how to print the result")
    ] = OutputFormat.TABLE,
    dead_letters: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="write rejected events here, in place of dead_letter.path"),
    ] = None,
) -> None:
    """Read files to their end and print what the monitor would have said.

    Alerts go to standard error as they happen, the result to standard output. Exit code 0 whether or
    not alerts fired, 2 when the configuration or an input cannot be used.
    """
    settings = load_config(config, os.environ)
    files = _inputs(settings, inputs or [])
    if dead_letters == "-":
        raise MonitorError("dead letters go to a file: name one after --dead-letters")
    consumed = Consumed()
    with (
        DeadLetters(dead_letters or settings.dead_letter.path) as letters,
        _progress("reading", sum(f.size for f in files)) as bar,
    ):
        task = bar.task_ids[0]

        def tell(transitions: Sequence[Transition]) -> None:
            for transition in transitions:
                style = _STYLES.get(transition.state, "")
                bar.console.print(str(transition), style=style, markup=False, highlight=False, soft_wrap=True)

        result = run_replay(
            settings,
            files,
            now_ms=_now_ms,
            dead_letters=letters,
            progress=consumed,
            on_transitions=tell,
            on_batch=lambda: bar.update(task, completed=consumed.bytes),
        )
    document = result.document()
    if output is OutputFormat.JSON:
        sys.stdout.write(json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
        return
    render(document, {name: model.task.type for name, model in settings.models.items()}, out)
    if "late" in result.rejects:
        err.print(
            "late events came after their time bucket had closed: sort each file by event time, or raise "
            "time.grace to the disorder they have",
            style="yellow",
        )
    if result.rejects and not (dead_letters or settings.dead_letter.path):
        err.print("--dead-letters FILE keeps the rejected events with their reasons", style="dim")


@app.command()
def run(
    config: ConfigPath,
    log_level: Annotated[LogLevel, typer.Option(help="what is logged")] = LogLevel.INFO,
) -> None:
    """Watch topics and posted events until told to stop.

    Serves /metrics, /livez and /readyz, sends alerts, and logs JSON lines to standard output. SIGTERM and
    Ctrl-C end it in order: what was taken in is counted, positions are committed, alerts are sent.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    from monitor.logs import set_up_logs
    from monitor.service import Service

    settings = load_config(config, os.environ)
    set_up_logs(log_level.upper())
    Service(settings).run(stop)


state = typer.Typer(help="Look at the durable state of a monitor that does not run.", no_args_is_help=True)
app.add_typer(state, name="state")

StatePath = Annotated[
    Path, typer.Argument(metavar="STATE", help="the state's folder, or a configuration that names it")
]


@state.command()
def info(path: StatePath) -> None:
    """Print sizes, counts and the last commit as JSON."""
    with _stored(path) as store:
        sys.stdout.write(json.dumps(store.info(), indent=1) + "\n")


@state.command()
def verify(path: StatePath) -> None:
    """Read everything and check it. Exit code 1 when something is damaged."""
    with _stored(path) as store:
        problems = store.verify()
    for problem in problems:
        err.print(problem, style="red", markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    out.print("the state is whole")


@state.command()
def export(path: StatePath) -> None:
    """Print what the events have come to, one JSON value per line; equal for equal events."""
    from monitor.checkpoint import canonical_document

    with _stored(path) as store:
        sys.stdout.buffer.write(store.export(canonical_document))


def _stored(path: Path) -> Store:
    from monitor.store import Store

    directory = path
    if not path.is_dir():
        stated = load_config(path, os.environ).state.directory
        if stated is None:
            raise MonitorError(f"{path} names no state.directory: name the folder itself")
        directory = Path(stated)
    if not (directory / "state.db").exists():
        raise MonitorError(f"there is no state in {directory}")
    return Store.open(directory, now_ms=_now_ms)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="INPUT", help="a file, or - for standard input")],
    sample: Annotated[int, typer.Option(min=1, help="records to look at")] = 5000,
    form: Annotated[
        InputFormat, typer.Option("--format", help="how to read it; by its name without this")
    ] = InputFormat.AUTO,
    config: Annotated[
        Path | None, typer.Option(help="judge the sample by this configuration, and propose nothing")
    ] = None,
) -> None:
    """Look into an input and propose a configuration for it.

    The proposal goes to standard output, so that ``inspect FILE > monitor.yaml`` makes a first
    configuration; what was found goes to standard error.
    """
    from monitor.inspection import inspect_input
    from monitor.inspection import render as render_inspection

    settings = None if config is None else load_config(config, os.environ)
    source = settings.sources[0].name if settings is not None else "events"
    with err.status(f"looking at {path}"):
        found = inspect_input(
            FileInput(path, source, _form(form)), sample=sample, config=settings, now_ms=_now_ms
        )
    render_inspection(found, err)
    if settings is None:
        sys.stdout.write(found.proposal)


@app.command("check-config")
def check_config(config: ConfigPath) -> None:
    """Report every problem of a configuration, or what it would run and take."""
    settings = load_config(config, os.environ)
    out.print(plan.render(plan.describe(settings)), markup=False, soft_wrap=True)


@app.command()
def schema(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="print the models of this configuration")
    ] = None,
) -> None:
    """Print the JSON Schema of the events: prediction, outcome and joined, by model or by task."""
    contracts: dict[str, object] = {}
    if config is not None:
        for name, model in load_config(config, os.environ).models.items():
            bound = model.weights.bound if model.weights else None
            contracts[name] = Contract.of(model.build_task().fields, bound).schema()
    else:
        for example in _EXAMPLES:
            options = TypeAdapter[tasks.TaskConfig](tasks.TaskConfig).validate_python(example)
            name = " ".join(str(v) for k, v in example.items() if k in ("type", "input"))
            contracts[name] = Contract.of(tasks.build(options).fields).schema()
    sys.stdout.write(json.dumps(contracts, indent=1, ensure_ascii=False) + "\n")


@app.command()
def demo(
    exit_at_end: Annotated[
        bool, typer.Option("--exit", help="end with the summary; without it the last view stays")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="keep the demo's events and configuration here"),
    ] = None,
    config: Annotated[
        bool, typer.Option("--config", help="print the demo's configuration, and do nothing else")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="other patients, same story")] = 7,
    speed: Annotated[float, typer.Option(help="times the usual pace")] = 1.0,
    kafka: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="send the events to topics predictions and outcomes, with times of now"
        ),
    ] = None,
    rate: Annotated[float, typer.Option(help="with --kafka: utterances a second")] = 10.0,
    seconds: Annotated[float | None, typer.Option(help="with --kafka: stop after this long")] = None,
) -> None:
    """Watch a hospital transcription service: half-way, a new scanner disturbs one ward.

    With --kafka the same hospital feeds a monitor that runs: the gap opens and closes in turns of 10 minutes.
    """
    from monitor import demo as show

    if kafka is not None:
        from monitor.demo.produce import produce

        def tell(line: str) -> None:
            out.print(line, markup=False, soft_wrap=True)

        produce(kafka, rate=rate, seconds=seconds, seed=seed, tell=tell)
        return
    if config:
        sys.stdout.write(show.CONFIG)
        return
    show.run(console=out, exit_at_end=exit_at_end, seed=seed, speed=speed, out=folder)


@app.command()
def bench(
    events: Annotated[int, typer.Option(min=10_000, help="events in the file")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="turns of every loop; the best counts")] = 2,
    output: Annotated[
        OutputFormat, typer.Option("--format", "-f", help="how to print the result")
    ] = OutputFormat.TABLE,
) -> None:
    """Measure replay beside bare loops over the same file, as ratios of CPU time."""
    from monitor import bench as benchmark

    with err.status("measuring") as status:
        result = benchmark.run(events, rounds, status.update)
    if output is OutputFormat.JSON:
        sys.stdout.write(json.dumps(result.document(), indent=1) + "\n")
    else:
        benchmark.render(result, out)


def _inputs(config: Config, given: list[str]) -> list[FileInput]:
    sources = {s.name: s for s in config.sources}
    if not given:
        files = [FileInput(p, s.name, s.format) for s in config.sources for p in s.paths]
        if not files:
            raise MonitorError("there is nothing to read: name an input, or set paths in the configuration")
        return _checked(files)
    files = []
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or (name not in sources and Path(text).exists()):
            if len(sources) > 1:
                known = ", ".join(f"{n}={text}" for n in sources)
                raise MonitorError(f"which source is {text} of? The configuration has several: write {known}")
            name, path = next(iter(sources)), text
        if name not in sources:
            raise MonitorError(f"the configuration has no source {name!r}; it has {', '.join(sources)}")
        files.append(FileInput(path, name, sources[name].format))
    return _checked(files)


def _checked(files: list[FileInput]) -> list[FileInput]:
    problems = [f"there is no file {f.path}" for f in files if f.path != "-" and not Path(f.path).exists()]
    problems += [f"{f.path} is a folder: name the files in it" for f in files if Path(f.path).is_dir()]
    if problems:
        raise MonitorError("\n".join(problems))
    if sum(f.path == "-" for f in files) > 1:
        raise MonitorError("standard input (-) can be read once only")
    return files


def _form(form: InputFormat) -> Format:
    forms: dict[InputFormat, Format] = {
        InputFormat.AUTO: "auto",
        InputFormat.JSONL: "jsonl",
        InputFormat.CSV: "csv",
        InputFormat.PARQUET: "parquet",
    }
    return forms[form]


def _progress(title: str, total: int) -> Progress:
    """A progress bar on standard error that is gone when it ends; none where nobody watches."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn(title),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    bar.add_task(title, total=total or None)
    return bar


def _return_large_arrays() -> None:
    """Have glibc hand arrays of a megabyte or more back to the system when they are freed.

    Its threshold rises with every large array it sees freed, and memory that could be returned stays.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def main() -> None:
    """Run a command; problems the user can mend are printed as sentences, with exit code 2."""
    gc.set_threshold(100_000)  # batches make many objects and no cycles
    _return_large_arrays()
    try:
        app(standalone_mode=True)
    except MonitorError as error:
        err.print(str(error), style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        err.print(f"cannot write the result: {error.strerror or error}", style="red", markup=False)
        sys.exit(2)
