"""Kinds of values of the configuration, and how one that is wrong is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from vllm_agent.config.duration import format_duration, parse_duration
from vllm_agent.config.files import MAX_PEM_FILE_BYTES, read_api_key, read_file
from vllm_agent.config.plain import Plain
from vllm_agent.config.problem import quoted, shown
from vllm_agent.config.url import ServerUrl, parse_server_url

if TYPE_CHECKING:
    from collections.abc import Callable

# A number without a unit is taken for seconds in the advice, unless it is more than a day of them.
LONGEST_ADVISED_SECONDS = 24 * 3_600.0

# The type of errors whose text is complete as it stands.
OWN_ERROR = "vllm_agent"


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What validators of a file may look at. Without it (values built in Python) no file is."""

    folder: Path


def fail(message: str) -> NoReturn:
    """Refuses a value; the message is complete as it stands."""
    # The text goes through the context: as a template its braces would be replaced.
    raise PydanticCustomError(OWN_ERROR, "{message}", {"message": message})


def _duration(value: Any, info: ValidationInfo) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if info.context is None:
            return float(value)
        fail(f"must be a duration with its unit, got {shown(value)}: write {_with_unit(value)}")
    if not isinstance(value, str):
        fail("must be a duration such as 500ms, 10s or 1h30m")
    try:
        return parse_duration(value)
    except ValueError as error:
        fail(f"{error}, got {quoted(value)}")


def _with_unit(number: float) -> str:
    in_grammar = 0 < number < LONGEST_ADVISED_SECONDS
    return format_duration(number) if in_grammar else "a duration such as 10s"


def between(minimum: float, maximum: float) -> AfterValidator:
    """Refuses durations beyond these bounds, in seconds."""

    def check(seconds: float) -> float:
        if seconds < minimum:
            fail(f"must be at least {format_duration(minimum)}, got {format_duration(seconds)}")
        if seconds > maximum:
            fail(f"must be at most {format_duration(maximum)}, got {format_duration(seconds)}")
        return seconds

    return AfterValidator(check)


Duration = Annotated[float, BeforeValidator(_duration)]


def ends_within_interval(what: str) -> AfterValidator:
    """Refuses a timeout that is longer than the `interval` of the same section."""

    def check(timeout: float, info: ValidationInfo) -> float:
        # An interval that is wrong itself is not in the data: one error is enough.
        interval = info.data.get("interval_seconds", timeout)
        if timeout > interval:
            fail(
                f"must be at most the interval ({format_duration(interval)}), got "
                f"{format_duration(timeout)}: {what} has to end before the next one begins"
            )
        return timeout

    return AfterValidator(check)


def interval_or(timeout: float) -> Callable[[dict[str, Any]], float]:
    """Make the default of a timeout: the `interval` of its section where that is shorter."""

    def default(validated: dict[str, Any]) -> float:
        interval: float = validated["interval_seconds"]
        return min(timeout, interval)

    return default


def parsed_url(value: Any) -> ServerUrl:
    """The address of a server."""
    if isinstance(value, ServerUrl):
        return value
    if not isinstance(value, str):
        fail("must be text such as http://127.0.0.1:8000")
    try:
        return parse_server_url(value)
    except ValueError as error:
        fail(str(error))


def _path(value: Any, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    # The value is not repeated: a key pasted here by mistake must not reach the log.
    if not isinstance(value, str) or not value or not value.isprintable():
        fail("must be the path of a file")
    return info.context.folder / value if isinstance(info.context, LoadContext) else Path(value)


def absolute_path(example: str) -> Callable[[Any], Path]:
    """Make what reads the path of a file that the agent itself never looks for in a folder."""

    def read(value: Any) -> Path:
        path = Path(value) if isinstance(value, str | Path) and f"{value}".isprintable() else Path()
        if not path.is_absolute():
            fail(f"must be an absolute path such as {example}")
        return path

    return read


def checked_by(read: Callable[[Path], object]) -> AfterValidator:
    """Refuses a file that `read` does, where a file of configuration is loaded."""

    def check(path: Path, info: ValidationInfo) -> Path:
        if info.context is not None:
            try:
                read(path)
            except ValueError as error:
                fail(str(error))
        return path

    return AfterValidator(check)


def _read_pem(path: Path) -> None:
    if len(read_file(path, MAX_PEM_FILE_BYTES)) > MAX_PEM_FILE_BYTES:
        raise ValueError(f"must be at most {MAX_PEM_FILE_BYTES // 2**20} MiB")


ApiKeyFile = Annotated[Path, PlainValidator(_path), checked_by(read_api_key)]
PemFile = Annotated[Path, PlainValidator(_path), checked_by(_read_pem)]


def parsed_by(parse: Callable[[str], str]) -> AfterValidator:
    """Refuses text that `parse` does, and keeps what it makes of it."""

    def check(value: str) -> str:
        try:
            return parse(value)
        except ValueError as error:
            fail(str(error))

    return AfterValidator(check)


class Section(BaseModel):
    """A mapping of known keys. A key without a value counts as not written."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_name=True, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {key: entry for key, entry in value.items() if entry is not None or key not in known}

    def plain(self) -> Self:
        """The same values under the same names, as a `Plain`, which needs no pydantic."""
        values = {name: _plain(value) for name, value in self}
        return cast("Self", Plain(type(self).__name__, values))


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.plain()
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value
