"""Secrets: what is masked before a value reaches the journal.

A value is masked when its key says that it is a credential (whole words, so `max_tokens` and `tokenizer` stay) or
when it looks like one. The mask carries eight hex digits of a hash salted per process: equal values can be seen to be
equal, the value cannot be found.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

WORDS: Final = frozenset({"password", "passwd", "secret", "token", "credential", "credentials", "apikey", "auth"})
PHRASES: Final = ("api_key", "access_key", "private_key", "secret_key")
# What credentials look like: literals of which one must be there (texts can be long, this is fast), and the shape.
SHAPES: Final = tuple(
    (triggers, re.compile(shape))
    for triggers, shape in (
        (("://",), r"://(?P<secret>[^/\s:@\"']*:[^/\s@\"']+|[^/\s:@\"']{20,})@"),  # user and password, or a token
        (("AKIA", "ASIA"), r"\b(?P<secret>(?:AKIA|ASIA)[0-9A-Z]{16})\b"),
        (("AIza", "ya29."), r"\b(?P<secret>AIza[\w\-]{35}|ya29\.[\w\-]{20,})"),
        (("hf_",), r"\b(?P<secret>hf_[A-Za-z0-9]{20,})"),
        (("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"\b(?P<secret>gh[opsur]_[A-Za-z0-9]{30,})"),
        (("github_pat_", "glpat-"), r"\b(?P<secret>github_pat_\w{40,}|glpat-[\w\-]{20,})"),
        (("wandb_v1_", "dapi"), r"\b(?P<secret>wandb_v1_\w{20,}|dapi[0-9a-f]{32})"),
        (("xox", "sk-"), r"\b(?P<secret>xox[abeoprs]-[\w\-]{10,}|sk-[\w\-]{20,})"),
        (("eyJ",), r"\b(?P<secret>eyJ[\w\-]{10,}\.[\w\-]{10,}\.[\w\-]*)"),  # JSON web token
        (("earer ", "asic "), r"(?i:\b(?:bearer|basic) )(?P<secret>[A-Za-z0-9._~+/\-]{8,}=*)"),
        (
            ("?", "&"),
            r"[?&](?i:token|access_token|sig|signature|api_?key|key|password|secret|x-amz-signature|x-amz-credential)="
            r"(?P<secret>[^&\s\"']+)",
        ),
        (("PRIVATE KEY",), r"(?P<secret>-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----)"),
    )
)
SHORTEST: Final = 8  # a shorter value of a variable is masked by its name only: `1` stands everywhere
ASSIGNMENT: Final = re.compile(r"([\w.\-]+)([\"']?[ \t]*[:=][ \t]*)([\"']?)([^\s\"',(){}\[\]]+)\3")
MASK: Final = re.compile(r"\*{3}[0-9a-f]{8}")
_salt: Final = os.urandom(16)
_variables: tuple[str, ...] | None = None


def masked(text: str) -> str:
    """What stands in the place of a secret."""
    return "***" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=_salt, digest_size=4).hexdigest()


def unsalted(text: str) -> str:
    """A masked text as every process has it: without the digits that say which secrets are equal."""
    return MASK.sub("***", text)


def learn_variables() -> None:
    """Read the environment anew: what its credentials (by their names) are is masked wherever it stands."""
    global _variables
    found = {value for name, value in os.environ.items() if len(value) >= SHORTEST and is_secret_name(name)}
    _variables = tuple(sorted((value for value in found if not value.startswith(("/", "."))), key=len, reverse=True))


def mask_text(text: str) -> str:
    """A text with everything masked that looks like a credential, or is one of the environment's."""
    if _variables is None:
        learn_variables()
    for secret in _variables or ():
        if secret in text:
            text = text.replace(secret, masked(secret))
    for triggers, shape in SHAPES:
        if any(trigger in text for trigger in triggers):
            text = shape.sub(_masked_match, text)
    return text


def _masked_match(match: re.Match[str]) -> str:
    whole, start, end = match.group(), match.start("secret") - match.start(), match.end("secret") - match.start()
    return whole[:start] + masked(whole[start:end]) + whole[end:]


def mask(value: Any, key: str = "") -> Any:
    """A copy of nested dicts, lists and strings with credentials masked. Other values pass unchanged."""
    if isinstance(value, dict):
        return {name: mask(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask(inner, key) for inner in value]
    if isinstance(value, str):
        return masked(value) if value and is_secret_name(key) else mask_text(value)
    return value


def mask_command(arguments: list[str]) -> list[str]:
    """A command line with the values of `--password X`, `--token=X`, `API_KEY=X`, `KEY X` masked."""
    result: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and value and is_secret_name(name):
            result.append(f"{name}={masked(value)}")
        elif result and is_secret_name(result[-1]) and not argument.startswith("-"):
            result.append(masked(argument))
        else:
            result.append(mask_text(argument))
    return result


def mask_source(text: str) -> str:
    """A YAML or Python configuration with the values of credential keys masked; everything else stays as it is."""

    def assignment(match: re.Match[str]) -> str:
        key, between, quote, value = match.groups()
        return f"{key}{between}{quote}{masked(value)}{quote}" if is_secret_name(key) else match.group()

    return mask_text(ASSIGNMENT.sub(assignment, text))


def is_secret_name(key: str) -> bool:
    """True if a key, by its words, names a credential: `WANDB_API_KEY`, `authToken`; not `max_tokens`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    parts = re.split(r"[^a-z0-9]+", words)
    return not WORDS.isdisjoint(parts) or any(phrase in "_".join(parts) for phrase in PHRASES)


def split_userinfo(uri: str) -> tuple[str, str | None, str | None]:
    """A URI as it may be written down, and the user and password that were in it.

    Of http both leave the URI, since clients take them from the environment; of a database the user stays.
    """
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri, None, None
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme not in {"http", "https"}:
        if parts.password is None:
            return uri, None, None
        host = f"{parts.username}@{host}"
    return urlunsplit(parts._replace(netloc=host)), parts.username, parts.password


def whole_uri_variable(backend: str, option: str) -> str:
    """The variable in which the uploader is handed the URI of an option that has a password in it."""
    return f"UNIFIED_TRACKER_{backend}_{option}".upper()


def whole_uri(backend: str, option: str, written: str, *variables: str) -> str:
    """The URI with its password again: as the training hands it over, or from one of the user's own variables."""
    for variable in (whole_uri_variable(backend, option), *variables):
        uri = os.environ.get(variable, "")
        if uri and split_userinfo(uri)[0] == written:
            return uri
    return written
