"""What a section of the configuration is where pydantic is not imported: values behind names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping


class Plain:
    """A frozen section: its attributes are those of the model `section`, which declares them.

    Code says the model's type (`ServerConfig`), so that mypy knows the attributes of both.
    """

    __slots__ = ("__dict__", "_section")
    _section: str

    def __init__(self, section: str, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_section", section)
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{self._section} is frozen")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self._section} is frozen")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plain):
            return NotImplemented
        return (self._section, self.__dict__) == (other._section, other.__dict__)

    def __hash__(self) -> int:
        return hash((self._section, *self.__dict__.values()))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{self._section}({values})"

    def __reduce__(self) -> tuple[type[Plain], tuple[str, dict[str, Any]]]:
        return Plain, (self._section, self.__dict__)
