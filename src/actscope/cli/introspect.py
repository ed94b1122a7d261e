"""``actscope introspect``: what a model answers, how sure it says it is, and what is inside."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actscope.cli._folders import LOCAL_FOLDER
from actscope.core.errors import BadInputError

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel
    from actscope.studies.introspection.data import Collection
    from actscope.studies.introspection.params import CollectParams
    from actscope.studies.introspection.passes import Pass

__all__ = ["COMMAND"]


@click.group("introspect", short_help="Answers, stated confidence, and what lies behind them.")
def introspect() -> None:
    """Ask questions in three ways, keep every activation, and study what confidence is made of."""


_COLLECT_OPTIONS = (
    click.option(
        "--model-type",
        type=click.Choice(["base", "finetuned"]),
        default="base",
        show_default=True,
        help="The plain model, or with a LoRA adapter.",
    ),
    click.option(
        "--base-model", "--model", default="demo", show_default=True, help="Hub id, folder, `demo`."
    ),
    click.option(
        "--lora-checkpoint",
        help="Adapter of a finetuned model: a folder, a name under local_checkpoints/, a hub id. "
        "With the bundled model: demo-lora.",
    ),
    click.option("--output-dir", type=LOCAL_FOLDER, help="Folder of the collection."),
    click.option(
        "--dataset-path",
        default="demo:mcq/marren",
        show_default=True,
        help="Questions: .jsonl, .json or .parquet (ours, MMLU's or TriviaQA's fields), "
        "demo:mcq/NAME, or hf:OWNER/NAME:CONFIG:SPLIT.",
    ),
    click.option("--num-questions", type=click.IntRange(1), help="How many; the rest by default."),
    click.option("--offset", type=click.IntRange(0), default=0, help="The first question."),
    click.option(
        "--which-questions",
        default="mcq,self,other",
        show_default=True,
        help="Passes: mcq, self, other.",
    ),
    click.option("--layers", default="all", show_default=True, help="all, or indices: 0,5,-1."),
    click.option(
        "--dtype",
        type=click.Choice(["float16", "float32"]),
        default="float16",
        show_default=True,
        help="Of the stored activations; what does not fit float16 stops the run.",
    ),
    click.option("--templates", help="marren, general, or a folder with the same files."),
    click.option("--seed", type=int, default=0, show_default=True, help="Order of the options."),
    click.option("--batch-size", type=click.IntRange(1), help="Prompts in one forward pass."),
    click.option("--batch-tokens", type=click.IntRange(1), help="Padded tokens of a pass."),
    click.option(
        "--share-prefix",
        type=click.Choice(["auto", "off"]),
        default="auto",
        show_default=True,
        help="auto computes what the passes of a question have in common once, where the model was "
        "found to give the values of plain passes.",
    ),
    click.option("--unit-size", type=click.IntRange(1), help="Questions saved at once."),
    click.option("--generate", type=click.IntRange(1), metavar="N", help="Sample output_text."),
    click.option("--temperature", type=float, default=0.7, show_default=True),
    click.option("--top-p", type=float, default=1.0, show_default=True),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:0, mps."),
    click.option("--compute-dtype", default="auto", show_default=True, help="Of the model."),
    click.option("--revision", help="Branch, tag or commit on the hub."),
    click.option("--dry-run", is_flag=True, help="Print what it would cost; write nothing."),
)


def _with(options: tuple[Callable[..., Any], ...]) -> Callable[..., Any]:
    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@dataclass(frozen=True)
class _Arguments:
    """What was written on the command line, by option name."""

    model_type: str
    base_model: str
    lora_checkpoint: str | None
    output_dir: Path | None
    dataset_path: str
    num_questions: int | None
    offset: int
    which_questions: str
    layers: str
    dtype: str
    templates: str | None
    seed: int
    batch_size: int | None
    batch_tokens: int | None
    share_prefix: str
    unit_size: int | None
    generate: int | None
    temperature: float
    top_p: float
    device: str
    compute_dtype: str
    revision: str | None
    dry_run: bool


@introspect.command(
    "collect",
    epilog="""\b
Examples:
  actscope introspect collect --num-questions 10 --output-dir test_run_base
  actscope introspect collect --model-type finetuned --output-dir full_run_finetuned
