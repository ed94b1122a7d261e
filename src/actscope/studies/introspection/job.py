"""A collection with everything resolved: which prompts, which units, what it costs, where to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from actscope.capture.budget import unit_tokens, usual_budget
from actscope.capture.disk import free_local_disk
from actscope.capture.options import AUTO, CaptureOptions
from actscope.capture.plan import Footprint, choose_unit_size, make_plan
from actscope.core.errors import BadInputError, SourceError
from actscope.core.protocols import Selection
from actscope.core.provenance import sha256_json
from actscope.core.spec import UnitPlan
from actscope.core.text import Example
from actscope.sources.demo import demo_folder
from actscope.sources.mcq import Question, read_questions
from actscope.strategies import as_strategy
from actscope.studies.introspection.layer_files import LayerFiles
from actscope.studies.introspection.params import CollectParams
from actscope.studies.introspection.passes import CONFIDENCE_BINS, Pass, letter_tokens
from actscope.studies.introspection.prompts import GENERAL, MARREN, Templates, load_templates
from actscope.studies.introspection.surface import SurfaceFeatures

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel
    from actscope.core.activations import TokenRow

__all__ = ["FORMAT", "SITE", "Asked", "Budget", "Job", "questions_of", "resolve"]

FORMAT = "actscope introspection 1"
SITE = "resid_post"


@dataclass(frozen=True)
class Asked:
    """One question in one pass.

    Attributes:
        question: Which.
        which: The pass.
        prompt: The message.
        row: Its tokens.
    """

    question: Question
    which: Pass
    prompt: str
    row: TokenRow


@dataclass(frozen=True)
class Budget:
    """What a collection costs, before it costs anything.

    Attributes:
        questions: In the range.
        tokens: Through the model, by pass.
        bytes: On disk when it is whole, by pass.
        to_write: Bytes of what is missing.
        shared: Share of the tokens of all passes that belongs to what they have in common.
        not_shared: Why that is computed for every pass; empty where it is computed once.
        free_bytes: Free disk.
        seconds: Time of the model for what is missing, from a timed batch; None where nothing is.
        units: Units of work, and how many of them are on disk.
        done: How many of them are on disk.
    """

    questions: int
    tokens: Mapping[str, int]
    bytes: Mapping[str, int]
    to_write: int
    shared: float
    not_shared: str
    free_bytes: int
    seconds: float | None
    units: int
    done: int

    @property
    def total_bytes(self) -> int:
        """Of all passes."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Job:
    """A collection, ready to begin or to go on.

    Attributes:
        params: What was asked for.
        model: Which answers.
        templates: The prompts' texts.
        questions: Of the range.
        asked: Every question in every pass, passes of a question together.
        letters: Token ids of each letter, by pass.
        surface: Surface features by question id.
        layers: Blocks whose output is stored.
        spec: What decides the numbers, without the range.
        plan: How the range is cut.
        no_sharing: Why the passes of a question would share nothing now; empty where they can.
        seq_len: Longest prompt, by the pass's folder.
    """

    params: CollectParams
    model: HFModel
    templates: Templates
    questions: tuple[Question, ...]
    asked: tuple[Asked, ...]
    letters: Mapping[str, list[list[int]]]
    surface: Mapping[str, Mapping[str, Any]]
    layers: tuple[int, ...]
    spec: Mapping[str, Any]
    plan: UnitPlan
    no_sharing: str
    seq_len: Mapping[str, int]

    @property
    def fingerprint(self) -> str:
        """Hex digest of the spec."""
        return sha256_json(self.spec)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes."""
        return self.params.passes

    @property
    def selection(self) -> Selection:
        """What is read of the model."""
        return _selection(self.model, self.layers)

    @property
    def not_shared(self) -> str:
        """Why what the passes have in common is computed for each; empty where it is not."""
        if self.plan.share_prefix:
            return ""
        return self.no_sharing or "the collection was begun with --share-prefix off"

    def files(self) -> dict[str, LayerFiles]:
        """The layer files of each pass, by folder."""
        n, d = len(self.questions), self.model.d_model
        return {
            p.folder: LayerFiles(
                self.params.output_dir / p.folder,
                self.layers,
                (n, self.seq_len[p.folder], d),
                self.params.dtype,
            )
            for p in self.passes
        }

    def of_unit(self, start: int, stop: int) -> Sequence[Asked]:
        """The prompts of a unit; its bounds count from the dataset's beginning."""
        width = len(self.passes)
        return self.asked[(start - self.plan.start) * width : (stop - self.plan.start) * width]

    def groups(self, prompts: int) -> list[range]:
        """Places of the prompts about one question, which begin alike."""
        width = len(self.passes)
        return [range(i, i + width) for i in range(0, prompts, width)]

    def budget(self, seconds_per_token: float | None, missing: Sequence[tuple[int, int]]) -> Budget:
        """The figures.

        Args:
            seconds_per_token: As timed; None where nothing is missing.
            missing: Bounds of the units that are not on disk.
        """
        tokens = {p.folder: 0 for p in self.passes}
        for asked in self.asked:
            tokens[asked.which.folder] += len(asked.row)
        whole = sum(tokens.values())
        width = len(self.passes)
        groups = [[self.asked[i] for i in places] for places in self.groups(len(self.asked))]
        shared = sum(width * _shared(group) for group in groups)
        left = sum(len(asked.row) for unit in missing for asked in self.of_unit(*unit))
        size = {name: files.bytes for name, files in self.files().items()}
        questions = sum(stop - start for start, stop in missing)
        units = len(self.plan.units())
        return Budget(
            questions=len(self.questions),
            tokens=tokens,
            bytes=size,
            to_write=sum(size.values()) * questions // max(len(self.questions), 1),
            shared=shared / max(whole, 1),
            not_shared=self.not_shared,
            free_bytes=free_local_disk(self.params.output_dir),
            seconds=None if seconds_per_token is None else seconds_per_token * left,
            units=units,
            done=units - len(missing),
        )


