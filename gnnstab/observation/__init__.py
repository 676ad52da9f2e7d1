"""Observation: a target (path, folder, trace or model) → its signals, the one road that every face and every proof takes."""

from gnnstab.observation.models import measured_signals as measured_signals
from gnnstab.observation.models import model_signals as model_signals
from gnnstab.observation.models import static_signals as static_signals
from gnnstab.observation.references import build as build
from gnnstab.observation.references import resolve as resolve
from gnnstab.observation.request import Observed as Observed
from gnnstab.observation.request import Progress as Progress
from gnnstab.observation.request import Request as Request
from gnnstab.observation.targets import is_trace as is_trace
from gnnstab.observation.targets import observe as observe
