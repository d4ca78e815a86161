from pathlib import Path

import pytest

from raydd.config import Config, Execution, override, problems
from raydd.errors import ConfigError, ResourceError
from raydd.places import absolute, is_inside, join, opened, redacted, redacted_command, secrets_in, working_folder


def test_join() -> None:
    assert join("s3://b/runs/", "x") == "s3://b/runs/x" and join("runs", "x") == "runs/x"
    assert join("s3://b/runs?region=eu&scheme=http", "x/y") == "s3://b/runs/x/y?region=eu&scheme=http"


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("") == "" and absolute("a") == str(tmp_path / "a") and absolute("s3://b/x") == "s3://b/x"
    assert absolute("file:///a/b%20c") == "/a/b c"


def test_folders_within_one_another_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDD_CACHE", str(tmp_path))
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert working_folder("s3://b/sweeps/x") == tmp_path / "runs" / "s3" / "b" / "sweeps" / "x"
    assert working_folder("s3://b/sweeps/x/runs/1") == working_folder("s3://b/sweeps/x") / "runs" / "1"
    assert working_folder(str(tmp_path)) == tmp_path
    other = working_folder("s3://b/sweeps/x?endpoint_override=elsewhere")
    assert other.name == "x" and other != working_folder("s3://b/sweeps/x")


@pytest.mark.parametrize("place", ["s3://b/../../x", "s3://b/x/./y", "s3://", "s3://b/x\\..\\y", "s3://b/a\0"])
def test_place_that_leads_elsewhere(place: str) -> None:
    with pytest.raises(ConfigError, match="no place for files"):
        working_folder(place)
    with pytest.raises(ConfigError):
        absolute(place)


def test_inside() -> None:
    assert is_inside("a") and is_inside("a/b.c/d")
    assert not any(map(is_inside, ("", "/a", "../a", "a/../b", "a/..", "a\\b", "a//b", "./a", "a/", "a\0")))


def test_unknown_scheme() -> None:
    with pytest.raises(ResourceError, match="nothing://x/y cannot be opened: .*s3://BUCKET/PATH"):
        opened("nothing://x/y")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--store s3://KEY:hush@b/x", "--store s3://***@b/x"),
        ("s3://b/x?scheme=http&secret_key=hush&region=eu", "s3://b/x?scheme=http&secret_key=***&region=eu"),
        ("abfs://b/x?account_key=hush", "abfs://b/x?account_key=***"),
        ("AWS_SECRET_ACCESS_KEY=hush python", "AWS_SECRET_ACCESS_KEY=*** python"),
        ("RAY_AUTH_TOKEN: hush", "RAY_AUTH_TOKEN: ***"),
        ("{'password': 'hush'}", "{'password': '***'}"),
        ("the token of s3://b/a@b:c/x is no password", "the token of s3://b/a@b:c/x is no password"),
    ],
)
def test_secrets_are_left_out(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_command_without_secrets() -> None:
    assert redacted_command(["raydd", "--api-token", "two words", "--store=s3://K:hush@b/x", "a b"]) == (
        "raydd --api-token '***' '--store=s3://***@b/x' 'a b'"
    )


def test_settings_with_a_secret_are_refused() -> None:
    """Every setting is written into records."""
    (problem,) = secrets_in("--store", "s3://K:hush@b/x")
    assert problem.startswith("--store=s3://***@b/x holds a secret") and "AWS_SECRET_ACCESS_KEY" in problem
    config = override(Config(), {"data.source": "parquet:s3://K:hush@b/x"})
    found = problems(config, Execution(run="s3://K:hush@b/run", store="s3://b/fine"))
    assert [text.split("=")[0] for text in found if "secret" in text] == ["--data.source", "--run"] and "hush" not in str(found)
    with pytest.raises(ConfigError) as caught:
        absolute("s3://K:hush@b/x")
    assert "hush" not in str(caught.value)
