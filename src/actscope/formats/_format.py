"""What one file of this room provides: how a run leaves for other programs, and comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from actscope.core.activations import ActivationBatch
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, UnknownNameError
from actscope.formats._job import ExportJob, ExportUnit
from actscope.formats._manifest import ExportFolder

if TYPE_CHECKING:
    from actscope.formats._directions import Directions

__all__ = ["DirectionFormat", "Format", "Option", "RunFormat", "needs"]


@dataclass(frozen=True)
class Option:
    """An option of a format, ``--option NAME=VALUE``.

    Attributes:
        default: Its value where it is not given.
        read: Turns a text into a value; raises ValueError.
        help: One line.
    """

    default: Any
    read: Callable[[str], Any]
    help: str


class Format:
    """A file format of other programs.

    Attributes:
        name: The stem of its file.
        summary: One line: what its files look like.
        writes: Whether runs can be exported to it.
        reads: Whether it can be imported.
        extra: The extra of actscope that it needs, empty for none.
        options: Its options, for export and import.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    holds: ClassVar[str]
    writes: ClassVar[bool] = True
    reads: ClassVar[bool] = True
    extra: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Option]] = {}

    def check_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options, those that were not given with their defaults.

        Raises:
            UnknownNameError: it has no such option.
            BadInputError: a value that is none.
        """
        for name in given:
            if name not in self.options:
                raise UnknownNameError(f"option of {self.name}", name, self.options)
        values: dict[str, Any] = {}
        for name, option in self.options.items():
            value = given.get(name, option.default)
            try:
                values[name] = option.read(value) if isinstance(value, str) else value
            except (ValueError, TypeError) as error:
                raise BadInputError(
                    f"option {name} of {self.name} cannot be {value!r}", expected=option.help
                ) from error
        return values


class RunFormat(Format):
    """A format that holds activations.

    Attributes:
        keeps_bfloat16: Whether it has bfloat16; float32 takes its place otherwise.
        lossless: Whether everything comes back: values bit by bit, tokens, texts, metadata, spec.
    """

    holds: ClassVar[str] = "activations"
    keeps_bfloat16: ClassVar[bool] = False
    lossless: ClassVar[bool] = True

    def check(self, job: ExportJob) -> None:
        """Refuse what the format cannot hold, before anything is written.

        Raises:
            BadInputError: it cannot hold this run, or its library is not installed.
        """

    def begin(self, job: ExportJob) -> None:
        """Make what has to be there before the first unit; done again when an export resumes."""

    def write(self, job: ExportJob, unit: ExportUnit, marks: Mapping[str, int]) -> dict[str, int]:
        """Write one unit, durably; after a kill the same unit is written again.

        Args:
            job: The run.
            unit: The unit.
            marks: What writing the unit before returned.

        Returns:
            Numbers to go on from, such as the sizes of files that grow.
        """
        raise NotImplementedError

    def finish(self, job: ExportJob) -> None:
        """Write what comes last, such as an index."""

    def comes_back(self, array: Array) -> Array:
        """What an array of activations is after a round trip; itself where nothing is lost."""
        return array

    def read(self, folder: ExportFolder, unit: int) -> Mapping[str, Array]:
        """The tensors of one unit of an export.

        Raises:
            DamagedRunError: they cannot be read.
        """
        raise NotImplementedError

    def foreign(
        self, path: Path, options: Mapping[str, Any]
    ) -> Iterator[tuple[str, ActivationBatch]]:
        """Files of this format that another program wrote, as (unit id, batch).

        Raises:
            BadInputError: there are none, or they hold no activations.
            DamagedRunError: one cannot be read.
        """
        raise BadInputError(
            f"only what `actscope runs export --to {self.name}` wrote can be imported from "
            f"{self.name}",
            got=path,
        )


class DirectionFormat(Format):
    """A format that holds one vector a layer."""

    holds: ClassVar[str] = "directions"

    def write(self, directions: Directions, path: Path) -> None:
        """Write them to a file that appears whole or not at all."""
        raise NotImplementedError

    def read(self, path: Path) -> Directions:
        """Read a file.

        Raises:
            DamagedRunError: it cannot be read.
        """
        raise NotImplementedError


def needs(format_name: str, extra: str, error: ImportError) -> BadInputError:
    """The error for a library that is not installed."""
    return BadInputError(
        f"the format {format_name} needs a library that is not installed",
        got=str(error),
        next_step=f"pip install 'actscope[{extra}]', or choose another format",
    )