def _shared(group: Sequence[Asked]) -> int:
    """Tokens that the passes of a question begin with in common."""
    rows = [asked.row.token_ids.tolist() for asked in group]
    count = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


def questions_of(dataset: str) -> list[Question]:
    """The questions of a file, of the hub, or of ``demo:mcq/NAME``.

    Raises:
        SourceError: there are none.
    """
    name = dataset.removeprefix("demo:").removeprefix("mcq/")
    if dataset.startswith("demo:"):
        known = sorted(p.stem for p in (demo_folder() / "mcq").glob("*.jsonl"))
        if name not in known:
            raise SourceError(
                f"there are no bundled questions {dataset!r}",
                expected=", ".join(f"demo:mcq/{k}" for k in known),
            )
        return read_questions(demo_folder() / "mcq" / f"{name}.jsonl")
    found = read_questions(dataset.removeprefix("mcq:"))
    if not found:
        raise SourceError(f"{dataset} has no question", next_step="give a file with some")
    return found


def resolve(model: HFModel, params: CollectParams) -> Job:
    """Read the questions, write every prompt, and decide how the work is cut.

    Raises:
        SourceError: the questions or templates cannot be read.
        BadInputError: letters that are no single tokens, a range beyond the questions, a prompt
            that the context does not hold.
    """
    templates = load_templates(params.templates or _default_templates(model))
    letters = {p.name: letter_tokens(model.tokenizer, p.letters) for p in params.passes}
    whole = questions_of(params.dataset)
    start, stop = _range(len(whole), params)
    questions = tuple(whole[start:stop])
    features = SurfaceFeatures(model.tokenizer, [q.question for q in whole])
    chat = bool(getattr(model.tokenizer, "chat_template", None))
    asked = tuple(_asked(model, templates, q, p, params.seed, chat=chat)
                  for q in questions for p in params.passes)  # fmt: skip
    layers = _layers(model, params.layers)
    seq_len = {
        p.folder: max(len(a.row) for a in asked if a.which == p) for p in params.passes
    }  # fmt: skip
    plan, no_sharing = _plan(model, params, (start, stop), asked, layers)
    return Job(
        params=params,
        model=model,
        templates=templates,
        questions=questions,
        asked=asked,
        letters=letters,
        surface={q.id: features.of(q.question) for q in questions},
        layers=layers,
        spec=_spec(model, params, templates, whole, layers, chat=chat),
        plan=plan,
        no_sharing=no_sharing,
        seq_len=seq_len,
    )


