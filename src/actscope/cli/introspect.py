"""``actscope introspect``: what a model answers, how sure it says it is, and what is inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actscope.core.errors import BadInputError

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel
    from actscope.studies.introspection.params import CollectParams

__all__ = ["COMMAND"]

_FOLDER = click.Path(path_type=Path, file_okay=False)


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
    click.option("--output-dir", type=_FOLDER, help="Folder of the collection."),
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
    from actscope.cli._introspect import print_budget, print_collected
    from actscope.cli._progress import Bar
    from actscope.studies.introspection.collect import collect as run
    from actscope.studies.introspection.collect import dry_run

    model = _model(arguments)
    if arguments.dry_run:
        print_budget(console(), dry_run(model, params))
        return
    with Bar(error_console()) as bar:
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


COMMAND = introspect
