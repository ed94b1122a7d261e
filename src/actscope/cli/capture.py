"""``actscope capture``: prompts in, activations on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from actscope.cli._capture_options import with_options
from actscope.cli._errors import safe_if_stopped
from actscope.core.errors import BadInputError, RunError

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel
    from actscope.capture import ActivationExtractor, CaptureOptions, DatasetRunner
    from actscope.capture.progress import Progress
    from actscope.core.protocols import GenerationParams, Storage, Tracker

__all__ = ["COMMAND", "CaptureArguments"]


@dataclass(frozen=True)
class CaptureArguments:
    """What was written on the command line, by option name."""

    model: str
    device: str
    dtype: str
    revision: str | None
    adapter: str | None
    stack: str | None
    source: str | None
    prompt: tuple[str, ...]
    text_field: str | None
    id_field: str | None
    offset: int
    limit: int | None
    sites: tuple[str, ...]
    layers: str
    pool: str
    span: str
    exclude_special: bool
    chat: bool
    on_too_long: str
    max_length: int | None
    generate: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: tuple[str, ...]
    samples: int
    live: bool | None
    out: Path | None
    track: str | None
    tag: tuple[str, ...]
    store: str
    storage_dtype: str
    codec: str | None
    no_text: bool
    batch_tokens: int | str | None
    batch_size: int | None
    unit_size: int | None
    share_prefix: str
    dry_run: bool


@click.command(
    "capture",
    short_help="Capture activations of prompts into a run on disk.",
    epilog="""\b
Examples:
  actscope capture --prompt "The cat sat on the mat." --out runs/cat
  actscope capture --source a.jsonl --sites resid_post,attn_out --layers 0,-1 --out runs/a
  actscope capture --source b.csv --text-field question --pool mean --out runs/b
  actscope capture --source c.txt --chat --generate 50 --out runs/c
