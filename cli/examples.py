"""The examples that stand at the end of the help: of the program and of every command."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": ("gnnstab demo", "gnnstab diagnose actor.pt", "gnnstab explain nan"),
    "diagnose": (
        "gnnstab diagnose actor.pt",
        "gnnstab diagnose actor.pt --model network:actor --batch batch.pt",
        "gnnstab diagnose run.gnnstab --output html=report.html",
    ),
    "check": (
        "gnnstab check actor.pt --fail-on error",
        "gnnstab check run.gnnstab --format sarif --output junit=out.xml",
    ),
    "compare": ("gnnstab compare before.pt after.pt", "gnnstab compare before.pt after.pt --fail-on-growth 2x"),
    "verify": (
        "gnnstab verify actor.pt --model network:actor --batch batch.pt",
        "gnnstab verify actor.pt --model network:actor --batch batch.pt --fix qk-clip",
    ),
    "ladder": ("gnnstab ladder actor.pt --model network:actor --batch batch.pt",),
    "scale": ("gnnstab scale actor.pt --model network:actor --batch batch.pt --factors 1,2,4",),
    "replay": (
        "gnnstab replay run.bundle-12 --model network:actor",
        "gnnstab replay crash.pt --model network:actor --batch batch.pt --precision fp16",
    ),
    "watch": ("gnnstab watch run.gnnstab", "gnnstab watch run.gnnstab --once"),
    "rules": ("gnnstab rules", "gnnstab rules --select GS3,GS401"),
    "explain": ("gnnstab explain GS301", "gnnstab explain pre-norm-residual", "gnnstab explain nan"),
    "demo": ("gnnstab demo", "gnnstab demo --files example", "gnnstab demo --folder tour --no-open"),
    "config": ("gnnstab config", "gnnstab config --config ci.toml --quiet"),
}
"""Command → calls of it; those of the program itself under ``""``."""


def epilog(command: str) -> str:
    """The examples in the form in which click leaves lines as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in EXAMPLES[command])])
