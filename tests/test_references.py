"""References to code at the command line: what is said of one in another form."""

from __future__ import annotations

import re

import pytest

from gnnstab.errors import UsageError
from gnnstab.observation._references import resolve


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("mymodel.py:make", "names a file, where a module is asked for; write mymodel:make"),
        ("nets/mymodel.py:make", "write mymodel:make and run in the folder nets"),
        ("mymodel.py", "write mymodel:NAME"),
        ("mymodel", "is not of the form pkg.mod:name; write mymodel:NAME"),
    ],
)
def test_a_reference_of_another_form_is_answered_with_the_right_one(reference: str, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        resolve(reference)
