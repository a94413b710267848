"""What one instance's thread had compiled, before it was ready and after."""

from preheat.compilations import Compilation
from preheat.telemetry.events import Compiled, Observer


class CompilationRecord:
    """Counts what the instance's thread states, and passes it on as events. Belongs to whoever runs the instance."""

    def __init__(self, model: str, version: int, instance: int, observer: Observer) -> None:
        self._model = model
        self._version = version
        self._instance = instance
        self._observer = observer
        self.ready = False
        self.seen: list[Compilation] = []

    def record(self, compilation: Compilation) -> None:
        """A :data:`preheat.compilations.Recorder`. Once :attr:`ready`, only the event is kept."""
        if not self.ready:
            self.seen.append(compilation)
        self._observer(
            Compiled(
                self._model,
                self._version,
                self._instance,
                compilation.kind.value,
                compilation.what,
                compilation.seconds,
                cached=compilation.cached,
                ready=self.ready,
            )
        )