def _default_templates(model: HFModel) -> str:
    return MARREN if model.identity.name == "demo" else GENERAL


def _range(size: int, params: CollectParams) -> tuple[int, int]:
    if params.offset >= size:
        raise BadInputError(
            "the offset lies beyond the questions",
            got=params.offset,
            expected=f"0 to {max(size - 1, 0)}: {params.dataset} has {size} questions",
        )
    wanted = size if params.num_questions is None else params.offset + params.num_questions
    return params.offset, min(size, wanted)


def _asked(
    model: HFModel, templates: Templates, question: Question, which: Pass, seed: int, *, chat: bool
) -> Asked:
    prompt = templates.prompt(question.question, question.options(seed), which)
    example = Example(f"{question.id}/{which.name}", text=prompt)
    return Asked(question, which, prompt, model.checked(model.encode(example, chat=chat)))


def _layers(model: HFModel, wanted: str | tuple[int, ...]) -> tuple[int, ...]:
    sites = model.expand("resid_post", wanted)
    return tuple(site.layer for site in sites if site.layer is not None)


def _spec(
    model: HFModel,
    params: CollectParams,
    templates: Templates,
    whole: Sequence[Question],
    layers: tuple[int, ...],
    *,
    chat: bool,
) -> dict[str, Any]:
    """What decides the numbers: runs over different ranges of one spec belong together."""
    rows = [[q.id, q.question, q.correct, list(q.distractors)] for q in whole]
    generation = None if params.generate is None else asdict(params.generate)
    model_spec = asdict(model.identity)
    del model_spec["interventions"]
    return {
        "model": model_spec,
        "questions": sha256_json(rows),
        "seed": params.seed,
        "passes": [p.name for p in params.passes],
        "layers": list(layers),
        "dtype": params.dtype,
        "templates": templates.hashes(),
        "chat": chat,
        "confidence_bins": list(CONFIDENCE_BINS),
        "generate": generation,
    }


def _selection(model: HFModel, layers: Sequence[int]) -> Selection:
    """The stored layers, and the last, which the letters come from."""
    sites = model.expand(SITE, sorted({*layers, model.n_layers - 1}))
    return Selection(sites, as_strategy(None))


def _plan(
    model: HFModel,
    params: CollectParams,
    bounds: tuple[int, int],
    asked: Sequence[Asked],
    layers: Sequence[int],
) -> tuple[UnitPlan, str]:
    """How the range is cut, and why the passes share nothing where they do not."""
    n = max(bounds[1] - bounds[0], 1)
    tokens = sum(len(a.row) for a in asked) / n
    footprint = Footprint(tokens, tokens * len(layers) * model.d_model * 4)
    options = CaptureOptions(batch_tokens=params.batch_tokens or AUTO)
    usual = usual_budget(model, options)
    a_pass = params.batch_size * tokens if params.batch_size else params.batch_tokens or usual
    size = params.unit_size or choose_unit_size(footprint, a_pass, unit_tokens(model))
    reason = _no_sharing(model, params, layers)
    plan = make_plan(bounds, size, options, params.batch_size, usual, share_prefix=not reason)
    return plan, reason


def _no_sharing(model: HFModel, params: CollectParams, layers: Sequence[int]) -> str:
    if params.share_prefix == "off":
        return "--share-prefix off"
    if len(params.passes) == 1:
        return "there is one pass"
    return model.prefix_refusal(_selection(model, layers))
