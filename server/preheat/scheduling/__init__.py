"""Scheduling: from an admitted request to its answer.

``admission`` holds a request against the signature, ``queue`` bounds what waits, ``batching`` chooses (pure),
``collation`` joins and splits, ``warmup`` makes the batches that make a session hot, ``worker`` is the thread that
owns one session.
"""
