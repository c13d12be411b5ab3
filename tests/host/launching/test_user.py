"""The user that a server runs as, and who may not be one."""

from __future__ import annotations

import os
import pwd

import pytest

from vllm_agent.host.launching.start_error import StartError
from vllm_agent.host.launching.user import find_user, user_to_become
from vllm_agent.lifecycle.reasons import Reason


def test_a_user_is_found_by_name_and_by_number():
    entry = pwd.getpwnam("nobody")
    user = find_user("nobody")
    assert user is not None
    assert (user.name, user.uid, user.gid) == ("nobody", entry.pw_uid, entry.pw_gid)
    assert user.groups == tuple(os.getgrouplist("nobody", entry.pw_gid))
    assert user.environ == {
        "HOME": entry.pw_dir,
        "LOGNAME": "nobody",
        "SHELL": entry.pw_shell,
        "USER": "nobody",
    }
    assert find_user(str(entry.pw_uid)) == user


@pytest.mark.parametrize("name", ["no-such-user", "", "3999999999", "9" * 40, "-1", "a\0b", "²"])
def test_a_user_that_is_not_there(name):
    assert find_user(name) is None


@pytest.mark.parametrize(
    ("own_uid", "name", "detail"),
    [
        (0, None, "set managed.user"),
        (0, "no-such-user", "there is no user 'no-such-user' on this host"),
        (1000, "no-such-user", "there is no user"),
        (1000, "root", "only root may start a server as user 'root'"),
    ],
)
def test_who_may_not_be_one(own_uid, name, detail, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: own_uid)
    with pytest.raises(StartError, match=detail) as caught:
        user_to_become(name)
    assert caught.value.reason is Reason.SPAWN_FAILED
    assert caught.value.detail == str(caught.value)


def test_who_needs_no_change(monkeypatch):
    nobody = pwd.getpwnam("nobody").pw_uid
    monkeypatch.setattr(os, "geteuid", lambda: nobody)
    assert user_to_become(None) is None
    assert user_to_become("nobody") is None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert user_to_become("root") is None


def test_root_becomes_the_user_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert user_to_become("nobody") == find_user("nobody")