""",
)
@_with(_COLLECT_OPTIONS)
def collect(**options: Any) -> None:
    """Ask every question in three passes; keep answers, letter distributions and activations.

    The same command again goes on where it stopped. Ctrl-C stops after the batch in hand.
    """
    arguments = _Arguments(**options)
    params = _params(arguments)
    from actscope.cli._console import console, error_console
    from actscope.cli._errors import safe_if_stopped
    from actscope.cli._introspect import print_budget, print_collected
    from actscope.cli._progress import Bar
    from actscope.studies.introspection.collect import collect as run
    from actscope.studies.introspection.collect import dry_run

    model = _model(arguments)
    if arguments.dry_run:
        print_budget(console(), dry_run(model, params))
        return
    with Bar(error_console()) as bar, safe_if_stopped(params.output_dir):
        done = run(model, params, bar)
    print_collected(console(), done)


def _params(arguments: _Arguments) -> CollectParams:
    from actscope.core.protocols import GenerationParams
    from actscope.studies.introspection.params import CollectParams
    from actscope.studies.introspection.passes import passes_named

    a = arguments
    if a.output_dir is None and not a.dry_run:
        raise BadInputError(
            "no output folder was given", next_step="--output-dir DIR names the folder"
        )
    generate = None
    if a.generate is not None:
        generate = GenerationParams(a.generate, a.temperature, a.top_p, seed=a.seed)
    return CollectParams(
        output_dir=a.output_dir or Path("dry-run"),
        dataset=a.dataset_path,
        num_questions=a.num_questions,
        offset=a.offset,
        seed=a.seed,
        passes=passes_named(a.which_questions),
        layers=_layers(a.layers),
        dtype=a.dtype,
        templates=a.templates,
        batch_size=a.batch_size,
        batch_tokens=a.batch_tokens,
        share_prefix=a.share_prefix,
        unit_size=a.unit_size,
        generate=generate,
    )


def _layers(text: str) -> str | tuple[int, ...]:
    if text == "all":
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BadInputError("layers are all, or indices", got=text, expected="0,5,-1") from None


def _model(arguments: _Arguments) -> HFModel:
    from actscope.cli._models import describe, load
    from actscope.studies.introspection.params import ADAPTER

    a = arguments
    adapter = a.lora_checkpoint
    if a.model_type == "base" and adapter is not None:
        raise BadInputError(
            "--lora-checkpoint has no effect on the base model",
            next_step="add --model-type finetuned, or leave it out",
        )
    if a.model_type == "finetuned" and adapter is None:
        if a.base_model != "demo":
            raise BadInputError(
                "a finetuned model needs its adapter",
                next_step="--lora-checkpoint FOLDER, a name under local_checkpoints/, or a hub id",
            )
        adapter = ADAPTER
    model = load(
        a.base_model, device=a.device, dtype=a.compute_dtype, revision=a.revision, adapter=adapter
    )
    click.echo(describe(model), err=True)
    return model


@introspect.command(
    "inspect",
    epilog="""\b
Examples:
  actscope introspect inspect --data-dir test_run_base/mcq --show-examples 3
  actscope introspect inspect --data-dir full_run_base/mcq --compare-with full_run_finetuned/mcq
""",
)
@click.option(
    "--data-dir", type=LOCAL_FOLDER, required=True, help="A collection, or one of its passes."
)
@click.option(
    "--show-examples", type=click.IntRange(0), default=0, metavar="N", help="Rows to show."
)
@click.option("--compare-with", type=LOCAL_FOLDER, help="Another collection of the same questions.")
@click.option("--prompt-type", help="mcq, self or other, where --data-dir is the whole collection.")
@click.option("--check-all-types", is_flag=True, help="All passes, one after the other.")
@click.option("--figure/--no-figure", default=True, help="Save a picture in the collection.")
def inspect_(
    data_dir: Path,
    show_examples: int,
    compare_with: Path | None,
    prompt_type: str | None,
    check_all_types: bool,
    figure: bool,
) -> None:
    """Show what was collected: counts, shapes, answers, confidence, and what is missing."""
    from actscope.cli._console import console
    from actscope.cli._introspect import print_examples, print_inspection
    from actscope.studies.introspection.data import open_collection
    from actscope.studies.introspection.figures import inspection_figure, save_png
    from actscope.studies.introspection.inspection import examples_of, inspect_pass

    collection, chosen = open_collection(data_dir)
    out = console()
    for name in _pass_names(collection, chosen, prompt_type, every=check_all_types):
        collected = collection[name]
        found = inspect_pass(collection, collected)
        print_inspection(out, collection, found)
        if show_examples:
            print_examples(out, examples_of(collected, show_examples))
        if figure and found.n:
            path = collection.path / f"inspect_{found.folder}.png"
            out.print(
                f"picture: {save_png(inspection_figure(found, collected), path)}", markup=False
            )
    if compare_with is not None:
        _compare(collection, open_collection(compare_with)[0], figure=figure)


def _pass_names(
    collection: Collection, chosen: Pass | None, prompt_type: str | None, *, every: bool
) -> list[str]:
    """The passes to show: those named, else that of the folder, else the first."""
    from actscope.studies.introspection.passes import passes_named

    if every and prompt_type is not None:
        raise BadInputError(
            "--check-all-types shows every pass",
            got=f"--prompt-type {prompt_type} beside it",
            next_step="give one of the two",
        )
    if every:
        return list(collection.passes)
    if prompt_type is not None:
        return [which.name for which in passes_named(prompt_type)]
    return [chosen.name if chosen else next(iter(collection.passes))]


@introspect.command(
    "compare",
    epilog="Example: actscope introspect compare full_run_base full_run_finetuned",
)
@click.argument("one", type=LOCAL_FOLDER)
@click.argument("other", type=LOCAL_FOLDER)
@click.option("--figure/--no-figure", default=True, help="Save pictures in the first collection.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def compare(one: Path, other: Path, figure: bool, as_json: bool) -> None:
    """Compare two collections question by question, with paired 95 % intervals."""
    from actscope.studies.introspection.data import open_collection

    _compare(open_collection(one)[0], open_collection(other)[0], figure=figure, as_json=as_json)


def _compare(one: Collection, other: Collection, *, figure: bool, as_json: bool = False) -> None:
    from actscope.cli._console import console
    from actscope.cli._introspect import print_comparison
    from actscope.studies.introspection.comparison import compare as run
    from actscope.studies.introspection.figures import comparison_figures, save_png

    found = run(one, other)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
        return
    out = console()
    print_comparison(out, found)
    if figure:
        for name, made in comparison_figures(found).items():
            path = save_png(made, one.path / f"compare_{other.path.resolve().name}_{name}.png")
            out.print(f"picture: {path}", markup=False)


@introspect.command(
    "analyze",
    epilog="""\b
