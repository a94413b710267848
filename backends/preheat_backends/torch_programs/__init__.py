"""What the backends that run torch in this process share: from an artifact to a network that answers batches.

``backend`` is the plugin they derive from, ``program`` a loaded network, ``exported_program`` and ``python_module`` the
two kinds of artifact, ``precision`` a network in another dtype, ``session`` a thread's way in.
"""
