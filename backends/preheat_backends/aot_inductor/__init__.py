"""The backend for AOTInductor packages: networks compiled ahead of time into native code, with their weights.

``package`` reads the archive, ``description`` what our build tool wrote into it, ``generated`` what torch's generated
source tells, ``compatibility`` whether it may run here; ``program`` runs it. ``build`` is the tool that makes packages.
"""

from preheat_backends.aot_inductor.backend import AotInductorBackend

__all__ = ["AotInductorBackend"]
