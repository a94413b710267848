"""Model versions while they live.

``lifecycle`` is the state machine, ``handle`` one version that serves, ``registry`` finds it by name, ``loader``
makes it, ``manager`` brings a repository up and down.
"""
