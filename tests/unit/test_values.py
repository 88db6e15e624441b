"""Values, names and secrets: what comes in, and what is recorded."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_tracker._mask import (
    is_secret_name,
    learn_variables,
    mask,
    mask_command,
    mask_source,
    mask_text,
    split_userinfo,
    whole_uri,
)
from unified_tracker._naming import Renamer, path_like
from unified_tracker._values import flatten, number, plain, step_number


class Awkward:
    def __float__(self) -> float:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        (1.5, 1.5),
        (True, 1),
        (2**62, 2**62),
        (2**70, float(2**70)),
        pytest.param(10**400, math.inf, id="10**400"),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.array(3.0), 3.0),
        (np.array([4.0]), 4.0),
        (Decimal("0.25"), 0.25),
        (np.bool_(True), 1),
        ("1.0", None),
        (b"1", None),
        (None, None),
        ({"a": 1}, None),
        (np.zeros(2), None),
        (Awkward(), None),
    ],
)
def test_numbers_are_taken_and_the_rest_is_refused(given_value: Any, expected: Any) -> None:
    assert number(given_value) == expected


@pytest.mark.parametrize(
    ("given_step", "expected"),
    [
        (3, (3, None)),
        (np.int32(4), (4, None)),
        (5.0, (5, None)),
        (-(2**63), (-(2**63), None)),
        (2**63, (None, "9223372036854775808")),
        (2.5, (None, "2.5")),
        ("7", (None, "'7'")),
        (True, (None, "True")),
        (math.nan, (None, "nan")),
        (None, (None, None)),
    ],
)
def test_steps_are_int64_or_said_to_be_none(given_step: Any, expected: Any) -> None:
    assert step_number(given_step) == expected


def test_configs_of_anything_become_plain() -> None:
    cyclic: dict[str, Any] = {"a": 1}
    cyclic["self"] = cyclic
    result = plain(
        {"f": len, "c": Awkward, 1: (1, 2), "s": {3, 1}, "o": object(), "cycle": cyclic, "np": np.float64(2)}
    )
    assert result["f"] == "builtins.len"
    assert result["c"].endswith("Awkward")
    assert result["1"] == [1, 2]
    assert result["s"] == [1, 3]
    assert result["o"].startswith("<object object")
    assert "..." in repr(result["cycle"])
    assert result["np"] == 2.0


def test_flattening_keeps_plain_lists_as_values() -> None:
    nested = {"a": {"b": [1, 2], "empty": {}}, "pipeline": [{"type": "Load"}, {"type": "Flip", "p": 0.5}]}
    assert flatten(nested) == {
        "a.b": [1, 2],
        "a.empty": {},
        "pipeline.0.type": "Load",
        "pipeline.1.type": "Flip",
        "pipeline.1.p": 0.5,
    }


@given(st.lists(st.text(min_size=0, max_size=300), unique=True, max_size=30))
def test_mapped_names_are_accepted_by_mlflow_and_never_meet(names: list[str]) -> None:
    rename = Renamer(path_like, 220)
    mapped = [rename(name) for name in names]
    assert len(set(mapped)) == len(names)
    for name in mapped:
        assert re.fullmatch(r"[/\w.\- ]{1,220}", name)
        parts = name.split("/")
        assert all(part not in {"", ".", ".."} for part in parts)
    assert {new: old for old, new in zip(names, mapped, strict=True) if new != old} == rename.changed()


def test_an_acceptable_name_stays_and_a_name_that_looks_like_a_mapped_one_stays_apart() -> None:
    rename = Renamer(path_like, 220)
    assert rename("val/bbox/mAP_50") == "val/bbox/mAP_50"
    assert rename("AR@100") != rename("AR#100") != rename("AR_100") == "AR_100"


@pytest.mark.parametrize(
    "key", ["password", "WANDB_API_KEY", "authToken", "db.secret", "aws_secret_access_key", "auth"]
)
def test_credentials_are_recognised_by_their_key(key: str) -> None:
    assert is_secret_name(key)


@pytest.mark.parametrize("key", ["max_tokens", "tokenizer", "num_tokens", "author", "keypoints", "monkey", "secretary"])
def test_benign_keys_are_left_alone(key: str) -> None:
    assert not is_secret_name(key)


def test_secrets_are_masked_wherever_they_stand() -> None:
    secret = "hunter2hunter2"
    config = {
        "db": {"password": secret, "uri": f"postgresql://me:{secret}@host/db", "max_tokens": 5},
        "list": [f"https://x:{secret}@h"],
        "hf": "hf_" + "a" * 30,
    }
    masked = mask(plain(config))
    assert secret not in repr(masked)
    assert "hf_aaa" not in repr(masked)
    assert masked["db"]["max_tokens"] == 5
    assert "@host/db" in masked["db"]["uri"]
    assert secret not in " ".join(
        mask_command(["train.py", "--password", secret, f"--api-key={secret}", f"https://a:{secret}@b"])
    )
    source = f"model = dict(type='X')\napi_key = '{secret}'\nload_from: http://u:{secret}@h/x\n  token: {secret}\n"
    assert secret not in mask_source(source)
    assert "model = dict(type='X')" in mask_source(source)
    assert mask_text("nothing here: 0.5") == "nothing here: 0.5"


CANARY = "c4N4ryC4n4ryC4n4ryC4n4ryC4n4ry123456"  # whole words are hidden, so it is looked for in any part


@pytest.mark.parametrize(
    "shape",
    [
        "https://me:{0}@host/x",
        "https://:{0}@host/x",
        "postgresql+psycopg2://me:{0}@db:5432/mlflow",
        "https://{0}@github.com/owner/repo.git",
        "git clone https://oauth2:{0}@gitlab.example/x failed",
        "hf_{0}",
        "ghp_{0}",
        "gho_{0}",
        "ghs_{0}",
        "glpat-{0}",
        "wandb_v1_{0}",
        "xoxb-{0}",
        "sk-{0}",
        "sk-proj-{0}",
        "eyJhbGciOi{0}.eyJzdWIiOi{0}.{0}",
        "Authorization: Bearer {0}",
        "authorization: bearer {0}",
        "Authorization: Basic {0}==",
        "https://host/x?token={0}&a=1",
        "https://host/x?a=1&access_token={0}",
        "https://bucket/x?X-Amz-Signature={0}",
        "https://bucket/x?X-Amz-Credential={0}",
        "https://blob/x?sv=1&sig={0}",
        "https://host/x?api_key={0}",
        "https://host/x?password={0}",
        "-----BEGIN RSA PRIVATE KEY-----\n{0}\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_what_looks_like_a_credential_is_masked_in_any_text(shape: str) -> None:
    text = f"before {shape.format(CANARY)} after"
    assert CANARY not in mask_text(text)
    assert mask_text(text).startswith("before ")
    assert mask_text(text).endswith(" after")
    assert CANARY not in repr(mask({"a": [{"b": text}]}))
    assert CANARY not in mask_source(f"model:\n  init: '{text}'\n")


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ASIAIOSFODNN7EXAMPLE",
        "AIzaSyA-1234567890abcdefghijklmnopqrstuv",
        "dapi0123456789abcdef0123456789abcdef",
    ],
)
def test_keys_of_a_fixed_form_are_masked(text: str) -> None:
    assert text not in mask_text(f"key {text} end")


@pytest.mark.parametrize(
    "text",
    [
        "git@github.com:owner/repo.git",
        "https://user@host/x",
        "https://host/x?page=2&size=10",
        "task-specific head, risk-averse, basic anchors",
        "a bearer of bad news",
        "commit 6221f23aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "dict(type='ResNet', depth=50, norm_cfg=dict(type='BN'))",
        "s3://bucket/key=value/part",
        "max_tokens=512 tokenizer=bert",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert mask_text(text) == text


def test_a_credential_of_the_environment_is_masked_wherever_its_value_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "plainwordsnobodyguesses")
    monkeypatch.setenv("MY_AUTH_SOCKET", "/run/user/socket")
    monkeypatch.setenv("MY_TOKEN", "1")
    learn_variables()
    try:
        assert "plainwords" not in mask_text("login with plainwordsnobodyguesses failed")
        assert mask_text("see /run/user/socket, 1 of 1") == "see /run/user/socket, 1 of 1"
    finally:
        monkeypatch.undo()
        learn_variables()


def test_userinfo_leaves_the_uri() -> None:
    assert split_userinfo("https://u:p@h:5000/x") == ("https://h:5000/x", "u", "p")
    assert split_userinfo("sqlite:////tmp/a@b.db") == ("sqlite:////tmp/a@b.db", None, None)
    assert split_userinfo("postgresql+x://u:p@h:5/db") == ("postgresql+x://u@h:5/db", "u", "p")
    assert split_userinfo("postgresql://u@h/db") == ("postgresql://u@h/db", None, None)


def test_a_database_gets_its_password_from_where_it_is_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    written, whole = "postgresql://u@h/db", "postgresql://u:hunter2hunter2@h/db"
    assert whole_uri("mlflow", "tracking_uri", written, "MLFLOW_TRACKING_URI") == written
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
    assert whole_uri("mlflow", "tracking_uri", written, "MLFLOW_TRACKING_URI") == whole
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole.replace("@h", "@elsewhere"))
    assert whole_uri("mlflow", "tracking_uri", written, "MLFLOW_TRACKING_URI") == written
    monkeypatch.setenv("UNIFIED_TRACKER_MLFLOW_TRACKING_URI", whole)
    assert whole_uri("mlflow", "tracking_uri", written, "MLFLOW_TRACKING_URI") == whole
