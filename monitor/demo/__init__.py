"""A hospital's transcription service in a terminal: a gap opens, and a rule catches it.

The traffic is invented; nothing else is. Raw JSON events are decoded, joined and counted by the same
decoder and engine that every command uses, and the alert comes out of the engine.
"""

from monitor.demo.show import run
from monitor.demo.watch import CONFIG

__all__ = ["CONFIG", "run"]
