"""Monitor: the recorder, a trace and the live rules around a training loop, and what is tried when it has ended."""

from gnnstab.monitor.monitor import Monitor as Monitor
