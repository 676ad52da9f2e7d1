"""What the shell completes: codes of rules, formats of reports, names of fixes. Each list is read when it is asked for."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, CompletionItem


class Bash(BashComplete):
    """Bash cuts ``--format=js`` and ``html=out`` into three words; here they are one again."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one at the cursor."""
        before, last = super().get_completion_args()
        words: list[str] = []
        for word in (*before, last):
            if words and (word.startswith("=") or words[-1].endswith("=")):
                words[-1] += word
            else:
                words.append(word)
        return words[:-1], words[-1]


def files(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders, by the shell itself."""
    return [CompletionItem(incomplete, type="file")]


def codes(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Rule codes, also the last one of a list with commas, each with the rule's name."""
    from gnnstab.rules.registry import rule_classes

    before, comma, part = incomplete.rpartition(",")
    found = [rule for rule in rule_classes() if rule.code.startswith(part.upper())]
    return [CompletionItem(f"{before}{comma}{rule.code}", help=rule.name) for rule in found]


def topics(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Words that `explain` knows: rules, causes, fixes, signals, events."""
    from gnnstab.report.topic_pages import topics

    return [CompletionItem(name) for name in topics() if name.startswith((incomplete, incomplete.upper()))]


def formats(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Formats of reports."""
    from gnnstab.report import format_names

    return [CompletionItem(name) for name in format_names() if name.startswith(incomplete)]


def outputs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """``FORMAT=``, and behind it a file."""
    if "=" in incomplete:
        return files(context, parameter, incomplete)
    return [CompletionItem(f"{item.value}=") for item in formats(context, parameter, incomplete)]


def fixes(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of fixes, each with what it does."""
    from gnnstab.fixes import FIXES

    return [CompletionItem(name, help=fix.title) for name, fix in FIXES.items() if name.startswith(incomplete)]
