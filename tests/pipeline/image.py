"""Carries out the stages of a Dockerfile as plain commands in clean roots, without an engine.

What stands in for the base image is this machine's programs and its Python, whatever FROM says.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.pipeline.clean_root import BASE_PATH, CleanRoot, User
from tests.pipeline.dockerfile import DockerfileError, expand

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.pipeline.dockerfile import Instruction, Stage

RUN_TIMEOUT_SECONDS: Final = 100.0
"""The longest takes a tenth of it on an idle machine; an index that does not answer ends here."""

FROM_FLAG: Final = "--from="


class BuildError(RuntimeError):
    """A RUN failed; carries what it printed."""


@dataclass(slots=True)
class Image:
    """What a stage makes: files, and what the engine is told about them."""

    root: CleanRoot
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": BASE_PATH})
    labels: dict[str, str] = field(default_factory=dict)
    work_folder: str = "/"
    user: User = field(default_factory=User)
    volumes: list[str] = field(default_factory=list)
    ports: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    stop_signal: str = ""


@dataclass(frozen=True, slots=True)
class Builder:
    """Where a build takes place, and what it is given.

    `context` holds what is sent to the engine; `environment` and `shown` are what each RUN sees
    besides, as proxies and configuration files of an engine.
    """

    folder: Path
    context: Path
    arguments: Mapping[str, str]
    environment: Mapping[str, str]
    shown: Sequence[tuple[Path, str]] = ()

    def build(self, stages: Sequence[Stage]) -> Image:
        """The last stage, built as the others before it.

        Raises:
            BuildError: a command failed.
            DockerfileError: an instruction is used in a way that is not known here.
        """
        images: dict[str, Image] = {}
        for stage in stages:
            image = images[stage.name] = Image(CleanRoot.make(self.folder / stage.name))
            known: dict[str, str] = {}
            for one in stage.instructions:
                self._carry_out(one, image, images, known)
        return image

    def _carry_out(
        self, one: Instruction, image: Image, images: Mapping[str, Image], known: dict[str, str]
    ) -> None:
        variables = {**known, **image.environment}
        value = expand(one.value, variables)
        match one.keyword:
            case "ARG":
                name, _, default = value.partition("=")
                known[name] = self.arguments.get(name, default)
            case "ENV":
                image.environment |= one.pairs(variables)
            case "LABEL":
                image.labels |= one.pairs(variables)
            case "WORKDIR":
                image.work_folder = value
                _inside(image, value).mkdir(parents=True, exist_ok=True)
            case "USER":
                uid, _, gid = value.partition(":")
                image.user = User(int(uid), int(gid))
            case "VOLUME":
                image.volumes += one.words
            case "EXPOSE":
                image.ports += one.words
            case "STOPSIGNAL":
                image.stop_signal = value
            case "ENTRYPOINT":
                image.entrypoint = one.words
            case "COPY":
                self._copy(one, image, images)
            case "RUN":
                self._run(one, image, variables)
            case keyword:
                raise DockerfileError(f"line {one.line}: {keyword} is not carried out")

    def _run(self, one: Instruction, image: Image, variables: Mapping[str, str]) -> None:
        root = image.root
        for outside, inside in self.shown:
            root = root.seeing(outside, inside)
        done = root.run(
            ["/bin/sh", "-c", one.value],
            environment={**self.environment, **variables},
            user=image.user,
            work_folder=image.work_folder,
            timeout_seconds=RUN_TIMEOUT_SECONDS,
        )
        if done.returncode:
            raise BuildError(f"line {one.line}: {one.value}\n{done.stdout}{done.stderr}")

    def _copy(self, one: Instruction, image: Image, images: Mapping[str, Image]) -> None:
        *sources, target = one.words
        base = self.context
        if sources[0].startswith(FROM_FLAG):
            base = images[sources.pop(0).removeprefix(FROM_FLAG)].root.folder
        if any(source.startswith("--") for source in sources):
            raise DockerfileError(f"line {one.line}: {one.value}")
        found = [path for source in sources for path in sorted(base.glob(source.lstrip("/")))]
        if len(found) < len(sources):
            raise DockerfileError(f"line {one.line}: not sent, or not there: {one.value}")
        place = _inside(image, target)
        for path in found:
            if path.is_dir():
                # Links take no time; nothing is written to a file that another image has.
                shutil.copytree(
                    path, place, symlinks=True, dirs_exist_ok=True, copy_function=os.link
                )
            else:
                is_folder = target.endswith("/") or target == "."
                (place if is_folder else place.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place)


def _inside(image: Image, path: str) -> Path:
    """Where a path of the image lies on this machine."""
    absolute = path if path.startswith("/") else f"{image.work_folder}/{path}"
    return image.root.folder / absolute.lstrip("/")
