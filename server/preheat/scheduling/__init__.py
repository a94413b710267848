"""Scheduling: from an admitted request to its answer.

``admission`` holds a request against the signature, ``queue`` bounds what waits, ``batching`` chooses (pure),
``padding`` joins, pads and cuts apart, ``warmup`` makes the batches that make a session hot and ``warming`` runs them,
``worker`` is the thread that owns one session.
"""
