"""Generated files are as their code renders them, and the generator says when they are not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.generated import lifecycle_page
from tests.generated.__main__ import FILES, ROOT, run, stale
from tests.generated.markdown import table
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import PHASE_STATE, Phase, ServerState
from vllm_agent.lifecycle.transitions import TRANSITIONS, Trigger

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PAGES = (("docs/page.md", lambda: "right\n"),)
ARROW = re.compile(r"^    (\w+) --> (\w+): (.+)$", re.MULTILINE)


def test_generated_files_are_up_to_date() -> None:
    """Where this fails, run `make docs` and look at what changed."""
    assert stale(FILES, ROOT) == {}


def test_it_writes_what_is_missing_and_then_has_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([], PAGES, tmp_path) == 0
    assert (tmp_path / "docs/page.md").read_text() == "right\n"
    assert run([], PAGES, tmp_path) == 0
    assert run(["--check"], PAGES, tmp_path) == 0
    assert capsys.readouterr().out == "wrote docs/page.md\n"


def test_a_check_shows_the_difference_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs/page.md"
    page.parent.mkdir()
    page.write_text("wrong\n")
    assert run(["--check"], PAGES, tmp_path) == 1
    assert page.read_text() == "wrong\n"
    shown = capsys.readouterr()
    assert "-wrong\n+right\n" in shown.out
    assert shown.err == "stale: docs/page.md; run 'make docs'\n"


def test_the_lifecycle_page_names_every_word_of_the_lifecycle() -> None:
    page = lifecycle_page.render()
    for word in (*ServerState, *Phase, *Trigger, *Reason):
        assert f"| `{word}` |" in page


def test_the_diagrams_show_every_move_of_the_table_and_no_other() -> None:
    """But for a process that appears where only a URL is known: the two never meet."""
    drawn = {
        (Phase(origin), Trigger(trigger), Phase(target))
        for origin, target, triggers in ARROW.findall(lifecycle_page.render())
        for trigger in triggers.split(", ")
    }
    moves = {(at, trigger, to) for (at, trigger), to in TRANSITIONS.items() if to is not at}
    assert drawn <= moves
    assert moves - drawn == {(Phase.LOST, Trigger.APPEARED, Phase.LOADING)}


def test_the_diagrams_say_which_state_a_phase_is() -> None:
    page = lifecycle_page.render()
    for phase, state in PHASE_STATE.items():
        assert f'state "{phase} ({state})" as {phase}' in page


def test_a_pipe_in_a_cell_does_not_end_it() -> None:
    assert table(("a",), [("b|c",)]) == "| a |\n| --- |\n| b\\|c |"
