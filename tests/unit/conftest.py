"""Settings of the unit tests."""

from hypothesis import settings

# A deadline for each example would fail tests for what else the machine does.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
