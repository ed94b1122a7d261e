"""The options of ``actscope capture``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from actscope.cli._folders import NEW_FOLDER

__all__ = ["with_options"]


def _number_or_auto(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> int | str | None:
    """A number of at least 1, or the word ``auto``."""
    if value is None or value == "auto":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a number from 1 on nor the word auto")
    return int(value)


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
        help="Site names, keys, lists such as resid_post[0,-1], or module paths; single heads and "
        "neurons as pattern.head[0,3], mlp_post.neuron[7]; repeatable.",
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
    click.option("--out", type=NEW_FOLDER, help="Folder of the run, or its address: s3://..."),
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


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    groups = (_MODEL_OPTIONS, _SOURCE_OPTIONS, _WHAT_OPTIONS, _ANSWER_OPTIONS, _STORE_OPTIONS)
    for option in reversed([option for group in groups for option in group]):
        command = option(command)
    return command
