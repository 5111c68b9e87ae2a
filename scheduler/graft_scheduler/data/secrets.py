"""What looks like a password, a key or a token: forms that hardly anything else has."""

from __future__ import annotations

import re

_FORMS = (
    ("a private key", ("-----BEGIN",), r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    ("an AWS access key", ("AKIA", "ASIA"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("a GitHub token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"\bgh[pousr]_[A-Za-z0-9]{36,}\b"),
    ("a GitHub token", ("github_pat_",), r"\bgithub_pat_[A-Za-z0-9_]{50,}"),
    ("a GitLab token", ("glpat-",), r"\bglpat-[A-Za-z0-9_-]{20,}"),
    ("a Hugging Face token", ("hf_",), r"\bhf_[A-Za-z0-9]{30,}\b"),
    (
        "an OpenAI key",
        ("sk-",),
        r"\bsk-(?=[A-Za-z0-9_-]*[0-9])(?=[A-Za-z0-9_-]*[A-Z])[A-Za-z0-9_-]{32,}|\bsk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{24,}",
    ),
    ("an Anthropic key", ("sk-ant-",), r"\bsk-ant-[A-Za-z0-9_-]{24,}"),
    ("a Slack token", ("xox",), r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    ("a Stripe key", ("k_live_", "k_test_"), r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    ("a Slack webhook", ("hooks.slack.com",), r"hooks\.slack\.com/services/T\w+/B\w+/\w{16,}"),
    ("a SendGrid key", ("SG.",), r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    ("a Google client secret", ("GOCSPX-",), r"\bGOCSPX-[A-Za-z0-9_-]{20,}"),
    ("a DigitalOcean token", ("dop_v1_",), r"\bdop_v1_[a-f0-9]{32,}"),
    ("a Telegram token", (":AA",), r"\b[0-9]{8,10}:AA[A-Za-z0-9_-]{32,}"),
    ("an Azure key", ("AccountKey=",), r"AccountKey=[A-Za-z0-9+/]{40,}={0,2}"),
    (
        "a token",
        ("earer ", "asic "),
        r"(?i)\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic)\s+[A-Za-z0-9+/_=.-]{16,}",
    ),
    ("a Google API key", ("AIza",), r"\bAIza[0-9A-Za-z_-]{35}\b"),
    ("an npm token", ("npm_",), r"\bnpm_[A-Za-z0-9]{36}\b"),
    ("a PyPI token", ("pypi-",), r"\bpypi-[A-Za-z0-9_-]{50,}"),
    ("a JSON web token", ("eyJ",), r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}"),
    (
        "a URL with a password",
        ("://",),
        r"(?i)\b[a-z][a-z0-9+.-]*://[^\s/:@]+:(?!\*+@|password@|passwd@|pass@|secret@|<)[^\s/@]{3,}@"
        r"(?!localhost\b|127\.|example\.|host\b)[\w.-]+",
    ),
    (
        "a password",
        (
            "assw",
            "ASSW",
            "ecret",
            "ECRET",
            "api_key",
            "API_KEY",
            "apikey",
            "oken",
            "OKEN",
            "ccess_key",
            "CCESS_KEY",
        ),
        r"(?i)(?<![a-z])(?:[a-z0-9]+_)*(?:password|passwd|secret|secret_?key|secret_access_key|api_?key|token)"
        r"\b[\"']?\s*[:=]\s*[\"']?(?!your|example|change|xxx|<|\$)"
        r"(?=[^\s\"'(\[,;]*[0-9])(?=[^\s\"'(\[,;]*[A-Za-z])[A-Za-z0-9+/_=!@#$%^&*~-]{6,}(?![\w(\[.])",
    ),
)
_COMPILED = tuple((name, marks, re.compile(form)) for name, marks, form in _FORMS)
_ANY = ("-", "_", "=", ":", "AKIA", "ASIA", "AIza", "eyJ")
"""Every form has one of these: most texts have none, and are looked at no further."""
_SHOWN = 4
"""Letters of it that are shown at its beginning, to find it by."""


def find_secret(text: str) -> str | None:
    """What the first secret in the text looks like, with its first letters; never the whole of it."""
    if not any(mark in text for mark in _ANY):
        return None
    for name, marks, form in _COMPILED:
        for mark in marks:
            if mark in text and (found := form.search(text)):
                return f"{name} ({found[0].splitlines()[0][:_SHOWN]}…)"
    return None
