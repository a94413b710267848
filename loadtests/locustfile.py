"""A steady load: as many users as ``--users`` says, for as long as ``--run-time`` says."""

from loadtests.user import InferenceUser

__all__ = ["InferenceUser"]
