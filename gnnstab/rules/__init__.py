"""The rules: signals → findings, causes and advice. One file per rule; `RULES` in rules/_table.py finds them."""

from gnnstab.rules._attribution import causes as causes
from gnnstab.rules._attribution import modest as modest
from gnnstab.rules._attribution import outcomes as outcomes
from gnnstab.rules._by_steps import harmful as harmful
from gnnstab.rules._table import RULES as RULES
from gnnstab.rules.advice import advice as advice
from gnnstab.rules.base import Rule as Rule
from gnnstab.rules.engine import Outcome as Outcome
from gnnstab.rules.engine import Override as Override
from gnnstab.rules.engine import run as run
