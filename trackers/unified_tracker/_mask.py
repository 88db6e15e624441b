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
PATTERNS: Final = re.compile(
    r"(?P<userinfo>(?<=://)[^/\s:@]+:[^/\s@]+(?=@))"
    r"|AKIA[0-9A-Z]{16}|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bwandb_v1_[A-Za-z0-9_]{20,}"
    r"|(?<=[?&]token=)[^&\s]+|(?<=Bearer )[A-Za-z0-9._~+/-]{8,}=*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----"
)
ASSIGNMENT: Final = re.compile(r"([\w.\-]+)([\"']?[ \t]*[:=][ \t]*)([\"']?)([^\s\"',(){}\[\]]+)\3")
_salt: Final = os.urandom(16)


def masked(text: str) -> str:
    """What stands in the place of a secret."""
    return "***" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=_salt, digest_size=4).hexdigest()


def mask_text(text: str) -> str:
    """A text with everything masked that looks like a credential."""
    return PATTERNS.sub(lambda match: masked(match.group()), text)


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
    """A URI without its user and password, and these two."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc or parts.scheme not in {"http", "https"}:
        return uri, None, None
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=host)), parts.username, parts.password
