"""``actscope capture``: prompts in, activations on disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from actscope.cli._folders import FOLDER
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


def _number_or_auto(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> int | str | None:
    """A number of at least 1, or the word ``auto``."""
    if value is None or value == "auto":
        return value
    return click.IntRange(1)(value, param, ctx)


_MODEL_OPTIONS = (
    click.option("--model", default="demo", show_default=True, help="Hub id, folder, or `demo`."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:0, mps."),
    click.option(
        "--dtype", default="auto", show_default=True, help="Compute dtype: auto, float32, ..."
    ),
    click.option("--revision", help="Branch, tag or commit on the hub."),
    click.option("--adapter", help="LoRA adapter: folder, local checkpoint, or hub id."),
    click.option(
        "--stack",
        type=click.Choice(["encoder", "decoder"]),
        help="Of an encoder-decoder: which stack. The decoder reads the example's `target`.",
    ),
)
_SOURCE_OPTIONS = (
    click.option("--source", help="jsonl, csv, parquet, text, folder of texts, or prompt set."),
    click.option("--prompt", multiple=True, help="A prompt; repeatable."),
    click.option("--text-field", help="Field that holds the text."),
    click.option("--id-field", help="Field that holds the id."),
    click.option("--offset", type=click.IntRange(0), default=0, help="First example."),
    click.option("--limit", type=click.IntRange(0), help="Number of examples."),
)
_WHAT_OPTIONS = (
    click.option(
        "--sites",
        multiple=True,
        default=("resid_post",),
        show_default="resid_post",
        help="Site names, keys, lists such as resid_post[0,-1], or module paths; repeatable.",
    ),
    click.option("--layers", default="all", show_default=True, help="all, or indices: 0,5,-1."),
    click.option(
        "--pool", default="none", show_default=True, help="none, last, first, mean, max, cls, ..."
    ),
    click.option(
        "--span",
        default="all",
        show_default=True,
        help="all, prompt, response, think, answer (the last prompt token), system, user, "
        "assistant (contents of those turns), last:K, START:END, match:REGEX.",
    ),
    click.option("--exclude-special", is_flag=True, help="Leave out BOS and template tokens."),
    click.option("--chat", is_flag=True, help="Make each text a user turn of the chat template."),
    click.option(
        "--on-too-long",
        type=click.Choice(["error", "skip", "truncate-left", "truncate-right"]),
        default="error",
        show_default=True,
        help="What to do with a prompt over the context.",
    ),
    click.option("--max-length", type=click.IntRange(1), help="Longest prompt in tokens."),
)
_ANSWER_OPTIONS = (
    click.option("--generate", type=click.IntRange(1), metavar="N", help="Answer in N tokens."),
    click.option("--temperature", type=float, default=0.7, show_default=True, help="0 is greedy."),
    click.option("--top-p", type=float, default=1.0, show_default=True),
    click.option("--top-k", type=int, default=0, show_default=True, help="0 takes every token."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seeds every example."),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        help=r"End an answer before this text; repeatable. \n and \t are a line end and a tab.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Answers to each prompt, called ID#0, ID#1, ...",
    ),
    click.option(
        "--live/--replay",
        default=None,
        help="Capture answers while decoding, or in a pass afterwards; by default live where the "
        "model allows it.",
    ),
)
_STORE_OPTIONS = (
    click.option("--out", type=FOLDER, help="Folder of the run, or its address: s3://..."),
    click.option(
        "--track",
        help="Keep a record of the run besides: mlflow:URI#EXPERIMENT or jsonl:FILE; "
        "another kind by its name.",
    ),
    click.option("--tag", multiple=True, help="A word to find the run by; repeatable."),
    click.option(
        "--store",
        default="shards",
        show_default=True,
        help="shards, npz, hdf5, pickle or npy_layers.",
    ),
    click.option(
        "--storage-dtype",
        type=click.Choice(["native", "float32", "float16", "bfloat16"]),
        default="native",
        show_default=True,
        help="native stores what was computed.",
    ),
    click.option(
        "--codec",
        type=click.Choice(["int8", "zstd"]),
        help="Fewer bytes: int8 keeps 8 bits a value (MXINT8), zstd loses nothing. Off by default.",
    ),
    click.option("--no-text", is_flag=True, help="Keep text and token ids out of the store."),
    click.option(
        "--batch-tokens",
        callback=_number_or_auto,
        metavar="N|auto",
        help="Padded tokens of a batch; auto, the default, tries what is fastest.",
    ),
    click.option("--batch-size", type=click.IntRange(1), help="Examples of a batch."),
    click.option("--unit-size", type=click.IntRange(1), help="Examples of a unit of work."),
    click.option(
        "--share-prefix",
        type=click.Choice(["off", "auto"]),
        default="off",
        show_default=True,
        help="auto: compute what prompts have in common at their beginning once, where verified.",
    ),
    click.option("--dry-run", is_flag=True, help="Print what it would cost; write nothing."),
)


def _with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    groups = (_MODEL_OPTIONS, _SOURCE_OPTIONS, _WHAT_OPTIONS, _ANSWER_OPTIONS, _STORE_OPTIONS)
    for option in reversed([option for group in groups for option in group]):
        command = option(command)
    return command


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
@_with_options
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
    storage, name = _storage(arguments)
    chosen = _options(arguments)
    _check_words(arguments)
    model = _model(arguments)
    bar = Bar(error_console())
    runner = _runner(arguments, model, dataset, storage, chosen, bar)
    if arguments.dry_run:
        dry = runner.dry_run(run_id=name)
        if arguments.out is not None and dry.units:
            refuse_unwritable(dry.path)
        print_dry_run(console(), dry)
        return
    with bar:
        result = runner.run(run_id=name, tags=arguments.tag)
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

    return open_source(
        arguments.source, text_field=arguments.text_field, id_field=arguments.id_field
    )


def _storage(arguments: CaptureArguments) -> tuple[Storage, str]:
    """The store of ``--out``, and the run's name in it."""
    if arguments.out is None and not arguments.dry_run:
        raise BadInputError(
            "no output folder was given", next_step="--out DIR names the folder of the run"
        )
    from actscope.stores import STORES, is_remote

    folder = (arguments.out or Path("dry-run")).absolute()
    make: Any = STORES.get(arguments.store)
    storage = make(folder.parent)
    if is_remote(folder):  # a server that refuses does so before the model is loaded
        storage.stored_plan(folder.name)
    return storage, folder.name


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