Examples:
  actscope introspect analyze --data-dir full_run_base
  actscope introspect analyze --data-dir full_run_base --compare-with full_run_finetuned --out day5
""",
)
@click.option(
    "--data-dir",
    type=LOCAL_FOLDER,
    required=True,
    help="A collection of all three passes of at least 40 questions.",
)
@click.option("--compare-with", type=LOCAL_FOLDER, help="Another collection of the same questions.")
@click.option(
    "--out", type=LOCAL_FOLDER, help="Folder of the report; DATA-DIR/analysis by default."
)
@click.option("--shuffles", type=click.IntRange(1), default=200, show_default=True, help="Refits.")
@click.option("--pairs", type=click.IntRange(1), default=100, show_default=True, help="To patch.")
@click.option(
    "--steered", type=click.IntRange(1), default=120, show_default=True, help="Questions."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:0, mps.")
@click.option(
    "--base-model",
    "--model",
    help="Where the model is now; by default where it was collected from.",
)
@click.option("--lora-checkpoint", help="Where its adapter is now.")
@click.option("--compute-dtype", help="Of the model; by default what it was collected in.")
def analyze(data_dir: Path, compare_with: Path | None, out: Path | None, **options: Any) -> None:
    """Probes, surface against internal, directions, self against other, patching: one report.

    At least 40 questions; below 200 of them, or below 200 refits, the report says that intervals
    and controls are coarse. More questions are collected into a second folder with --offset, and
    `merge` puts both together.
    """
    from actscope.cli._console import console, error_console
    from actscope.cli._introspect import Steps, print_analysed
    from actscope.cli._models import describe, load
    from actscope.studies.introspection.analysis_inputs import inputs_of
    from actscope.studies.introspection.analyze import analyze as run
    from actscope.studies.introspection.data import open_collection
    from actscope.studies.introspection.params import AnalysisParams
    from actscope.studies.introspection.replay import source_of_model

    collection = open_collection(data_dir)[0]
    other = open_collection(compare_with)[0] if compare_with is not None else None
    source = source_of_model(collection)
    device, moved = options.pop("device"), options.pop("base_model")
    adapter = options.pop("lora_checkpoint") or source.adapter
    dtype = options.pop("compute_dtype") or source.dtype
    params = AnalysisParams(**options)
    inputs_of(collection)  # too little to analyse is said before a model is loaded
    model = load(
        moved or source.model,
        device=device,
        dtype=dtype,
        revision=source.revision,
        adapter=adapter,
    )
    click.echo(describe(model), err=True)
    with Steps(error_console()) as steps:
        found = run(
            collection, model, out or collection.path / "analysis", params, other=other, step=steps
        )
    print_analysed(console(), found)


@introspect.command(
    "merge", epilog="Example: actscope introspect merge part1 part2 --output-dir all"
)
@click.argument("parts", nargs=-1, required=True, type=LOCAL_FOLDER)
@click.option("--output-dir", type=LOCAL_FOLDER, required=True, help="A new folder.")
def merge(parts: tuple[Path, ...], output_dir: Path) -> None:
    """Put collections over neighbouring ranges (--offset, --num-questions) together."""
    from actscope.cli._console import console, counted
    from actscope.studies.introspection.merging import merge as run

    found = run(parts, output_dir)
    said = counted(int(found.config["num_questions"]), "question")
    console().print(f"{output_dir}: {said} of {len(parts)} collections", markup=False)


COMMAND = introspect
