"""torch.compile, held to what a server needs of it.

A graph is compiled by the first call that needs it, on the instance's thread, and serves every other instance: what is
compiled under one thread's settings is good for all threads that have the same. What torch keeps by thread, and until
2.12 kept for the process, is set here and nowhere else.
"""

import logging
import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch._dynamo
from torch._dynamo.convert_frame import compile_lock
from torch._dynamo.exc import BackendCompilerFailed

from preheat.backend import ModelSource, Signature
from preheat.errors import ExecutionFailed
from preheat_backends.torch_compile.cuda_graphs import RecordedProgram
from preheat_backends.torch_compile.fingerprint import Indescribable
from preheat_backends.torch_compile.frames import report_given_up, watch
from preheat_backends.torch_compile.kept import KeptGraphs, KeptNetwork, Picked, Run
from preheat_backends.torch_compile.kernels import release_lock_in_kernels
from preheat_backends.torch_compile.network import CompiledNetwork
from preheat_backends.torch_compile.options import Recipe
from preheat_backends.torch_compile.variants import Variants
from preheat_backends.torch_programs.program import Arguments, NetworkProgram, Wrapped

log = logging.getLogger(__name__)
# dynamo's own lock, under which it compiles one frame at a time in the whole process. It does not look again, once it
# has the lock, whether another thread has meanwhile compiled the same: so look before, under the same lock. A lock of
# our own around it could be taken in the other order, by a compiled network that has to be compiled again.
_COMPILING = compile_lock
# What a call returns that came too late, and has to look again.
_LATE = object()
# torch's limit is on the graphs of one piece of code. Library code between graph breaks has those of all models and all
# their versions: so none but this, and each network has its own, inductor.MOST_GRAPHS.
_UNLIMITED = 2**20


def compile_program(
    program: NetworkProgram, source: ModelSource, signature: Signature, recipe: Recipe
) -> NetworkProgram:
    """``program``, to be compiled by the calls that warm it."""
    release_lock_in_kernels()
    variants = Variants(signature, source.buckets, dynamic=recipe.dynamic)
    kept = KeptGraphs(recipe.cache_path, source.version_path) if recipe.cache_path and recipe.keeps_graphs else None
    compiled = CompiledProgram(program, variants, recipe, kept, model=source.name)
    return RecordedProgram(compiled, variants) if recipe.records_graphs else compiled