""",
)
@with_options
@click.pass_context
def capture(ctx: click.Context, **options: Any) -> None:
    """Capture activations of prompts into a run on disk. The same command again resumes."""
    arguments = CaptureArguments(**options)
    _refuse_idle(ctx, arguments)
    from actscope.capture.disk import refuse_unwritable
    from actscope.cli._console import console, counted, error_console
    from actscope.cli._progress import Bar
    from actscope.cli._summaries import failures_line, print_dry_run, print_result

    dataset = _dataset(arguments)
    storage, folder = _storage(arguments)
    chosen = _options(arguments)
    _check_words(arguments)
    model = _model(arguments)
    bar = Bar(error_console())
    runner = _runner(arguments, model, dataset, storage, chosen, bar)
    if arguments.dry_run:
        dry = runner.dry_run(run_id=folder.name)
        if arguments.out is not None and dry.units:
            refuse_unwritable(dry.path)
        print_dry_run(console(), dry)
        return
    with bar, safe_if_stopped(folder):
        result = runner.run(run_id=folder.name, tags=arguments.tag)
    print_result(console(), result)
    if result.failures and not result.captured and not result.resumed:
        failed = counted(sum(result.failures.values()), "example")
        raise RunError(
            f"nothing was captured: {failed} failed",
            got=failures_line(result.failures),
            next_step="the run keeps them on record, runs show tells why; capture into a new "
            "folder once that is mended",
        )


def _has_bare_layer_site(sites: tuple[str, ...]) -> bool:
    """Whether ``--layers`` has anything to say: ``resid_post`` does, ``resid_post.3`` does not."""
    from actscope.core.sites import split_sites, takes_layers

    return any(takes_layers(word) for text in sites for word in split_sites(text))


def _refuse_idle(ctx: click.Context, arguments: CaptureArguments) -> None:
    """Options that were written and would do nothing."""
    needs: dict[str, tuple[str, ...]] = {}
    if arguments.prompt and arguments.source is None:
        needs["--source"] = ("text_field", "id_field")
    if arguments.generate is None:
        needs["--generate"] = (
            "temperature", "top_p", "top_k", "seed", "stop", "samples", "live",
        )  # fmt: skip
    if not _has_bare_layer_site(arguments.sites):
        needs["a bare site such as resid_post in --sites"] = ("layers",)
    for needed, names in needs.items():
        for name in names:
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                option = _written(arguments, name)
                raise BadInputError(
                    f"{option} has no effect without {needed}",
                    next_step=f"leave {option} out, or add {needed}",
                )


def _written(arguments: CaptureArguments, name: str) -> str:
    if name == "live":
        return "--live" if arguments.live else "--replay"
    return "--" + name.replace("_", "-")


def _dataset(arguments: CaptureArguments) -> object:
    if arguments.source is not None and arguments.prompt:
        raise BadInputError("give --source or --prompt, not both")
    if arguments.prompt:
        return list(arguments.prompt)
    if arguments.source is None:
        raise BadInputError(
            "there is nothing to capture",
            next_step='--source FILE, or --prompt "some text" (repeatable)',
        )
    from actscope.sources import open_source

    source = open_source(
        arguments.source, text_field=arguments.text_field, id_field=arguments.id_field
    )
    if not len(source):
        raise BadInputError(
            f"{arguments.source} holds no example",
            expected="a dataset of at least one",
            next_step="fill it first: a run of an empty dataset would refuse it once it is filled",
        )
    return source


def _storage(arguments: CaptureArguments) -> tuple[Storage, Path]:
    """The store of ``--out``, and the folder of the run in it."""
    if arguments.out is None and not arguments.dry_run:
        raise BadInputError(
            "no output folder was given", next_step="--out DIR names the folder of the run"
        )
    from actscope.stores import STORES, is_remote

    folder = (arguments.out or Path("dry-run")).absolute()
    make: Any = STORES.get(arguments.store)
    storage = make(folder.parent)
    if is_remote(folder.parent):  # a server that refuses does so before the model is loaded
        storage.stored_plan(folder.name)
    return storage, folder


def _model(arguments: CaptureArguments) -> HFModel:
    from actscope.cli._models import describe, load

    a = arguments
    model = load(
        a.model,
        device=a.device,
        dtype=a.dtype,
        revision=a.revision,
        adapter=a.adapter,
        stack=a.stack,
    )
    click.echo(describe(model), err=True)
    return model


def _check_words(arguments: CaptureArguments) -> None:
    """What can be wrong without a model is said before the model is loaded."""
    from actscope.core.text import Span
    from actscope.strategies import as_strategy

    as_strategy(arguments.pool)
    Span.parse(arguments.span)


def _runner(
    arguments: CaptureArguments,
    model: HFModel,
    dataset: object,
    storage: Storage,
    options: CaptureOptions,
    progress: Progress,
) -> DatasetRunner:
    from actscope.capture.runner import DatasetRunner

    return DatasetRunner(
        dataset,
        arguments.batch_size,
        _extractor(arguments, model),
        storage,
        options=options,
        progress=progress,
        tracker=_tracker(arguments),
    )


def _tracker(arguments: CaptureArguments) -> Tracker | None:
    if arguments.track is None or arguments.dry_run:
        return None
    from actscope.trackers import tracker

    return tracker(arguments.track)


def _extractor(arguments: CaptureArguments, model: HFModel) -> ActivationExtractor:
    from actscope.capture.extractor import ActivationExtractor
    from actscope.core.text import Span

    return ActivationExtractor(
        model,
        arguments.layers,
        arguments.pool,
        sites=",".join(arguments.sites),
        span=Span.parse(arguments.span, exclude_special=arguments.exclude_special),
    )


def _options(arguments: CaptureArguments) -> CaptureOptions:
    from actscope.capture.options import CaptureOptions

    a = arguments
    if a.batch_size is not None and a.batch_tokens is not None:
        raise BadInputError("give --batch-size or --batch-tokens, not both")
    default = CaptureOptions()
    return CaptureOptions(
        batch_tokens=a.batch_tokens or default.batch_tokens,
        unit_size=a.unit_size,
        offset=a.offset,
        limit=a.limit,
        on_too_long=a.on_too_long,
        max_length=a.max_length,
        chat=a.chat,
        generation=_generation(a),
        keep_text=not a.no_text,
        storage_dtype=a.storage_dtype,
        codec=a.codec,
        share_prefix=a.share_prefix,
    )


def _generation(arguments: CaptureArguments) -> GenerationParams | None:
    if arguments.generate is None:
        return None
    from actscope.core.protocols import GenerationParams

    a = arguments
    capture = "auto" if a.live is None else "live" if a.live else "replay"
    return GenerationParams(
        a.generate or 1,
        a.temperature,
        a.top_p,
        a.top_k,
        a.seed,
        tuple(_unescaped(text) for text in a.stop),
        a.samples,
        capture,
    )


def _unescaped(text: str) -> str:
    r"""``\n``, ``\t`` and ``\\`` as what they stand for: a shell makes them hard to write."""
    marks = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
    return re.sub(r"\\[nt\\]", lambda found: marks[found[0]], text)


COMMAND = capture
