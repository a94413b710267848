"""The backends that ship with Preheat.

One module or small package each, named in the entry-point group ``preheat.backends``. Every one implements the contract
in :mod:`preheat.backend` and imports nothing else of the server but :mod:`preheat.tensors` and :mod:`preheat.errors`.
Importing this package imports none of them: a backend's library is loaded when a model first asks for the backend.
:mod:`preheat_backends.double` is the one to read before writing another.
"""