class CompiledProgram(Wrapped):
    """A program whose network is compiled once for each of its ``variants``.

    Each is compiled as a function of its own. Of several graphs that one function has, torch looks for the one that
    fits in a list which it reorders as it goes: two threads at it at once can miss theirs, and compile it again.
    """

    def __init__(
        self, inner: NetworkProgram, variants: Variants, recipe: Recipe, kept: KeptGraphs | None, *, model: str
    ) -> None:
        """``kept`` None: graphs are traced at each load."""
        super().__init__(inner)
        self.specializes_on_shape = not recipe.dynamic
        self._variants = variants
        self._recipe = recipe
        self._kept = kept
        self._model = model
        # Both are written under _COMPILING, and read by any thread.
        self._networks: dict[object, CompiledNetwork | KeptNetwork] = {}
        self._turn: AbstractContextManager[object] = nullcontext()
        self._told = False

    def call(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """Run the network, compiled; the first call of a variant compiles it."""
        try:
            result = _LATE
            while result is _LATE:
                result = self._run_or_compile(inputs)
        except BackendCompilerFailed as exc:
            if isinstance(exc.inner_exception, ExecutionFailed):
                raise exc.inner_exception from None
            raise
        report_given_up()
        return result

    def call_eagerly(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """As the other; whatever the network does to itself, graphs found later are held against."""
        try:
            return super().call_eagerly(inputs)
        finally:
            if self._kept is not None:
                self._kept.look_again()

    def pick(self, result: object) -> Mapping[str, torch.Tensor]:
        """As the other, in what was traced."""
        return result if isinstance(result, Picked) else super().pick(result)

    def keeps(self, tensor: torch.Tensor) -> bool:
        """As the other says; of what is frozen nobody knows where it is."""
        return self._recipe.freezing or super().keeps(tensor)

    def adopt_thread(self) -> None:
        """Have no model run eagerly in silence because of the graphs of others."""
        super().adopt_thread()
        config = torch._dynamo.config
        config.fail_on_recompile_limit_hit = True
        config.recompile_limit = config.accumulated_recompile_limit = _UNLIMITED

    def close(self) -> None:
        """Have torch forget the graphs: at once, or when nothing is compiled any more, for which it does not wait."""
        networks = tuple(self._networks.values())
        if _COMPILING.acquire(blocking=False):
            try:
                _forget(networks)
            finally:
                _COMPILING.release()
        else:
            threading.Thread(target=_forget, args=(networks,), name=f"{self._model} is forgotten", daemon=True).start()
        super().close()

    def _run_or_compile(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """The result; _LATE if another thread has meanwhile compiled the variant, or found that turns are to be taken.

        Turns are taken before the lock: dynamo takes that while a network runs, and both orders would be a deadlock.
        """
        turn = self._turn
        with turn:
            network = self._networks.get(self._variants.of(inputs))
            if network is None:
                return self._compile(inputs, turn)
            return network(self.arrange(inputs)) if turn is self._turn else _LATE

    def _compile(self, inputs: Mapping[str, torch.Tensor], turn: object) -> object:
        variant, what = self._variants.of(inputs), self._variants.describe(inputs)
        with _COMPILING:
            if variant in self._networks or turn is not self._turn:
                return _LATE
            if len(self._networks) >= self._variants.limit:
                raise ExecutionFailed(
                    f"no graph for {what}, and the limit of {self._variants.limit} for this model is reached; give it "
                    "a bucket, or set parameter dynamic: true"
                )
            found = self._kept.find(variant, self.module, what) if self._kept else None
            if found is not None:
                self._networks[variant] = found
                return found(self.arrange(inputs))
            return self._trace(variant, what, inputs)

    def _trace(self, variant: object, what: str, inputs: Mapping[str, torch.Tensor]) -> object:
        watch()
        before = self._describe()
        self._variants.mark(inputs)
        network = CompiledNetwork(self.module, self._recipe, what)
        arguments = self.arrange(inputs)
        try:
            result = network.compile(arguments)
        except BaseException:
            network.close()
            raise
        # Before anyone can find the network: whoever does has to know whether to take turns.
        self._look_at_breaks(network)
        self._networks[variant] = network
        self._keep(variant, network, before, arguments, result)
        return result

    def _describe(self) -> str | None:
        try:
            return self._kept.describe(self.module) if self._kept else None
        except Indescribable as exc:
            self._cannot_keep(exc)
            return None

    def _keep(
        self, variant: object, network: CompiledNetwork, before: str | None, arguments: Arguments, result: object
    ) -> None:
        """Have later loads find the graph, if that can be done."""
        try:
            traced = network.take_traced()
            if self._kept is not None and before is not None:
                run = Run(before, arguments, super().pick(result))
                self._kept.keep(variant, self.module, traced, run)
        except Exception as exc:
            self._cannot_keep(exc)

    def _cannot_keep(self, why: Exception) -> None:
        log.log(
            logging.DEBUG if self._told else logging.INFO,
            "%s: the network will be traced at each load, which takes seconds: %s", self._model, why,
        )  # fmt: skip
        self._told = True

    def _look_at_breaks(self, network: CompiledNetwork) -> None:
        """Say once for the model where its graphs break."""
        if network.breaks and not isinstance(self._turn, nullcontext):
            return
        if network.breaks:
            # The parts in between are functions of the model's own, and one function for all variants.
            self._turn = threading.Lock()
            log.warning("%s: %s", self._model, network.tell_breaks())


def _forget(networks: Iterable[CompiledNetwork | KeptNetwork]) -> None:
    with _COMPILING:
        for network in networks:
            network.close()
