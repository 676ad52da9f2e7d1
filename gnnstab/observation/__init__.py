"""Observation: a target (path, folder, trace or model) → its signals, the one road that every face and every proof takes."""

from gnnstab.observation._models import adam_settings as adam_settings
from gnnstab.observation._models import measured_signals as measured_signals
from gnnstab.observation._models import model_signals as model_signals
from gnnstab.observation._models import static_signals as static_signals
from gnnstab.observation._references import build as build
from gnnstab.observation._references import resolve as resolve
from gnnstab.observation._request import Observed as Observed
from gnnstab.observation._request import Progress as Progress
from gnnstab.observation._request import Request as Request
from gnnstab.observation._targets import is_trace as is_trace
from gnnstab.observation._targets import observe as observe
